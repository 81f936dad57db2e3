"""TorchTitan's pipeline with stages for variable lengths."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.pipeline_parallel import pipeline_llm

from titan_wlb.compat.pipelining import building_stages_with
from titan_wlb.job_config import JobConfig
from titan_wlb.pipeline_parallel.stage import VariableLengthStage


def activation_dtype(parallel_dims: ParallelDims, job_config: JobConfig) -> torch.dtype:
    """dtype of what stages send: FSDP's parameter dtype, else the model's own (TorchTitan mixes through FSDP only)."""
    training = job_config.training
    return TORCH_DTYPE_MAP[training.mixed_precision_param if parallel_dims.fsdp_enabled else training.dtype]


def pipeline_llm_wlb(
    model: nn.Module,
    parallel_dims: ParallelDims,
    job_config: JobConfig,
    device: torch.device,
    model_args: Any,
    *args: Any,
) -> tuple[Any, list[nn.Module], bool, bool]:
    """TorchTitan's ``pipeline_llm``: splits the model, parallelises each part, builds the schedule."""
    make_stage = partial(VariableLengthStage, width=model_args.dim, dtype=activation_dtype(parallel_dims, job_config))
    with building_stages_with(make_stage):
        return pipeline_llm(model, parallel_dims, job_config, device, model_args, *args)

"""Applies TP, activation checkpointing, torch.compile and FSDP to the model, with TorchTitan's own functions.

TorchTitan's ``parallelize_llama`` is not called because it asks for sequence lengths that divide by 2 x CP and wraps
the inner attention with torch's context parallelism; the order of the steps is the same.
"""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.activation_checkpoint import apply_ac
from torchtitan.distributed.tensor_parallel import maybe_enable_async_tp
from torchtitan.models.llama3.infra.parallelize import apply_compile, apply_fsdp, apply_tp

from titan_wlb.compat.activation_checkpoint import OPS_TO_SAVE
from titan_wlb.context_parallel.dynamic import mark_dynamic_hook
from titan_wlb.context_parallel.op import ops_to_save
from titan_wlb.job_config import JobConfig


def parallelize_llama_wlb(model: nn.Module, parallel_dims: ParallelDims, job_config: JobConfig) -> nn.Module:
    """Applies every parallelism but the pipeline's to a model, or to one pipeline stage of it, on the meta device."""
    if parallel_dims.tp_enabled:
        tp_mesh = parallel_dims.get_mesh("tp")
        apply_tp(
            model,
            tp_mesh,
            loss_parallel=not job_config.parallelism.disable_loss_parallel,
            enable_float8_tensorwise_tp=False,
        )
        maybe_enable_async_tp(job_config, tp_mesh)

    compiled = job_config.compile.enable and "model" in job_config.compile.components
    if job_config.activation_checkpoint.mode != "none":
        apply_ac(
            model,
            job_config.activation_checkpoint,
            model_compile_enabled=compiled,
            op_sac_save_list=OPS_TO_SAVE | set(ops_to_save()),
            base_folder=job_config.job.dump_folder,
        )
    if compiled:
        apply_compile(model, job_config.compile)

    if parallel_dims.fsdp_enabled:
        names = ["dp_replicate", "fsdp"] if parallel_dims.dp_replicate_enabled else ["fsdp"]
        apply_fsdp(
            model,
            parallel_dims.get_mesh(names),
            param_dtype=TORCH_DTYPE_MAP[job_config.training.mixed_precision_param],
            reduce_dtype=TORCH_DTYPE_MAP[job_config.training.mixed_precision_reduce],
            pp_enabled=parallel_dims.pp_enabled,
            cpu_offload=job_config.training.enable_cpu_offload,
            reshard_after_forward_policy=job_config.parallelism.fsdp_reshard_after_forward,
        )
        for module in model.modules():
            # gloo knows no scaled sum, which a gradient divide factor of 1 would ask for
            if isinstance(module, FSDPModule) and not torch.cuda.is_available():
                module.set_force_sum_reduction_for_comms(True)

    if compiled:
        for block in model.layers.values():
            mark_dynamic_hook(block)
    return model

"""TorchTitan's options that this package does not honour: refused, since they would do nothing or something else.

``docs/torchtitan_options.md`` lists every option with what it does here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from titan_wlb.job_config import JobConfig
from titan_wlb.validate.types import shown

__all__ = ["UNSUPPORTED", "unsupported_problems"]


class _Option(NamedTuple):
    """An option of which only some values are supported."""

    key: str
    supported: tuple[Any, ...]
    why: str


_LOADER = "the balanced loader reads ahead in a thread of its own"
_NO_EXPERTS = "the model has no experts"

UNSUPPORTED = (
    _Option("validation.enable", (False,), "TorchTitan's validator cuts sequences its own way"),
    _Option("comm.mode", ("default",), "plans are compared over real ranks"),
    _Option("fault_tolerance.enable", (False,), "replicas would plan different steps"),
    _Option("memory_estimation.enable", (False,), "it needs a fake process group"),
    _Option("model.converters", ([],), "converted layers are not proven with ours"),
    _Option("training.enable_cpu_offload", (False,), "it is not proven with our gradient norm"),
    _Option("training.dataloader.num_workers", (0,), _LOADER),
    _Option("training.dataloader.persistent_workers", (False,), _LOADER),
    _Option("training.dataloader.pin_memory", (False,), _LOADER),
    _Option("training.dataloader.prefetch_factor", (None,), _LOADER),
    _Option("optimizer.early_step_in_backward", (False,), "gradients are summed over micro-batches and clipped"),
    _Option(
        "activation_checkpoint.mode",
        ("none", "full", "selective"),
        "it is not proven with the attention op; take 'selective' or 'full'",
    ),
    _Option("parallelism.context_parallel_load_balancer", ("headtail",), "wlb.sharding says who computes what"),
    _Option("parallelism.context_parallel_rotate_method", ("allgather",), "keys and values are all-gathered"),
    _Option("parallelism.pipeline_parallel_microbatch_size", (1,), "a micro-batch is one row of packed documents"),
    _Option("parallelism.pipeline_parallel_schedule_csv", ("", None), "only torch's own schedules are"),
    _Option("parallelism.expert_parallel_degree", (1,), _NO_EXPERTS),
    _Option("parallelism.expert_tensor_parallel_degree", (1,), _NO_EXPERTS),
    _Option("parallelism.expert_parallel_comm_backend", ("standard",), _NO_EXPERTS),
    _Option("debug.moe_force_load_balance", (False,), _NO_EXPERTS),
    _Option("checkpoint.initial_load_in_hf_quantized", (False,), "TorchTitan reads no quantised Llama"),
    _Option("experimental.custom_args_module", ("",), "job.custom_config_module took its place"),
)


def unsupported_problems(config: JobConfig) -> Iterator[str]:
    """The options set to what is not supported; also what the environment asks torch for."""
    for option in UNSUPPORTED:
        value = attrgetter(option.key)(config)
        if value not in option.supported:
            yield f"{option.key} = {shown(value)} is not supported: {option.why}; {_instead(option)}"
    if os.environ.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        yield (
            "TORCH_DISTRIBUTED_DEBUG = DETAIL is not supported: torch then demands equal shapes of all micro-batches, "
            "and TorchTitan's meshes fail; use INFO"
        )


def _instead(option: _Option) -> str:
    (*_, usual) = option.supported[:1]
    return "remove it" if usual in ("", None, [], False) else f"remove it ({shown(usual)} is the default)"

"""What this rank's device does not have."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from titan_wlb.context_parallel.kernels import pick_backend
from titan_wlb.job_config import JobConfig

__all__ = ["device_problems"]


def device_problems(config: JobConfig, device_type: str, local_rank: int) -> Iterator[str]:
    """Ranks without a GPU, options that need one, and attention kernels that do not run here."""
    if device_type == "cuda":
        if local_rank >= torch.cuda.device_count():
            yield (
                f"rank {local_rank} of this machine has no GPU, there are {torch.cuda.device_count()}; lower NGPU "
                "(--nproc_per_node)"
            )
        torch.cuda.set_device(local_rank)
    else:
        yield from _needs_cuda(config)
    try:
        pick_backend(config.wlb.attention_backend, torch.device(device_type, local_rank))
    except ValueError as error:
        yield str(error)


def _needs_cuda(config: JobConfig) -> Iterator[str]:
    """What TorchTitan 0.2.2 does with CUDA alone, and would fail at in the middle of a run."""
    for is_set, option in (
        (config.profiling.enable_profiling, "profiling.enable_profiling = true"),
        (config.profiling.enable_memory_snapshot, "profiling.enable_memory_snapshot = true"),
        (config.training.gc_debug, "training.gc_debug = true"),
        (
            config.checkpoint.enable and config.checkpoint.async_mode == "async_with_pinned_mem",
            "checkpoint.async_mode = 'async_with_pinned_mem'",
        ),
    ):
        if is_set:
            yield f"{option} needs a CUDA device, and this machine has none; remove it"

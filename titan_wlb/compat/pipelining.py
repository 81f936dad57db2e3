"""What torch's pipelining and TorchTitan's use of it keep private. Read in torch 2.12, 2.13 and torchtitan 0.2.2."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchtitan.distributed.pipeline_parallel as titan_pipeline


@contextmanager
def building_stages_with(make_stage: Callable[..., Any]) -> Iterator[None]:
    """Within the block TorchTitan's ``pipeline_llm`` builds its stages with ``make_stage``, not ``PipelineStage``.

    TorchTitan offers no other way to choose the stage's class short of a copy of ``pipeline_llm``.
    """
    of_torch = titan_pipeline.PipelineStage
    titan_pipeline.PipelineStage = make_stage
    try:
        yield
    finally:
        titan_pipeline.PipelineStage = of_torch


def stages_of(schedule: Any) -> list[Any]:
    """The stages that this rank runs under a schedule."""
    return schedule._stages if hasattr(schedule, "_stages") else [schedule._stage]


def run_micro_batches(
    schedule: Any,
    args: list[tuple[Any, ...]],
    kwargs: list[dict[str, Any]],
    targets: list[torch.Tensor] | None,
    losses: list[torch.Tensor] | None,
) -> None:
    """One step of a schedule over given micro-batches, which need not be slices of one tensor.

    Does what ``schedule.step`` does around ``_step_microbatches``, without splitting a batch.
    """
    for stage in stages_of(schedule):
        stage.has_backward = schedule._has_backward
        stage.clear_runtime_states()
    schedule._step_microbatches(args, kwargs, targets, losses, return_outputs=False)

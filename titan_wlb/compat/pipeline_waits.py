"""Timed waits of torch's pipeline schedules. Read in torch 2.11 and 2.13.

Every schedule waits for its sends and receives in one function, ``schedules._wait_batch_p2p``; issuing never blocks.
With gloo ``Work.wait`` blocks the thread, with NCCL it makes the current stream wait: both are what the clock measures.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.pipelining import schedules

from titan_wlb.clocks import StepClock

_wait_batch_p2p = schedules._wait_batch_p2p


def install_pipeline_waits(clock: StepClock) -> None:
    """From now on every schedule of this process reports its point-to-point waits to ``clock`` as "pipeline"."""

    def timed(work: list[dist.Work]) -> None:
        if work:
            with clock.wait("pipeline"):
                _wait_batch_p2p(work)

    schedules._wait_batch_p2p = timed


def remove_pipeline_waits() -> None:
    """Undo ``install_pipeline_waits``."""
    schedules._wait_batch_p2p = _wait_batch_p2p

"""Reads the device's own clock at marks."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch

__all__ = ["CpuStopwatch", "CudaStopwatch", "Stopwatch", "stopwatch_for"]


class Stopwatch(Protocol):
    """Attributes: clock, what the times are read from."""

    clock: str

    def laps(self, run: Callable[[Callable[[], None]], None]) -> list[int]:
        """Calls ``run(mark)``, which marks moments; nanoseconds between them, at least 1 each."""


class CpuStopwatch:
    """CPU time of the calling thread: what other processes take from it does not count.

    Right for torch with one thread alone, as CPU ranks run here.
    """

    clock = "CPU time of one thread"

    def laps(self, run: Callable[[Callable[[], None]], None]) -> list[int]:
        """See ``Stopwatch``."""
        moments: list[int] = []
        run(lambda: moments.append(time.thread_time_ns()))
        return [max(stop - start, 1) for start, stop in pairwise(moments)]


class CudaStopwatch:
    """CUDA events on the current stream: time between them, gaps in which the device waits for the host included."""

    clock = "CUDA events"

    def laps(self, run: Callable[[Callable[[], None]], None]) -> list[int]:
        """See ``Stopwatch``; waits for the device before and after."""
        events: list[torch.cuda.Event] = []

        def mark() -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            events.append(event)

        torch.cuda.synchronize()
        run(mark)
        torch.cuda.synchronize()
        return [max(round(start.elapsed_time(stop) * 1e6), 1) for start, stop in pairwise(events)]


def stopwatch_for(device: torch.device) -> Stopwatch:
    """The device's."""
    return CudaStopwatch() if device.type == "cuda" else CpuStopwatch()

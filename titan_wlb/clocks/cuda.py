"""The clock of a CUDA rank. Written from torch 2.13's documentation and sources; tested with a stand-in for events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from titan_wlb.clocks.timeline import StepClock


class CudaClock(StepClock):
    """Events on the current stream, from a pool; queried after the step, never synchronised within one.

    Waits and marks must be made on the compute stream, on whatever thread (backward runs on autograd's). Times are the
    stream's: a wait that lies hidden behind queued work costs nothing, and launch gaps of the host are compute.

    Args:
        new_event: makes an event with record(), query(), synchronize() and elapsed_time(event) -> ms.
        is_capturing: whether the current stream is being captured into a CUDA graph, which events would not survive.
    """

    device_type = "cuda"

    def __init__(
        self,
        new_event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True),
        is_capturing: Callable[[], bool] = torch.cuda.is_current_stream_capturing,
    ):
        super().__init__()
        self._new_event, self._is_capturing = new_event, is_capturing
        self._pool: list[Any] = []

    def _now(self) -> Any:
        if self._is_capturing():
            raise RuntimeError("the clock's events cannot be captured into a CUDA graph: compile without CUDA graphs")
        event = self._pool.pop() if self._pool else self._new_event()
        event.record()
        return event

    def _between(self, moment: Any, until: Any, waiting: bool) -> tuple[float, float, float]:
        return moment.elapsed_time(until), 0.0, 0.0

    def _is_done(self, cuts: list[Any]) -> bool:
        return all(event.query() for event, _, _ in reversed(cuts))

    def _finish(self, cuts: list[Any]) -> None:
        for event, _, _ in reversed(cuts):
            event.synchronize()

    def _release(self, cuts: list[Any]) -> None:
        self._pool += [event for event, _, _ in cuts]

"""Marks and waits of this rank's step: ``timeline`` has the interface, ``cpu`` and ``cuda`` read the time."""

from __future__ import annotations

import torch

from titan_wlb.clocks.cpu import CpuClock
from titan_wlb.clocks.cuda import CudaClock
from titan_wlb.clocks.timeline import NullClock, StepClock

__all__ = ["CpuClock", "CudaClock", "NullClock", "StepClock", "build_clock"]


def build_clock(device: torch.device | str) -> StepClock:
    """The clock of a rank that trains on ``device``."""
    return CudaClock() if torch.device(device).type == "cuda" else CpuClock()

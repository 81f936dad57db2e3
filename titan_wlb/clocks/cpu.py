"""The clock of a CPU rank."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from typing import Any

from titan_wlb.clocks.timeline import StepClock


class CpuClock(StepClock):
    """Host clocks of the thread that calls ``begin``: wall time, its CPU time and its delay on the run queue.

    Starved is the run-queue delay from the kernel, also where a wait lasts longer because its thread wakes up late.
    Where the kernel does not tell it, starved is wall - CPU time outside of waits, which counts sleep too
    (``knows_run_delay`` says which). Needs OMP_NUM_THREADS=1: the main thread's wait for helpers would be blocked.
    """

    device_type = "cpu"

    def __init__(self) -> None:
        super().__init__()
        self._thread = -1
        self._schedstat = -1
        self._last_cuts: list[Any] = []
        self.knows_run_delay = True

    def intervals(self) -> list[tuple[int, int, str]]:
        """The last step as (start, stop, category), in ns of ``time.perf_counter_ns``, with "compute" as category.

        Processes of one machine share this clock. Starved is not told apart here.
        """
        return [
            (moment[0], until[0], wait.category if wait else "compute")
            for (moment, wait, _), (until, _, _) in pairwise(self._last_cuts)
        ]

    def _start(self) -> None:
        thread = threading.get_ident()
        if thread == self._thread:
            return
        self._thread = thread
        if self._schedstat >= 0:
            os.close(self._schedstat)
        try:
            self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self.knows_run_delay = False

    def _is_timing(self) -> bool:
        return self._timing and threading.get_ident() == self._thread

    def _now(self) -> tuple[int, int, int]:
        delay = int(os.pread(self._schedstat, 64, 0).split()[1]) if self.knows_run_delay else 0
        return time.perf_counter_ns(), time.thread_time_ns(), delay

    def _between(self, moment: Any, until: Any, waiting: bool) -> tuple[float, float, float]:
        wall, cpu, delay = (until[i] - moment[i] for i in range(3))
        wall, cpu, delay = wall / 1e6, cpu / 1e6, delay / 1e6
        if not self.knows_run_delay:
            return wall, 0.0 if waiting else max(wall - cpu, 0.0), 0.0
        return wall, delay, 0.0 if waiting else wall - cpu - delay

    def _release(self, cuts: list[Any]) -> None:
        self._last_cuts = cuts

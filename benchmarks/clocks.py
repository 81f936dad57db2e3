"""What a CPU rank's clock costs: python benchmarks/clocks.py

A mark and a wait note one and two moments; the end of a step takes their differences. See clocks.md for how many
moments a step has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from titan_wlb.clocks import CpuClock

STEPS = 300
MOMENTS = 100  # of a step


def main() -> None:
    """Prints medians over ``STEPS`` steps of ``MOMENTS`` moments each."""
    clock = CpuClock()

    def mark() -> None:
        clock.mark("F", 0, 0)

    def wait() -> None:
        with clock.wait("fsdp", collective=True):
            pass

    for name, action, moments in (("a mark", mark, 1), ("a wait", wait, 2)):
        inside, ends = zip(*(step(clock, action, MOMENTS // moments) for _ in range(STEPS)), strict=True)
        per_action = median(inside) / (MOMENTS // moments) / 1e3
        print(f"{name}: {per_action:.1f} us, and at the step's end {median(ends) / MOMENTS / 1e3:.1f} us per moment")


def step(clock: CpuClock, action: Callable[[], None], times: int) -> tuple[int, int]:
    """Nanoseconds of the actions, and of the step's end."""
    clock.begin(1)
    start = time.perf_counter_ns()
    for _ in range(times):
        action()
    stop = time.perf_counter_ns()
    clock.end()
    return stop - start, time.perf_counter_ns() - stop


if __name__ == "__main__":
    main()

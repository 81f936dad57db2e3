"""Picks a packer's knob on a sample: the best balance at no more than a given delay.

    outlier thresholds of the paper's packer, 1 to 4 queues, window 64

        first     48   40   32 ...   32 45   16 32 ...   32 40 51 ...      queues of equal ratio
        then      the best of them with one threshold moved, one more, or one fewer:
                  32 45  ->  28 45   36 45   32 41   32 49   32 45 54   45   32
        until     no step helps, down to 1 / 128 of the window, or the trials are used up

    balance tolerance of ``lookahead``, in millionths

        first     250   500   1000 ...   128000
        then      between the best and its neighbours, three times

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from titan_wlb.planning.packing.packer import Packer
from titan_wlb.planning.packing.trials import Sample, Tried, Tuned, tune

__all__ = ["Sample", "Tried", "Tuned", "tune_thresholds", "tune_tolerance"]

MAX_QUEUES = 4
MAX_EVALUATIONS = 72
TOLERANCES = (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000)  # millionths


def tune_thresholds(
    sample: Sample,
    make: Callable[[tuple[int, ...]], Packer],
    max_delay_iterations: float,
    *,
    max_evaluations: int = MAX_EVALUATIONS,
    on_try: Callable[[Tried[tuple[int, ...]]], None] | None = None,
) -> Tuned[tuple[int, ...]]:
    """The number of outlier queues, 1 to 4, and their thresholds, for the paper's packer.

    First queues that divide the lengths from a lowest threshold to the window in equal ratios, then the best ones with
    a threshold moved, added or removed, by ever smaller steps, as long as that helps.

    Args:
        make: a packer from thresholds in tokens.
        max_delay_iterations: the limit, in steps.
        max_evaluations: packers that are tried at most.
        on_try: hears of every trial.
    """

    def search(
        attempt: Callable[[tuple[int, ...]], Tried[tuple[int, ...]]],
        rank: Callable[[Tried[tuple[int, ...]]], tuple[float, ...]],
    ) -> None:
        window, left = sample.context_window, max_evaluations
        seen: dict[tuple[int, ...], Tried[tuple[int, ...]]] = {}

        def explore(candidates: Iterable[tuple[int, ...]]) -> None:
            nonlocal left
            for thresholds in candidates:
                if left and thresholds not in seen and _valid(thresholds, window):
                    seen[thresholds] = attempt(thresholds)
                    left -= 1

        def leaders() -> list[tuple[int, ...]]:
            """The best of each number of queues, of the two numbers that do best."""
            best = [min(group, key=rank) for group in _by_number_of_queues(seen.values())]
            return [one.knob for one in sorted(best, key=rank)[:2]]

        explore(equal_ratios(window))
        step = max(window // 16, 1)
        while left and step >= max(window // 128, 1):
            before = leaders()
            for thresholds in before:
                explore(neighbours(thresholds, window, step))
            if leaders() == before:
                step //= 2

    return tune(sample, make, search, max_delay_iterations, on_try)


def tune_tolerance(
    sample: Sample,
    make: Callable[[int], Packer],
    max_delay_iterations: float,
    *,
    on_try: Callable[[Tried[int]], None] | None = None,
) -> Tuned[int]:
    """The balance tolerance of ``lookahead``, in millionths: as a rule the least one whose delay is within the limit.

    Args:
        make: a packer from a tolerance in millionths.
        max_delay_iterations: the limit, in steps.
        on_try: hears of every trial; there are about a dozen.
    """

    def search(attempt: Callable[[int], Tried[int]], rank: Callable[[Tried[int]], tuple[float, ...]]) -> None:
        ladder = [attempt(tolerance) for tolerance in TOLERANCES]
        for _ in range(3):
            place = ladder.index(min(ladder, key=rank))
            around = ladder[max(place - 1, 0) : place + 2]
            between = [attempt((low.knob + high.knob) // 2) for low, high in pairwise(around)]
            ladder = sorted({one.knob: one for one in (*ladder, *between)}.values(), key=lambda one: one.knob)

    return tune(sample, make, search, max_delay_iterations, on_try)


def _valid(thresholds: Sequence[int], window: int) -> bool:
    rising = (0, *thresholds)
    return (
        1 <= len(thresholds) <= MAX_QUEUES
        and all(low < high for low, high in pairwise(rising))
        and (rising[-1] <= window)
    )


def equal_ratios(window: int) -> Iterable[tuple[int, ...]]:
    """Thresholds between whose queues lengths grow by one ratio, from a lowest threshold to the window."""
    for number in range(1, MAX_QUEUES + 1):
        for sixteenths in (12, 10, 8, 6, 4, 3, 2):
            low = window * sixteenths / 16
            yield tuple(_rounded(low * (16 / sixteenths) ** (queue / number), window) for queue in range(number))


def _by_number_of_queues(tried: Iterable[Tried[tuple[int, ...]]]) -> list[list[Tried[tuple[int, ...]]]]:
    groups: dict[int, list[Tried[tuple[int, ...]]]] = {}
    for one in tried:
        groups.setdefault(len(one.knob), []).append(one)
    return list(groups.values())


def _rounded(length: float, window: int) -> int:
    """To 1 / 256 of the window, so that powers that differ in their last bit give the same threshold."""
    unit = max(window // 256, 1)
    return max(round(length / unit) * unit, 1)


def neighbours(thresholds: tuple[int, ...], window: int, step: int) -> Iterable[tuple[int, ...]]:
    """One threshold moved by ``step``, one more in the middle of the largest gap, one fewer."""
    for place, threshold in enumerate(thresholds):
        for moved in (threshold - step, threshold + step):
            yield (*thresholds[:place], moved, *thresholds[place + 1 :])
    bounds = (*thresholds, window)
    gap = max(range(len(thresholds)), key=lambda place: bounds[place + 1] - bounds[place])
    yield (*thresholds[: gap + 1], (bounds[gap] + bounds[gap + 1]) // 2, *thresholds[gap + 1 :])
    for place in range(len(thresholds)):
        yield (*thresholds[:place], *thresholds[place + 1 :])

"""What the micro-batches of a pipeline should weigh, so that a step of given work takes the least time.

    1F1B, 4 ranks, 4 micro-batches           step time over that of equal ones
    1     1     1     1                      1
    0.72  1.20  1.12  0.96                   0.949

A light first micro-batch reaches the last stage early, a light last one shortens the way back, and heavy ones run in
the middle, where all ranks are busy. Under GPipe nothing is gained, nor under Interleaved1F1B with one round.

The step time is the longest of many sums of works, hence convex in them: its slope, which is how often a micro-batch's
forward and backward stand on the critical path, leads to the optimum, here to within two thousandths of it. Of the two
kinds of wires, the one that gains less counts, so that no shape helps on one and hurts on the other.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import fsum, sqrt

from titan_wlb.planning.timeline.events import WIRES, Event, events_of
from titan_wlb.planning.timeline.schedule import Schedule, build_schedule
from titan_wlb.planning.timeline.works import BACKWARD_OVER_FORWARD

_NUM_MOVES = 1000
_LEAST_TARGET = 0.05
_LEAST_GAIN = 0.005  # of the step time; for less, micro-batches stay equal


@lru_cache(maxsize=64)
def target_works(
    schedule: str,
    pp: int,
    num_micro_batches: int,
    *,
    virtual_stages: int | None = None,
    backward_over_forward: float = BACKWARD_OVER_FORWARD,
) -> tuple[float, ...]:
    """Works of a pipeline's micro-batches, in the order in which they run, with mean 1 (to four decimals).

    Args:
        schedule: one of ``SCHEDULES``.
        pp: pipeline ranks.
        num_micro_batches: of the pipeline in a step, N / DP.
        virtual_stages: as for ``build_schedule``.
        backward_over_forward: how much longer a backward takes.

    Raises:
        ValueError: torch cannot run this schedule with so many ranks and micro-batches.
    """
    runs = build_schedule(schedule, pp, num_micro_batches, virtual_stages)
    equal = [1.0] * num_micro_batches
    equal_times = [_critical_path(events_of(runs, wires), equal, backward_over_forward)[0] for wires in WIRES]
    works, best, best_time = equal, equal, 1.0
    for number in range(_NUM_MOVES):
        time, slope = _slowest(runs, works, equal_times, backward_over_forward)
        if time < best_time:
            best, best_time = works, time
        mean = fsum(slope) / num_micro_batches
        steepness = sqrt(fsum((value - mean) * (value - mean) for value in slope) / num_micro_batches)
        if steepness < 1e-9:
            break
        move = 0.3 / (1.0 + 0.12 * number) / steepness
        works = [max(work - move * (value - mean), _LEAST_TARGET) for work, value in zip(works, slope, strict=True)]
        total = fsum(works)
        works = [work * num_micro_batches / total for work in works]
    return tuple(round(work, 4) for work in (best if best_time <= 1.0 - _LEAST_GAIN else equal))


def _slowest(
    runs: Schedule, works: Sequence[float], equal_times: Sequence[float], backward_over_forward: float
) -> tuple[float, list[float]]:
    """(step time over that of equal works, its slopes), of the wires that gain less."""
    slowest, slopes = 0.0, [0.0]
    for wires, equal_time in zip(WIRES, equal_times, strict=True):
        time, counts = _critical_path(events_of(runs, wires), works, backward_over_forward)
        if time / equal_time > slowest:
            slowest, slopes = time / equal_time, [count / equal_time for count in counts]
    return slowest, slopes


def _critical_path(
    events: Sequence[Event], works: Sequence[float], backward_over_forward: float
) -> tuple[float, list[float]]:
    """(step time, per micro-batch how much it grows with the work), a stage's forward taking the work."""
    durations = {"F": works, "B": [work * backward_over_forward for work in works]}
    starts: list[float] = []
    ends: list[float] = []
    for (kind, _, micro_batch), travels, after in events:
        start = 0.0
        for place in after:
            if ends[place] > start:
                start = ends[place]
        starts.append(start)
        ends.append(start if travels else start + durations[kind][micro_batch])
    time = max(ends)
    counts = [0.0] * len(works)
    place = ends.index(time)
    while True:
        (kind, _, micro_batch), travels, after = events[place]
        if not travels:
            counts[micro_batch] += 1.0 if kind == "F" else backward_over_forward
        if not after:
            return time, counts
        place = next(before for before in after if ends[before] == starts[place])

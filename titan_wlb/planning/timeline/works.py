"""Step times from predicted works alone: every stage takes an equal share of a micro-batch, and transfers take no time.

    1F1B, 2 ranks, 2 micro-batches; a micro-batch of work 6 takes 1 + 2 on each rank, forward and backward

    works 6 6        step time 9           the bubble is one forward and one backward
    works 7.2 4.8    step time 8.8         the same work, 0.978 of that
    works 4.8 7.2    step time 9.2

Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.timeline.events import events_of
from titan_wlb.planning.timeline.schedule import Schedule, build_schedule

BACKWARD_OVER_FORWARD = 2.0  # of GEMMs; 3 where all activations are computed again

_ALL_ORDERS_UP_TO = 5  # micro-batches
_ALL_MOVES_UP_TO = 16
_MAX_ROUNDS = 16
_NO_LESS = 1 - 1e-9  # of a time: less than this is rounding


def step_times_of_works(
    schedule: Schedule,
    works: npt.NDArray[np.float64],
    *,
    backward_over_forward: float = BACKWARD_OVER_FORWARD,
    wires: str = "independent",
) -> npt.NDArray[np.float64]:
    """Step times of many candidates at once.

    Args:
        schedule: of as many micro-batches.
        works: forward and backward time of each micro-batch through the whole model, [candidates, micro-batches].
        backward_over_forward: how much longer a backward takes.
        wires: one of ``WIRES``.

    Returns:
        float64 [candidates], in the unit of the works.
    """
    assert works.shape[1] == schedule.num_micro_batches, "a work per micro-batch"
    forward = np.ascontiguousarray(works.T, dtype=np.float64) / ((1.0 + backward_over_forward) * schedule.num_stages)
    durations = {"F": forward, "B": forward * backward_over_forward}
    ends: list[npt.NDArray[np.float64]] = []
    for (kind, _, micro_batch), travels, after in events_of(schedule, wires):
        start = ends[after[0]] if after else np.zeros(len(works))
        for place in after[1:]:
            start = np.maximum(start, ends[place])
        ends.append(start if travels else start + durations[kind][micro_batch])
    slowest: npt.NDArray[np.float64] = np.maximum.reduce(ends)
    return slowest


def step_time_over_balanced(
    dealt: Sequence[Sequence[float]],
    schedule: str,
    pp: int,
    *,
    virtual_stages: int | None = None,
    backward_over_forward: float = BACKWARD_OVER_FORWARD,
    wires: str = "independent",
) -> float:
    """A step's time over that of the same work spread equally over all micro-batches; below 1 is possible.

    Args:
        dealt: per DP rank the works of its micro-batches, in the order in which it runs them; equally many for each.
        schedule: one of ``SCHEDULES``.
        pp: pipeline ranks.
        virtual_stages: as for ``build_schedule``.
        backward_over_forward: how much longer a backward takes.
        wires: one of ``WIRES``.

    Raises:
        ValueError: torch cannot run this schedule with so many ranks and micro-batches.
    """
    works = np.array(dealt, dtype=np.float64)
    runs = build_schedule(schedule, pp, works.shape[1], virtual_stages)
    mean = float(np.cumsum(works)[-1]) / works.size
    if not mean:
        return 1.0
    candidates = np.vstack([works, np.full((1, works.shape[1]), mean)])
    times = step_times_of_works(runs, candidates, backward_over_forward=backward_over_forward, wires=wires)
    return float(times[:-1].max() / times[-1])


def order_for_schedule(
    works: Sequence[float],
    schedule: str,
    pp: int,
    *,
    virtual_stages: int | None = None,
    backward_over_forward: float = BACKWARD_OVER_FORWARD,
) -> tuple[int, ...]:
    """In which order a pipeline runs given micro-batches in the least time: their places in ``works``.

    1F1B, 4 ranks, works 9 10 11 12    ->    10 12 11 9    the largest in the middle

    All orders are tried of up to five micro-batches. Of more, any one moves to another place or changes places with
    another (of more than 16, with a neighbour), starting from the best of a few orders, until nothing helps. The first
    found wins a tie.

    Args:
        works: forward and backward time of each micro-batch through the whole model.
        schedule, pp, virtual_stages, backward_over_forward: as for ``step_time_over_balanced``.

    Raises:
        ValueError: torch cannot run this schedule with so many ranks and micro-batches.
    """
    given = np.array(works, dtype=np.float64)
    runs = build_schedule(schedule, pp, len(works), virtual_stages)

    def times(orders: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return step_times_of_works(runs, given[orders], backward_over_forward=backward_over_forward)

    if len(given) <= _ALL_ORDERS_UP_TO:
        orders = np.array(list(permutations(range(len(given)))))
        return tuple(orders[_first_least(times(orders))].tolist())
    orders = _starts(given)
    found = times(orders)
    best = _first_least(found)
    moves = _moves(len(given))
    for _ in range(_MAX_ROUNDS):
        order, time = orders[best], found[best]
        orders = order[moves]
        found = times(orders)
        best = _first_least(found)
        if found[best] >= time * _NO_LESS:
            break
    return tuple(order.tolist())


def _first_least(times: npt.NDArray[np.float64]) -> int:
    """Where the first time stands that is not longer than the least, but for rounding."""
    return int(np.argmax(times * _NO_LESS <= times.min()))


def _moves(num: int) -> npt.NDArray[np.int64]:
    """Small changes of an order, [changes, places]."""
    moves = []
    for place, other in combinations(range(num), 2):
        if num <= _ALL_MOVES_UP_TO or other == place + 1:
            swapped = list(range(num))
            swapped[place], swapped[other] = other, place
            moves.append(swapped)
        if num <= _ALL_MOVES_UP_TO and other > place + 1:
            between = range(place + 1, other)
            moves.append([*range(place), other, place, *between, *range(other + 1, num)])
            moves.append([*range(place), *between, other, place, *range(other + 1, num)])
    return np.array(moves)


def _starts(works: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The order given, and for each place the one that rises to the largest work there and falls after it."""
    falling = np.argsort(-works, kind="stable").tolist()
    orders = [list(range(len(works)))]
    for before in range(len(works)):
        # Of the largest, every other one goes in front until there are enough; the rest goes behind.
        front = falling[1::2][:before]
        front += [place for place in falling[2::2][::-1] if place not in front][: before - len(front)]
        behind = [place for place in falling if place not in front]
        orders.append([*sorted(front, key=falling.index, reverse=True), *behind])
    return np.array(orders)

"""Micro-batches of equal work by the largest differencing method of Karmarkar and Karp; no document waits for balance.

    N = 2, costs 8 7 6 5 4

    every document begins as a partition of its own     (8,0) (7,0) (6,0) (5,0) (4,0)
    the two of largest spread become one, the heavy     (8,7)  spread 1
    side of one beside the light side of the other      (6,5)  spread 1
    and again                                           (8,7) + (4,0) -> (8, 11)  spread 3
    until one is left                                   (8,11) + (6,5) -> (14, 16)

Micro-batches may hold any number of documents. One that exceeds ``max_tokens`` after that gives its shortest documents
away, each to the micro-batch of least work that has room; what has room nowhere is left over and goes first in the
next step: it is given away last.

Source: Karmarkar and Karp 1982, as verl, slime and prime-rl balance the work of ranks; the hard cap is ours.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import NamedTuple

from titan_wlb.planning.packing.fixed_length import least_work_with_room
from titan_wlb.planning.packing.packer import Stream, Waiting, pack_drawing_until_filled, pieces
from titan_wlb.planning.plan import Document, Segment
from titan_wlb.planning.workload import Workload


class KarmarkarKarp:
    """Balances the work of N micro-batches without delay.

    Args:
        num_micro_batches: N.
        context_window: W, tokens.
        max_tokens: hard cap on a micro-batch's tokens, at least W.
        workload: what a document costs.
    """

    def __init__(self, num_micro_batches: int, context_window: int, max_tokens: int, workload: Workload) -> None:
        assert max_tokens >= context_window, "a piece must fit into an empty micro-batch"
        self.num_micro_batches = num_micro_batches
        self.context_window = context_window
        self.max_tokens = max_tokens
        self.workload = workload

    def empty(self) -> Waiting:
        """What waits before the first step: nothing."""
        return Waiting()

    def pack(self, waiting: Waiting, stream: Stream) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """N micro-batches of what was left over and the stream's next N x W tokens."""
        # One further draw brings at least N pieces, and differencing leaves no micro-batch empty that could be filled.
        tokens = self.num_micro_batches * self.context_window
        return pack_drawing_until_filled(self.pack_arrived, waiting, stream, tokens, max_extra_draws=1)

    def pack_arrived(self, waiting: Waiting, arrived: Sequence[Document]) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """N micro-batches of at most ``max_tokens`` tokens, and what is left over."""
        segments = [*waiting.left_over, *pieces(arrived, self.context_window)]
        num_left_over = len(waiting.left_over)
        sets = largest_differencing(
            [self.workload.cost(segment.length) for segment in segments], self.num_micro_batches
        )
        given_away: list[int] = []
        for members in sets:
            members.sort()
            given_away += self._give_away(segments, members, num_left_over)
        given_away.sort(
            key=lambda place: (0, place) if place < len(waiting.left_over) else (1, -segments[place].length)
        )
        micro_batches, left_over = least_work_with_room(
            [segments[place] for place in given_away],
            self.num_micro_batches,
            self.max_tokens,
            self.workload,
            [[segments[place] for place in members] for members in sets],
        )
        return list(map(tuple, micro_batches)), Waiting(tuple(left_over))

    def _give_away(self, segments: Sequence[Segment], members: list[int], num_left_over: int) -> list[int]:
        """The shortest of a micro-batch's segments, which leave it until the cap holds; what waited leaves last."""
        excess = sum(segments[place].length for place in members) - self.max_tokens
        order = sorted(members, key=lambda place: (place < num_left_over, segments[place].length, -place))
        count = 0
        while excess > 0:
            excess -= segments[order[count]].length
            count += 1
        leaving = set(order[:count])
        members[:] = [place for place in members if place not in leaving]
        return order[:count]


class _Set(NamedTuple):
    work: int
    size: int
    members: list[int]


def largest_differencing(costs: Sequence[int], num_sets: int) -> list[list[int]]:
    """Places of ``costs`` in ``num_sets`` sets of close sums, largest sum first.

    largest_differencing([8, 7, 6, 5, 4], 2)  ->  [[4, 1, 3], [2, 0]], in any order inside a set: sums 16 and 14

    No set is empty where there are as many costs as sets, zeros among them or not. Equal spreads go by what came
    earlier. O(n (log n + num_sets)).
    """
    # A partition is its sets that hold something, in ascending order. A step at most one set longer costs a bisection.
    partitions = [(-cost, place, [_Set(cost, 1, [place])]) for place, cost in enumerate(costs)]
    heapify(partitions)
    for number in range(len(costs), 2 * len(costs) - 1):
        _, _, wide = heappop(partitions)
        _, _, narrow = heappop(partitions)
        merged = _merge(wide, narrow, num_sets)
        spread = merged[-1].work - (merged[0].work if len(merged) == num_sets else 0)
        heappush(partitions, (-spread, number, merged))
    sets = [a_set.members for a_set in reversed(partitions[0][2])] if partitions else []
    return sets + [[] for _ in range(num_sets - len(sets))]


_ASCENDING = attrgetter("work", "size")  # a set of nothing but zeros comes behind an empty one


def _merge(wide: list[_Set], narrow: list[_Set], num_sets: int) -> list[_Set]:
    """The sets of both, the smallest ones of one joined with those of the other where they are too many."""
    if len(narrow) > len(wide):
        wide, narrow = narrow, wide
    too_many = max(len(wide) + len(narrow) - num_sets, 0)
    joined = [_join(wide[place], narrow[too_many - 1 - place]) for place in range(too_many)]
    added = joined + narrow[too_many:]
    del wide[:too_many]
    if len(added) * 8 < len(wide):
        for a_set in added:
            insort(wide, a_set, key=_ASCENDING)
        return wide
    return sorted(wide + added, key=_ASCENDING)


def _join(one: _Set, other: _Set) -> _Set:
    if len(one.members) < len(other.members):
        one, other = other, one
    one.members.extend(other.members)
    return _Set(one.work + other.work, one.size + other.size, one.members)

"""Whole documents of several global batches at once, into micro-batches of at most W tokens ("Fixed-4D").

    W = 10, N = 2, two global batches at once (packing_window = 2), a document of d tokens costs d^2

    arrive                A 9  B 6  C 5  D 5  E 4  F 4  G 4  H 3      40 tokens for four micro-batches of 10
    longest first, each   A 9 | B 6 | C 5 | D 5
    to the least work     A 9 | B 6 | C 5, E 4 | D 5, F 4             E and F join the 25 of C and of D
    that has room         A 9 | B 6, G 4 | C 5, E 4 | D 5, F 4        C and D have less work than B, but no room
    step 1 runs           [A] [B G]        work 81 and 52: like work shares a step
    step 2 runs           [C E] [D F]      work 41 and 41, which wait until then
    left over             H 3              goes first in step 3, which draws 3 tokens less

One long document makes its micro-batch heavy whatever shares it, but among the micro-batches of several global batches
there are others as heavy. What that costs is order: documents wait for up to ``packing_window`` - 1 steps, and long
ones come in the same step.

Source: paper, section 2 and Table 2. It says how documents reach the micro-batches; which micro-batches share a step
(those of like work, heaviest first) is ours, and so is counting all work and not only attention's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush, heapreplace

from titan_wlb.planning.packing.packer import Stream, Waiting, pieces
from titan_wlb.planning.plan import Segment
from titan_wlb.planning.workload import Workload


class FixedLength:
    """Packs ``packing_window`` global batches every ``packing_window`` steps and hands out N micro-batches a step.

    What waits: the left-over, and in ``Waiting.queues`` the micro-batches of the steps to come.

    Args:
        num_micro_batches: N.
        context_window: W, tokens; also the cap on a micro-batch.
        packing_window: global batches that are packed together.
        workload: what a document costs.
    """

    def __init__(self, num_micro_batches: int, context_window: int, packing_window: int, workload: Workload) -> None:
        self.num_micro_batches = num_micro_batches
        self.context_window = context_window
        self.packing_window = packing_window
        self.workload = workload

    def empty(self) -> Waiting:
        """What waits before the first step: nothing."""
        return Waiting()

    def pack(self, waiting: Waiting, stream: Stream) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """N micro-batches that were packed before, or the first N of a new window's."""
        if not waiting.queues:
            waiting = self._pack_window(waiting.left_over, stream)
        count = self.num_micro_batches
        return list(waiting.queues[:count]), Waiting(waiting.left_over, waiting.queues[count:])

    def assign(self, segments: Sequence[Segment], num_micro_batches: int) -> tuple[list[list[Segment]], list[Segment]]:
        """(micro-batches of at most W tokens, left over)."""
        return least_work_with_room(segments, num_micro_batches, self.context_window, self.workload)

    def _pack_window(self, left_over: Sequence[Segment], stream: Stream) -> Waiting:
        """The micro-batches of the next ``packing_window`` steps, of fewer where the data ends."""
        capacity = self.packing_window * self.num_micro_batches * self.context_window
        segments = self._draw(left_over, stream, capacity)
        steps = self.packing_window
        if stream.exhausted:  # the fewest steps, so that none of them is nearly empty
            tokens = sum(segment.length for segment in segments)
            steps = max(1, min(steps, -(-tokens * steps // capacity), -(-len(segments) // self.num_micro_batches)))
        micro_batches, left_over = self.assign(segments, steps * self.num_micro_batches)
        micro_batches.sort(key=lambda micro_batch: -self.workload.costs(segment.length for segment in micro_batch))
        return Waiting(tuple(left_over), tuple(map(tuple, micro_batches)))

    def _draw(self, left_over: Sequence[Segment], stream: Stream, capacity: int) -> list[Segment]:
        """What was left over and, longest first, what arrives to fill the capacity with it."""
        arrived = stream.draw(max(capacity - sum(segment.length for segment in left_over), 0))
        new = list(pieces(arrived, self.context_window))
        if len(left_over) + len(new) < self.packing_window * self.num_micro_batches:
            # a document that overshot the goal came before: as many tokens as fill the window are enough pieces
            new += pieces(stream.draw_more(capacity), self.context_window)
        new.sort(key=lambda segment: -segment.length)
        return [*left_over, *new]


def least_work_with_room(
    segments: Iterable[Segment],
    num_micro_batches: int,
    max_tokens: int,
    workload: Workload,
    micro_batches: Sequence[Sequence[Segment]] = (),
    weights: Sequence[int] = (),
) -> tuple[list[list[Segment]], list[Segment]]:
    """One after the other into the micro-batch of least work among those with room: (micro-batches, left over).

    Ties go to the micro-batch of fewer tokens, then of lower number, so that the first N segments fill N micro-batches.

    Args:
        micro_batches: what they hold already; nothing by default.
        weights: that a micro-batch's work counts with; all the same by default.
    """
    filled = [list(micro_batch) for micro_batch in micro_batches] or [[] for _ in range(num_micro_batches)]
    lengths = [[segment.length for segment in micro_batch] for micro_batch in filled]
    weights = weights or [1] * num_micro_batches
    by_work = [(workload.costs(held) * weights[place], sum(held), place) for place, held in enumerate(lengths)]
    heapify(by_work)
    # Those that had no room when last looked at, the one with most room on top. Where documents come longest first, a
    # micro-batch that has come back from here has room for all that follow until it gets one of them.
    by_tokens: list[tuple[int, int, int]] = []
    left_over = []
    for segment in segments:
        at_most = max_tokens - segment.length
        while by_tokens and by_tokens[0][0] <= at_most:
            tokens, work, place = heappop(by_tokens)
            heappush(by_work, (work, tokens, place))
        while by_work and by_work[0][1] > at_most:
            work, tokens, place = heappop(by_work)
            heappush(by_tokens, (tokens, work, place))
        if by_work:
            work, tokens, place = by_work[0]
            filled[place].append(segment)
            cost = workload.cost(segment.length) * weights[place]
            heapreplace(by_work, (work + cost, tokens + segment.length, place))
        else:
            left_over.append(segment)
    return filled, left_over

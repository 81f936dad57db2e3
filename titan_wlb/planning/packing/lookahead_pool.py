"""The documents at hand, long and short apart.

    W = 16    waiting  A 12      arrived  B 5, C 2, D 7, E 2

    outliers  A 12, D 7, B 5     from a quarter of the window on, longest first
    short     C 2, E 2           in bulk 4 tokens

What is due counts as long, too, so that it is placed before what only fills micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter

from titan_wlb.planning.packing.lookahead_group import Fluid, Item
from titan_wlb.planning.packing.packer import pieces
from titan_wlb.planning.plan import Document, Segment
from titan_wlb.planning.workload import Workload

_LENGTH = itemgetter(0)  # of an item


class Pool:
    """Documents at hand.

    Args:
        segments: that wait from earlier steps.
        context_window: W, tokens.
        workload: what a document costs.

    Attributes:
        shortest: length from which on a document is long, tokens: a quarter of the window.
        segments: all of them, as they came.
        outliers: the long ones, longest first.
        short: the others, longest first.
        shorts: these in bulk.
        num_tokens: of all.
    """

    def __init__(self, segments: Sequence[Segment], context_window: int, workload: Workload) -> None:
        self._context_window, self._workload = context_window, workload
        self.shortest = max(1, context_window // 4)
        self.segments: list[Segment] = []
        self.outliers: list[Item] = []
        self.short: list[Item] = []
        self.num_tokens = 0
        self._lengths: list[int] = []
        self._add(segments)

    def add(self, documents: Iterable[Document]) -> None:
        """Takes up documents that were drawn."""
        self._add(pieces(documents, self._context_window))

    def make_long(self, due: int) -> None:
        """Counts as long what arrived in step ``due`` or before it: it is placed before what fills micro-batches."""
        late = [item for item in self.short if item.arrival <= due]
        if late:
            self.outliers = sorted([*self.outliers, *late], key=_LENGTH, reverse=True)
            self.short = [item for item in self.short if item.arrival > due]
            self._count_shorts()

    def take(self, micro_batches: Sequence[Sequence[Item]]) -> tuple[list[tuple[Segment, ...]], list[Segment]]:
        """(segments of the micro-batches, those left, as they came): of equal ones the earlier are taken."""
        taken = {item.place for items in micro_batches for item in items}
        lengths = self._lengths
        left_lengths = {length for place, length in enumerate(lengths) if place not in taken}
        earliest: dict[int, list[int]] = {length: [] for length in left_lengths}
        for place in range(len(lengths) - 1, -1, -1):
            if lengths[place] in left_lengths:
                earliest[lengths[place]].append(place)
        places = [
            [earliest[item.length].pop() if item.length in left_lengths else item.place for item in items]
            for items in micro_batches
        ]
        taken = {place for part in places for place in part}
        left = [segment for place, segment in enumerate(self.segments) if place not in taken]
        return [tuple([self.segments[place] for place in part]) for part in places], left

    def _add(self, segments: Iterable[Segment]) -> None:
        first = len(self.segments)
        self.segments += segments
        added = self.segments[first:]
        lengths = [segment.stop - segment.start for segment in added]
        self._lengths += lengths
        # work of at least 1, so that the least work is never that of a full micro-batch
        works = [max(1, cost) for cost in map(self._workload.cost, lengths)]
        arrivals = [segment.document.arrival for segment in added]
        new = list(map(Item._make, zip(lengths, works, range(first, len(self.segments)), arrivals, strict=True)))
        new.sort(key=_LENGTH, reverse=True)
        num_long = sum([item.length >= self.shortest for item in new])
        self.outliers = sorted([*self.outliers, *new[:num_long]], key=_LENGTH, reverse=True)
        self.short = sorted([*self.short, *new[num_long:]], key=_LENGTH, reverse=True)
        self.num_tokens += sum(lengths)
        self._count_shorts()

    def _count_shorts(self) -> None:
        tokens, work = sum([item.length for item in self.short]), sum([item.work for item in self.short])
        if not tokens:  # as dense as a typical one would be
            tokens = max(1, self.shortest // 4)
            work = self._workload.cost(tokens)
        self.shorts = Fluid(sum([item.length for item in self.short]), max(work, 1) / tokens)


def newest_left_out(items: Sequence[Item], tokens: int) -> list[Item]:
    """Items of at least ``tokens`` tokens in all, in their order: of what is too much, the newest wait."""
    excess = sum([item.length for item in items]) - tokens
    left_out = set()
    for item in sorted(items, key=lambda item: -item.place):
        if item.length <= excess:
            excess -= item.length
            left_out.add(item.place)
    return [item for item in items if item.place not in left_out]

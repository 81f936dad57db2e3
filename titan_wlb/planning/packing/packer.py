"""What every packer is: a pure function from documents to N micro-batches and what waits for the next step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.plan import Document, Segment

PACKERS = ("original", "variable_length")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Segments that were drawn but not trained yet.

    Args:
        left_over: what found no room, in the order in which it goes first in the next step.
        queues: per outlier threshold the outliers that wait to be N, oldest first.
    """

    left_over: tuple[Segment, ...] = ()
    queues: tuple[tuple[Segment, ...], ...] = ()

    def __iter__(self) -> Iterator[Segment]:
        """Every segment that waits."""
        yield from self.left_over
        for queue in self.queues:
            yield from queue

    def to_json(self) -> list[list[list[int]]]:
        """[left over, queue 1, queue 2, ...], each a list of [id, start, stop, arrival, epoch]."""
        return [[_to_json(segment) for segment in segments] for segments in (self.left_over, *self.queues)]

    @classmethod
    def from_json(cls, values: Sequence[Sequence[Sequence[int]]], lengths: npt.NDArray[np.int64]) -> Waiting:
        """What ``to_json`` gave; ``lengths`` by document id, in tokens."""
        left_over, *queues = (tuple(_from_json(entry, lengths) for entry in segments) for segments in values)
        return cls(left_over, tuple(queues))


class Packer(Protocol):
    """Packs the documents of one step.

    Attributes:
        max_extra_draws: how many further global batches the intake must draw into a step, at most, until no micro-batch
            of it is empty.
    """

    max_extra_draws: int

    def empty(self) -> Waiting:
        """What waits before the first step."""

    def pack(self, waiting: Waiting, arrived: Sequence[Document]) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """N micro-batches and what waits after them; a micro-batch is empty where there are too few documents."""


def pieces(documents: Iterable[Document], context_window: int) -> Iterator[Segment]:
    """Whole documents, and those longer than the context window as pieces of at most that many tokens.

    pieces([9 tokens, 2 tokens], context_window=4)  ->  [0, 4) [4, 8) [8, 9)   [0, 2)
    """
    for document in documents:
        for start in range(0, document.length, context_window):
            yield Segment(document, start, min(start + context_window, document.length))


def _to_json(segment: Segment) -> list[int]:
    return [segment.document.id, segment.start, segment.stop, segment.document.arrival, segment.document.epoch]


def _from_json(entry: Sequence[int], lengths: npt.NDArray[np.int64]) -> Segment:
    id, start, stop, arrival, epoch = entry
    return Segment(Document(id, int(lengths[id]), arrival, epoch), start, stop)

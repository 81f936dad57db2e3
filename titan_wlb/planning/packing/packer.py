"""What every packer is: from a stream of documents and what waits, N micro-batches and what waits after them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.plan import Document, Segment

PACKERS = ("original", "variable_length", "lookahead", "fixed_length", "karmarkar_karp", "solver")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Segments that were drawn but not trained yet.

    Args:
        left_over: what found no room, in the order in which it goes first in the next step.
        queues: per outlier threshold the outliers that wait to be N, oldest first; of ``fixed_length`` and ``solver``
            the micro-batches that run in the next steps.
    """

    left_over: tuple[Segment, ...] = ()
    queues: tuple[tuple[Segment, ...], ...] = ()

    def __iter__(self) -> Iterator[Segment]:
        """Every segment that waits."""
        yield from self.left_over
        for queue in self.queues:
            yield from queue

    def to_json(self) -> list[list[list[int]]]:
        """[left over, queue 1, queue 2, ...], each a list of [id, length, start, stop, arrival, epoch]."""
        return [[_to_json(segment) for segment in segments] for segments in (self.left_over, *self.queues)]

    @classmethod
    def from_json(cls, values: Sequence[Sequence[Sequence[int]]]) -> Waiting:
        """What ``to_json`` gave."""
        left_over, *queues = (tuple(map(_from_json, segments)) for segments in values)
        return cls(left_over, tuple(queues))


class Stream(Protocol):
    """Documents as they arrive, the planner's intake.

    Attributes:
        step: that is packed, from 1; what is drawn arrives in it.
        exhausted: whether there is no further document: where data is finite, what waits has to be trained now.
    """

    step: int

    @property
    def exhausted(self) -> bool: ...

    def draw(self, tokens: int) -> list[Document]:
        """The next documents, until the tokens asked for since the first step are reached; none once they are."""

    def draw_more(self, tokens: int) -> list[Document]:
        """The next documents with at least ``tokens`` tokens, beside those asked for so far."""

    def peek(self, tokens: int) -> npt.NDArray[np.int64]:
        """Lengths of the next documents that make up ``tokens``, not drawn by that."""


class Packer(Protocol):
    """Packs the documents of one step."""

    def empty(self) -> Waiting:
        """What waits before the first step."""

    def pack(self, waiting: Waiting, stream: Stream) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """N micro-batches and what waits after them; a micro-batch is empty only where the stream is exhausted."""


def pack_drawing_until_filled(
    pack: Callable[[Waiting, Sequence[Document]], tuple[list[tuple[Segment, ...]], Waiting]],
    waiting: Waiting,
    stream: Stream,
    tokens: int,
    max_extra_draws: int,
) -> tuple[list[tuple[Segment, ...]], Waiting]:
    """The paper's intake: a global batch a step. Where all its documents wait, further ones join the step.

    Args:
        pack: packs what waits with what arrived.
        tokens: of a global batch, N x W.
        max_extra_draws: how many further global batches it takes at most until no micro-batch is empty.
    """
    arrived = stream.draw(tokens)
    packed = pack(waiting, arrived)
    for _ in range(max_extra_draws):
        if all(packed[0]) or stream.exhausted:
            break
        arrived += stream.draw_more(tokens)
        packed = pack(waiting, arrived)
    return packed


def pieces(documents: Iterable[Document], context_window: int) -> Iterator[Segment]:
    """Whole documents, and those longer than the context window as pieces of at most that many tokens.

    pieces([9 tokens, 2 tokens], context_window=4)  ->  [0, 4) [4, 8) [8, 9)   [0, 2)
    """
    for document in documents:
        if document.length <= context_window:  # nearly all, and a large step has tens of thousands
            yield Segment(document, 0, document.length)
            continue
        for start in range(0, document.length, context_window):
            yield Segment(document, start, min(start + context_window, document.length))


def _to_json(segment: Segment) -> list[int]:
    document = segment.document
    return [document.id, document.length, segment.start, segment.stop, document.arrival, document.epoch]


def _from_json(entry: Sequence[int]) -> Segment:
    id, length, start, stop, arrival, epoch = entry
    return Segment(Document(id, length, arrival, epoch), start, stop)

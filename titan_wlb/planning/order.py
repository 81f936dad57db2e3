"""In which order documents are drawn.

index of two segments, [0 1 2 3] and [4 5 6]

    EpochOrder    2 0 3 1 | 6 4 5    epoch 0: segment by segment, shuffled inside each
                  5 4 6 | 1 3 0 2    epoch 1: the segments are all known now, and are shuffled, too
                  ...                without end
    InOrder       0 1 2 3 4 5 6      as they lie there, once

The order of the first epoch follows the segments, so that training begins with the first one while the others are
tokenised, and never depends on how fast that goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.lengths import IndexSegment, LengthSource
from titan_wlb.planning.shuffle import Shuffle

BLOCK = 4096  # documents whose places are computed at once


class Position(NamedTuple):
    """Where an order stands.

    Args:
        epoch: from 0.
        place: of the segment in the epoch's order of segments, from 0.
        offset: documents of it that lie behind.
    """

    epoch: int = 0
    place: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Documents that follow one another in an order, all of one segment.

    Args:
        position: of the first.
        ids: int64 [documents], at least one.
        lengths: tokens of each, int64 [documents].
    """

    position: Position
    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @property
    def end(self) -> Position:
        """Behind the last document."""
        return self.position._replace(offset=self.position.offset + len(self.ids))


class Order(Protocol):
    """Documents, one behind the other."""

    def block(self, position: Position) -> Block | None:
        """Documents from ``position`` on; waits for the index where it still grows. None at the end of the data."""


class EpochOrder:
    """Shuffled epochs without end.

    Args:
        source: of the lengths.
        seed: of the order.
    """

    def __init__(self, source: LengthSource, seed: int) -> None:
        self._source, self._seed = source, seed
        self._segment: tuple[int, IndexSegment, npt.NDArray[np.int64]] | None = None  # number, itself, lengths
        self._shuffle: tuple[tuple[int, int], Shuffle] | None = None  # of (epoch, number)
        self._num_segments = 0  # 0 until it is known, which is at the end of the first epoch

    def block(self, position: Position) -> Block:
        """As ``Order``; there is always a next document.

        Raises:
            ValueError: the index holds no document at all.
        """
        while True:
            number = self._number(position)
            segment = None if number is None else self._source.segment(number)
            if number is None or segment is None:
                position = self._next_epoch(position)
            elif position.offset >= segment.num_documents:
                position = Position(position.epoch, position.place + 1)
            else:
                return self._read(position, number, segment)

    def _number(self, position: Position) -> int | None:
        """Which segment stands at a place of the epoch; None behind the last."""
        if position.epoch == 0:
            return position.place  # whether it is the last is not known yet
        num_segments = self._count_segments()
        if position.place >= num_segments:
            return None
        return int(Shuffle(num_segments, self._seed, position.epoch).ids(position.place, position.place + 1)[0])

    def _next_epoch(self, position: Position) -> Position:
        if not any(self._documents_in(number) for number in range(self._count_segments())):
            raise ValueError("the document index is empty: there is nothing to train on")
        return Position(position.epoch + 1)

    def _count_segments(self) -> int:
        while self._source.segment(self._num_segments) is not None:
            self._num_segments += 1
        return self._num_segments

    def _documents_in(self, number: int) -> int:
        segment = self._source.segment(number)
        return 0 if segment is None else segment.num_documents

    def _read(self, position: Position, number: int, segment: IndexSegment) -> Block:
        if self._segment is None or self._segment[0] != number:
            self._segment = number, segment, segment.lengths()
        key = position.epoch, number
        if self._shuffle is None or self._shuffle[0] != key:
            self._shuffle = key, Shuffle(segment.num_documents, self._seed, *key)
        ids = self._shuffle[1].ids(position.offset, min(position.offset + BLOCK, segment.num_documents))
        return Block(position, segment.first_id + ids, self._segment[2][ids])


class InOrder:
    """Documents as they lie in the index, once.

    Args:
        source: of the lengths.
    """

    def __init__(self, source: LengthSource) -> None:
        self._source = source

    def block(self, position: Position) -> Block | None:
        """As ``Order``."""
        while (segment := self._source.segment(position.place)) is not None:
            ids = np.arange(position.offset, min(position.offset + BLOCK, segment.num_documents))
            if len(ids):
                return Block(position, segment.first_id + ids, segment.lengths()[ids])
            position = Position(0, position.place + 1)
        return None

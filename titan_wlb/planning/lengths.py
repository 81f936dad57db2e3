"""Where a planner reads lengths: documents in segments, one behind the other, which may still grow while it plans.

    segment 0    documents 0 1 2 3      complete before the first step
    segment 1    documents 4 5 6        written while the first is trained: asking for it waits until it is there
    segment 2    None                   there is none: the corpus ends

A segment never changes once it is there, so that what is planned does not depend on how fast segments appear.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.digest import digest_of_values


class IndexSegment(Protocol):
    """Consecutive documents of an index.

    Attributes:
        first_id: of its first document; the others follow.
        num_documents: how many; may be 0.
        fingerprint: equal if and only if the lengths are, and what else the index tells apart.
    """

    @property
    def first_id(self) -> int: ...
    @property
    def num_documents(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, BOS and EOS included, int64 [num_documents], each at least 1."""


class LengthSource(Protocol):
    """An index, as far as a planner sees it."""

    def segment(self, number: int) -> IndexSegment | None:
        """The segment of this number, from 0; waits until it is there. None where the corpus ends before it."""


class _Known:
    """A segment in memory."""

    def __init__(self, first_id: int, lengths: npt.NDArray[np.int64], fingerprint: str) -> None:
        self.first_id, self.num_documents, self._lengths = first_id, len(lengths), lengths
        digest = blake2b(fingerprint.encode(), digest_size=16)
        digest.update(lengths.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    def lengths(self) -> npt.NDArray[np.int64]:
        return self._lengths


class KnownLengths:
    """Lengths in memory, all of them known.

    Args:
        segments: per segment the tokens of its documents, each at least 1.
        fingerprint: of the documents' content, where lengths do not tell enough.

    Raises:
        ValueError: a document has no token.
    """

    def __init__(self, *segments: Sequence[int] | npt.NDArray[np.int64], fingerprint: str = "") -> None:
        arrays = [np.asarray(lengths, dtype=np.int64) for lengths in segments]
        first_ids = accumulate(map(len, arrays), initial=0)
        self._segments = [_Known(*place, fingerprint) for place in zip(first_ids, arrays, strict=False)]
        for segment in self._segments:
            check_lengths(segment.lengths(), segment.first_id)

    def segment(self, number: int) -> IndexSegment | None:
        """As ``LengthSource``; never waits."""
        return self._segments[number] if number < len(self._segments) else None


def check_lengths(lengths: npt.NDArray[np.int64], first_id: int = 0) -> None:
    """ValueError where a document has no token."""
    if len(lengths) and lengths.min() < 1:
        raise ValueError(
            f"document {first_id + int(lengths.argmin())} of the index has no token; each must have at least 1"
        )


class FirstSegments:
    """The first segments of an index, as if there were no more.

    Args:
        source: the index.
        number: of segments.
    """

    def __init__(self, source: LengthSource, number: int) -> None:
        self._source, self._number = source, number

    def segment(self, number: int) -> IndexSegment | None:
        """As ``LengthSource``."""
        return self._source.segment(number) if number < self._number else None


class OpenedSegments:
    """An index, and what was seen of it so far.

    Args:
        source: the index.

    Attributes:
        number: of segments opened so far, one after the other from the first.
        digest: of their documents.
    """

    def __init__(self, source: LengthSource) -> None:
        self._source = source
        self.number = 0
        self.digest = ""

    def segment(self, number: int) -> IndexSegment | None:
        """As ``LengthSource``."""
        segment = self._source.segment(number)
        if segment is not None and number == self.number:
            self.number += 1
            self.digest = digest_of_values(self.digest, segment.num_documents, segment.fingerprint)
        return segment

"""Documents as tokens on the disk: lengths to plan with, tokens to read when their turn comes.

    <folder>/segment-00000/meta.json   what it holds, its checksum, how many documents were skipped so far and why
    <folder>/segment-00000/offsets     little-endian int64, where each document starts, and where the last one ends
    <folder>/segment-00000/tokens      little-endian uint16 (vocabularies up to 65,536) or uint32, document by document
    <folder>/segment-00001/...         the next; a document's id is its place in all of them

A segment appears as a whole and never changes. The index may grow while it is read: the planner asks for segments by
number, and waits for one that is not there yet. Both files are memory-mapped, so that the ranks of a machine share what
they read.
"""

from __future__ import annotations

import json
import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from titan_wlb.data.once import DamagedError

FORMAT = 2
META, OFFSETS, TOKENS = "meta.json", "offsets", "tokens"
OFFSET_DTYPE = np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class SegmentMeta:
    """What meta.json holds.

    Args:
        corpus: its name, for messages.
        vocab_size: tokens lie in [0, vocab_size).
        documents: in this segment.
        tokens: in this segment.
        offsets_crc32: of the file.
        fingerprint: hash of the segment's lengths and tokens, hexadecimal.
        read: documents of the corpus up to the segment's end, bad ones included: where the next one goes on.
        skipped: bad documents up to the segment's end, which have no id.
        skipped_examples: origin and reason of the first ones.
        is_last: whether the corpus ends here.
    """

    corpus: str
    vocab_size: int
    documents: int
    tokens: int
    offsets_crc32: int
    fingerprint: str
    read: int
    skipped: int
    skipped_examples: tuple[str, ...]
    is_last: bool

    def to_json(self) -> str:
        """Text of meta.json, its own checksum included."""
        body = json.dumps(asdict(self), indent=1)
        return json.dumps({"format": FORMAT, "crc32": zlib.crc32(body.encode()), "body": json.loads(body)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> SegmentMeta:
        """Inverse of ``to_json``; any exception of json or a dict where it is none, ValueError on a wrong checksum."""
        stored = json.loads(text)
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']} instead of {FORMAT}")
        body = dict(stored["body"])
        if zlib.crc32(json.dumps(body, indent=1).encode()) != stored["crc32"]:
            raise ValueError("its checksum is wrong")
        return cls(**body | {"skipped_examples": tuple(body["skipped_examples"])})


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """How a token lies on the disk."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """An open segment: an ``IndexSegment`` for planners, and its tokens.

    Args:
        folder: where it lies.
        meta: what it says of itself.
        first_id: of its first document.
        offsets: int64 [documents + 1], mapped.
        values: its tokens, document by document, mapped.
    """

    folder: Path
    meta: SegmentMeta
    first_id: int
    offsets: np.ndarray
    values: np.ndarray

    @property
    def num_documents(self) -> int:
        """How many; 0 where behind a full segment only bad documents followed."""
        return self.meta.documents

    @property
    def fingerprint(self) -> str:
        """Equal if and only if lengths and tokens are, wherever and from whatever files it was built."""
        return self.meta.fingerprint

    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [documents]."""
        return np.diff(self.offsets).astype(np.int64)

    def tokens(self, document: int, start: int, stop: int | None) -> np.ndarray:
        """As ``Index.tokens``."""
        first, end = (int(offset) for offset in self.offsets[document - self.first_id :][:2])
        stop = end - first if stop is None else stop
        assert 0 <= start <= stop <= end - first, (document, start, stop, end - first)
        tokens = self.values[first + start : first + stop]
        if len(tokens) and tokens.max() >= self.meta.vocab_size:
            raise ValueError(
                f"the index {self.folder} is damaged: document {document} holds token {tokens.max()} of a vocabulary "
                f"of {self.meta.vocab_size}; delete the folder and start again"
            )
        return tokens


class Index:
    """Open documents; the ``LengthSource`` of planners.

    Args:
        folder: where its segments lie.
        load: gives the segment of a number, whose first document has the id given; waits until it is there.

    Attributes:
        opened: segments opened so far, from the first on.
    """

    def __init__(self, folder: Path, load: Callable[[int, int], Segment]):
        self.folder = folder
        self.opened: list[Segment] = []
        self._load = load
        self._first_ids: list[int] = []
        self._lock = threading.Lock()  # planners and the closing table ask in different threads

    def segment(self, number: int) -> Segment | None:
        """The segment of a number; waits until it is there. None behind the last."""
        with self._lock:
            while number >= len(self.opened):
                if self.opened and self.opened[-1].meta.is_last:
                    return None
                first_id = self.opened[-1].first_id + self.opened[-1].num_documents if self.opened else 0
                segment = self._load(len(self.opened), first_id)
                self._first_ids.append(first_id)
                self.opened.append(segment)
            return self.opened[number]

    def segments(self) -> Iterator[Segment]:
        """All of them; waits for those that are not there yet."""
        for number in count():
            segment = self.segment(number)
            if segment is None:
                return
            yield segment

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens [start, stop) of a document of an opened segment, a view of the mapped file: uint16 or uint32.

        Raises:
            ValueError: a token lies outside the vocabulary: the file was damaged after it was written.
        """
        # Behind an empty segment several have the same first id: the last of them holds the document.
        return self.opened[bisect_right(self._first_ids, document) - 1].tokens(document, start, stop)


def open_index(folder: str | Path) -> Index:
    """Open an index that is complete; offsets are checked against their checksum, tokens by the size of their file.

    Raises:
        FileNotFoundError: there is none, or a part of it is missing.
        DamagedError: a ValueError; it is not as it was written.
    """
    folder = Path(folder)
    index = Index(folder, lambda number, first_id: open_segment(folder, number, first_id))
    for _ in index.segments():
        pass
    return index


def segment_folder(folder: Path, number: int) -> Path:
    """Where a segment lies."""
    return folder / f"segment-{number:05d}"


def read_meta(segment: Path) -> SegmentMeta:
    """What a segment says of itself.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is not as it was written.
    """
    if not segment.exists():
        raise FileNotFoundError(f"there is no segment {segment}")
    try:
        return SegmentMeta.from_json((segment / META).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(segment, error) from error


def open_segment(folder: Path, number: int, first_id: int) -> Segment:
    """Open a segment; errors as ``open_index``."""
    segment = segment_folder(folder, number)
    meta = read_meta(segment)
    try:
        raw = (segment / OFFSETS).read_bytes()
        if len(raw) != (meta.documents + 1) * OFFSET_DTYPE.itemsize or zlib.crc32(raw) != meta.offsets_crc32:
            raise ValueError(f"{OFFSETS} is not what was written")
        dtype = token_dtype(meta.vocab_size)
        size, expected = (segment / TOKENS).stat().st_size, meta.tokens * dtype.itemsize
        if size != expected:
            raise ValueError(f"{TOKENS} holds {size:,} bytes instead of {expected:,}")
        offsets = np.memmap(segment / OFFSETS, dtype=OFFSET_DTYPE, mode="r")
        values = np.memmap(segment / TOKENS, dtype=dtype, mode="r") if size else np.empty(0, dtype=dtype)
    except (OSError, ValueError) as error:
        raise _damaged(segment, error) from error
    return Segment(segment, meta, first_id, offsets, values)


def _damaged(segment: Path, error: Exception) -> DamagedError:
    return DamagedError(f"the index {segment} is damaged ({type(error).__name__}: {error})")

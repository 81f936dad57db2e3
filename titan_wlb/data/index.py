"""Documents as tokens on the disk: lengths to plan with, tokens to read when their turn comes.

    <folder>/index.json               what it holds, checksums, how many documents were skipped and why
    <folder>/segment-00000.lengths    little-endian int64, a document's tokens, BOS and EOS included
    <folder>/segment-00000.tokens     little-endian uint16 (vocabularies up to 65,536) or uint32, document by document
    <folder>/segment-00001...         the next; a document's id is its place in all of them

Tokens are memory-mapped: a rank only reads those of its own micro-batches.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titan_wlb.data.once import DamagedError

FORMAT = 1
META = "index.json"
LENGTH_DTYPE = np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class SegmentMeta:
    """One pair of files: how many documents and tokens, and the lengths file's CRC-32."""

    documents: int
    tokens: int
    lengths_crc32: int


@dataclass(frozen=True, slots=True)
class IndexMeta:
    """What index.json holds.

    Args:
        fingerprint: hash of all lengths and tokens.
        skipped: documents of the corpus that were bad, and have no id.
        skipped_examples: origin and reason of the first ones.
    """

    fingerprint: str
    corpus: str
    vocab_size: int
    segments: tuple[SegmentMeta, ...]
    skipped: int = 0
    skipped_examples: tuple[str, ...] = ()

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """How a token lies on the disk."""
        return np.dtype("<u2") if self.vocab_size <= 1 << 16 else np.dtype("<u4")

    def to_json(self) -> str:
        """Text of index.json, its own checksum included."""
        body = json.dumps(asdict(self), indent=1)
        return json.dumps({"format": FORMAT, "crc32": zlib.crc32(body.encode()), "body": json.loads(body)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> IndexMeta:
        """Inverse of ``to_json``; any exception of json or a dict where it is none, ValueError on a wrong checksum."""
        stored = json.loads(text)
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']} instead of {FORMAT}")
        body = dict(stored["body"])
        if zlib.crc32(json.dumps(body, indent=1).encode()) != stored["crc32"]:
            raise ValueError("its checksum is wrong")
        body["segments"] = tuple(SegmentMeta(**segment) for segment in body["segments"])
        body["skipped_examples"] = tuple(body["skipped_examples"])
        return cls(**body)


class Index:
    """Open documents.

    Attributes:
        lengths: int64 ``[documents]``, tokens of each; an index's ids are 0 to documents - 1.
        folder: where it lies.
        meta: what it says of itself.
        fingerprint: hex; equal if and only if lengths and tokens are, wherever and from whatever files it was built.
    """

    def __init__(self, folder: Path, meta: IndexMeta, lengths: Sequence[np.ndarray], tokens: Sequence[np.ndarray]):
        self.folder = folder
        self.meta = meta
        self.fingerprint = meta.fingerprint
        self.lengths: np.ndarray = np.concatenate(lengths)
        self._tokens = tokens
        self._first_ids = np.cumsum([0, *(len(part) for part in lengths)])
        self._offsets = np.concatenate([np.cumsum(part) - part for part in lengths])  # within the segment

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens [start, stop) of a document, a view of the mapped file: uint16 or uint32.

        Raises:
            ValueError: a token lies outside the vocabulary: the file was damaged after it was written.
        """
        length = int(self.lengths[document])
        stop = length if stop is None else stop
        assert 0 <= start <= stop <= length, (document, start, stop, length)
        segment = int(np.searchsorted(self._first_ids, document, side="right")) - 1
        offset = int(self._offsets[document])
        tokens = self._tokens[segment][offset + start : offset + stop]
        if len(tokens) and tokens.max() >= self.meta.vocab_size:
            raise ValueError(
                f"the index {self.folder} is damaged: document {document} holds token {tokens.max()} of a vocabulary "
                f"of {self.meta.vocab_size}; delete the folder and start again"
            )
        return tokens


def open_index(folder: str | Path) -> Index:
    """Open an index that is complete; lengths are checked against their checksum, tokens by the size of their file.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: a ValueError; it is not as it was written.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no index at {folder}")
    try:
        meta = IndexMeta.from_json((folder / META).read_text(encoding="utf-8"))
        parts = [_open_segment(folder, number, meta) for number in range(len(meta.segments))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"the index {folder} is damaged ({type(error).__name__}: {error})") from error
    return Index(folder, meta, [lengths for lengths, _ in parts], [tokens for _, tokens in parts])


def segment_files(folder: Path, number: int) -> tuple[Path, Path]:
    """Paths of a segment's lengths and tokens."""
    return folder / f"segment-{number:05d}.lengths", folder / f"segment-{number:05d}.tokens"


def _open_segment(folder: Path, number: int, meta: IndexMeta) -> tuple[np.ndarray, np.ndarray]:
    lengths_file, tokens_file = segment_files(folder, number)
    segment = meta.segments[number]
    raw = lengths_file.read_bytes()
    if len(raw) != segment.documents * LENGTH_DTYPE.itemsize or zlib.crc32(raw) != segment.lengths_crc32:
        raise ValueError(f"{lengths_file.name} is not what was written")
    size, expected = tokens_file.stat().st_size, segment.tokens * meta.token_dtype.itemsize
    if size != expected:
        raise ValueError(f"{tokens_file.name} holds {size:,} bytes instead of {expected:,}")
    lengths = np.frombuffer(raw, dtype=LENGTH_DTYPE).astype(np.int64)
    return lengths, np.memmap(tokens_file, dtype=meta.token_dtype, mode="r", shape=(segment.tokens,))

"""Writes one segment of an index."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from titan_wlb.data.index import META, OFFSET_DTYPE, OFFSETS, TOKENS, SegmentMeta, token_dtype


class SegmentWriter:
    """Appends documents to a segment.

    Args:
        folder: must not exist.
        corpus: its name.
        vocab_size: decides how a token lies on the disk.

    Attributes:
        num_documents, num_tokens: written so far.
    """

    def __init__(self, folder: Path, corpus: str, vocab_size: int) -> None:
        folder.mkdir(parents=True)
        self._folder, self._corpus, self._vocab_size = folder, corpus, vocab_size
        self._dtype = token_dtype(vocab_size)
        self._hashes = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        self._lengths: list[np.ndarray] = []
        self.num_documents = self.num_tokens = 0
        self._file: BinaryIO = open(folder / TOKENS, "wb")  # noqa: SIM115

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write(self, lengths: np.ndarray, tokens: np.ndarray) -> None:
        """Documents of these lengths, int64, with their tokens one behind the other."""
        raw = tokens.astype(self._dtype).tobytes()
        self._file.write(raw)
        self._hashes[0].update(lengths.astype(OFFSET_DTYPE).tobytes())
        self._hashes[1].update(raw)
        self._lengths.append(lengths)
        self.num_documents += len(lengths)
        self.num_tokens += len(tokens)

    def finish(self, *, read: int, skipped: int, examples: tuple[str, ...], is_last: bool) -> None:
        """Makes it a whole segment; the arguments as in ``SegmentMeta``."""
        self._file.flush()
        os.fsync(self._file.fileno())
        offsets = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *self._lengths])).astype(OFFSET_DTYPE)
        raw = offsets.tobytes()
        _write(self._folder / OFFSETS, raw)
        meta = SegmentMeta(
            corpus=self._corpus,
            vocab_size=self._vocab_size,
            documents=self.num_documents,
            tokens=self.num_tokens,
            offsets_crc32=zlib.crc32(raw),
            fingerprint="".join(part.hexdigest() for part in self._hashes),  # batches leave no trace in it
            read=read,
            skipped=skipped,
            skipped_examples=examples,
            is_last=is_last,
        )
        _write(self._folder / META, meta.to_json().encode())


def _write(path: Path, raw: bytes) -> None:
    with open(path, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())

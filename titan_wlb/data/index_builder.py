"""Tokenise a corpus into an index; documents keep the corpus's order, however many processes work.

corpus -> good documents -> batches of about 1 MiB -> encoder, here or in worker processes -> files, in order
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from titan_wlb.data.corpora import Corpus, RawDocument, problem_of
from titan_wlb.data.encoders import Encoder
from titan_wlb.data.index import (
    FORMAT,
    LENGTH_DTYPE,
    META,
    Index,
    IndexMeta,
    SegmentMeta,
    open_index,
    segment_files,
)
from titan_wlb.data.once import built_once

logger = logging.getLogger(__name__)

BAD_DOCUMENT = ("skip", "stop")
BATCH_CHARACTERS = 1 << 20
ALONE_BATCHES = 32  # a corpus of up to so many is done before workers would have started
SEGMENT_TOKENS = 1 << 28
NUM_EXAMPLES = 5


def prepare_index(
    corpus: Corpus,
    encoder: Encoder,
    root: str | Path,
    *,
    num_processes: int | None = None,
    on_bad_document: str = "skip",
) -> Index:
    """Open the index of this corpus and tokenizer below ``root``; build it where it is missing or damaged.

    Its folder is named by a hash of both, so that another corpus or tokenizer is another index. Any number of processes
    may call this at the same time: one builds, the others wait.

    Args:
        num_processes: None for one per core, at most 16; a small corpus is done without workers.
        on_bad_document: "skip" counts and names documents that are unreadable, undecodable or without text; "stop"
            refuses them, also those that an existing index has skipped.

    Raises:
        ValueError: no document at all, or a bad one with "stop".
    """
    described = f"{FORMAT}\0{corpus.fingerprint}\0{encoder.fingerprint}"
    folder = Path(root) / hashlib.blake2b(described.encode(), digest_size=16).hexdigest()
    index = built_once(
        folder,
        open_index,
        lambda part: build_index(corpus, encoder, part, num_processes=num_processes, on_bad_document=on_bad_document),
        f"index of {corpus.name}",
    )
    if index.meta.skipped:
        message = f"{index.meta.skipped:,} bad documents of {corpus.name}, the first: {index.meta.skipped_examples[0]}"
        if on_bad_document == "stop":
            raise ValueError(f"wlb.on_bad_document = 'stop': {message}; 'skip' leaves them out")
        logger.warning(f"left out {message}")
    return index


def build_index(
    corpus: Corpus,
    encoder: Encoder,
    folder: str | Path,
    *,
    num_processes: int | None = None,
    on_bad_document: str = "skip",
    segment_tokens: int = SEGMENT_TOKENS,
) -> None:
    """Write an index into ``folder``, which must not exist; see ``prepare_index``.

    Args:
        segment_tokens: a segment ends with the batch that reaches so many tokens.
    """
    assert on_bad_document in BAD_DOCUMENT, on_bad_document
    folder = Path(folder)
    folder.mkdir(parents=True)
    bad = _BadDocuments(stop=on_bad_document == "stop")
    writer = _Writer(folder, IndexMeta("", "", encoder.vocab_size, ()).token_dtype, segment_tokens)
    progress = tqdm(
        total=corpus.num_bytes,
        unit="B" if corpus.num_bytes else "document",
        unit_scale=True,
        desc=f"tokenising {corpus.name}",
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )
    try:
        with progress:
            batches = _batches(_good_documents(corpus, bad))
            for batch, lengths, tokens in _encoded(batches, encoder, num_processes or _default_processes()):
                is_good = lengths > encoder.num_special
                for place in np.flatnonzero(~is_good):
                    bad.add(RawDocument(batch.origins[place], None, 0, "no token"))
                writer.write(lengths[is_good], tokens[np.repeat(is_good, lengths)])
                progress.update(batch.position - progress.n)
            progress.update((corpus.num_bytes or progress.n) - progress.n)
        writer.close()
    finally:
        writer.file.close()
    if not writer.segments:
        first = f" of {bad.number:,}, the first: {bad.examples[0]}" if bad.number else ""
        raise ValueError(f"training.dataset: {corpus.name} holds no document with text{first}")
    meta = IndexMeta(
        writer.fingerprint(), corpus.name, encoder.vocab_size, tuple(writer.segments), bad.number, tuple(bad.examples)
    )
    with open(folder / META, "w", encoding="utf-8") as file:
        file.write(meta.to_json())
        file.flush()
        os.fsync(file.fileno())


@dataclass
class _BadDocuments:
    stop: bool
    number: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, document: RawDocument) -> None:
        described = f"{document.origin} ({document.problem})"
        if self.stop:
            raise ValueError(f"wlb.on_bad_document = 'stop': {described}; 'skip' leaves such documents out")
        self.number += 1
        if self.number <= NUM_EXAMPLES:
            self.examples.append(described)
            logger.warning(f"skipping a bad document: {described}")


@dataclass
class _Batch:
    """Documents that are encoded together."""

    texts: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    position: int = 0


def _good_documents(corpus: Corpus, bad: _BadDocuments) -> Iterator[RawDocument]:
    for document in corpus:
        problem = problem_of(document)
        if problem:
            bad.add(RawDocument(document.origin, None, document.position, problem))
        else:
            yield document


def _batches(documents: Iterable[RawDocument]) -> Iterator[_Batch]:
    batch, characters = _Batch(), 0
    for document in documents:
        assert document.text is not None
        batch.texts.append(document.text)
        batch.origins.append(document.origin)
        batch.position = document.position
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = _Batch(), 0
    if batch.texts:
        yield batch


def _encoded(
    batches: Iterator[_Batch], encoder: Encoder, num_processes: int
) -> Iterator[tuple[_Batch, np.ndarray, np.ndarray]]:
    """Per batch, in order, the lengths of its documents and all their tokens."""
    alone = ALONE_BATCHES if num_processes > 1 else sys.maxsize
    for batch in islice(batches, alone):
        yield batch, *_encode(encoder, batch.texts)
    following = next(batches, None)
    if following is None:
        return
    # spawned, not forked: the training process has threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _start_worker, (encoder,)) as pool:
        waiting: deque[tuple[_Batch, Future[tuple[np.ndarray, np.ndarray]]]] = deque()
        while following is not None or waiting:
            while following is not None and len(waiting) < 2 * num_processes:
                waiting.append((following, pool.submit(_encode_in_worker, following.texts)))
                following = next(batches, None)
            batch, result = waiting.popleft()
            yield batch, *result.result()


def _encode(encoder: Encoder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    documents = encoder.encode_batch(texts)
    return np.array([len(document) for document in documents], dtype=np.int64), np.concatenate(documents)


_worker_encoder: Encoder | None = None


def _start_worker(encoder: Encoder) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_encoder = encoder


def _encode_in_worker(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    assert _worker_encoder is not None
    return _encode(_worker_encoder, texts)


def _default_processes() -> int:
    return min(16, os.cpu_count() or 1)


class _Writer:
    """Appends documents to the segment that is open, and opens the next one when it is full."""

    def __init__(self, folder: Path, dtype: np.dtype, segment_tokens: int) -> None:
        self._folder, self._dtype, self._segment_tokens = folder, dtype, segment_tokens
        self._hashes = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        self.segments: list[SegmentMeta] = []
        self._open()

    def _open(self) -> None:
        self._lengths: list[np.ndarray] = []
        self._tokens = 0
        self.file: BinaryIO = open(segment_files(self._folder, len(self.segments))[1], "wb")  # noqa: SIM115

    def write(self, lengths: np.ndarray, tokens: np.ndarray) -> None:
        self._lengths.append(lengths)
        self._tokens += len(tokens)
        raw = tokens.astype(self._dtype).tobytes()
        self.file.write(raw)
        self._hashes[0].update(lengths.astype(LENGTH_DTYPE).tobytes())
        self._hashes[1].update(raw)
        if self._tokens >= self._segment_tokens:
            self.close()
            self._open()

    def fingerprint(self) -> str:
        """Hash of everything written; batches and segments leave no trace in it."""
        return "".join(part.hexdigest() for part in self._hashes)

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        lengths_file, tokens_file = segment_files(self._folder, len(self.segments))
        if not self._tokens:
            tokens_file.unlink()
            return
        raw = np.concatenate(self._lengths).astype(LENGTH_DTYPE).tobytes()
        with open(lengths_file, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        self.segments.append(SegmentMeta(len(raw) // LENGTH_DTYPE.itemsize, self._tokens, zlib.crc32(raw)))

"""Tokenise a corpus into an index, segment by segment; documents keep the corpus's order, however many work on it.

corpus -> good documents -> batches of about 1 MiB -> encoder, here or in worker processes -> files, in order

A segment ends with the batch that reaches its number of tokens, and the next one starts with a batch of its own, so
that a builder that goes on behind another one's segment writes the same bytes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from titan_wlb.data.corpora import Corpus, RawDocument, problem_of
from titan_wlb.data.encoders import Encoder
from titan_wlb.data.index import Segment, SegmentMeta, open_segment, read_meta, segment_folder
from titan_wlb.data.once import built_once
from titan_wlb.data.segment_writer import SegmentWriter

logger = logging.getLogger(__name__)

BAD_DOCUMENT = ("skip", "stop")
BATCH_CHARACTERS = 1 << 20
ALONE_BATCHES = 32  # a corpus of up to so many is done before workers would have started
NUM_EXAMPLES = 5


class IndexBuilder:
    """Builds the segments of an index that are missing. Any number of processes may do so at the same time.

    Args:
        folder: of the index.
        segment_tokens: a segment ends with the batch that reaches so many tokens.
        num_processes: None for one per core, at most 16; a small corpus is done without workers.
        on_bad_document: "skip" counts and names documents that are unreadable, undecodable or without text; "stop"
            refuses them, also those that another builder has skipped.
        show_progress: with a progress bar.
    """

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder,
        folder: str | Path,
        *,
        segment_tokens: int,
        num_processes: int | None = None,
        on_bad_document: str = "skip",
        show_progress: bool = True,
    ) -> None:
        assert on_bad_document in BAD_DOCUMENT, on_bad_document
        self.folder = Path(folder)
        self._corpus, self._encoder = corpus, encoder
        self._segment_tokens = segment_tokens
        self._num_processes = num_processes or min(16, os.cpu_count() or 1)
        self._on_bad_document = on_bad_document
        self._show_progress = show_progress
        self._reader: _Reader | None = None

    def segment(self, number: int, first_id: int) -> Segment:
        """The segment of a number, built if it is missing or damaged; those before it must be there.

        Raises:
            ValueError: the corpus cannot be read, holds no document at all, or a bad one with "stop".
        """
        segment = built_once(
            segment_folder(self.folder, number),
            lambda _: open_segment(self.folder, number, first_id),
            lambda part: self._build(number, part),
            f"index of {self._corpus.name}" + (f" (segment {number})" if number else ""),
        )
        check_skipped(segment.meta, self._on_bad_document)
        return segment

    def close(self) -> None:
        """Ends the worker processes."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _build(self, number: int, part: Path) -> None:
        before = read_meta(segment_folder(self.folder, number - 1)) if number else None
        assert before is None or not before.is_last, "behind the last segment"
        if self._reader is None or self._reader.next_segment != number:
            self.close()  # another process has built what came between
            batch = min(BATCH_CHARACTERS, self._segment_tokens)
            self._reader = _Reader(self._corpus, self._encoder, self._num_processes, batch, number, before)
        reader = self._reader
        bar = tqdm(
            total=self._corpus.num_bytes,
            initial=reader.position,
            unit="B" if self._corpus.num_bytes else "document",
            unit_scale=True,
            desc=f"tokenising {self._corpus.name}",
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            disable=not self._show_progress,
        )
        try:
            with bar, SegmentWriter(part, self._corpus.name, self._encoder.vocab_size) as writer:
                skipped = before.skipped if before else 0
                examples = list(before.skipped_examples) if before else []
                while writer.num_tokens < self._segment_tokens and (encoded := reader.next()) is not None:
                    lengths, tokens, bad = encoded
                    writer.write(lengths, tokens)
                    for document in bad:
                        skipped += 1
                        self._note(document, skipped, examples)
                    bar.update(reader.position - bar.n)
                is_last = reader.at_end
                if is_last:
                    bar.update((self._corpus.num_bytes or bar.n) - bar.n)
                if is_last and not number and not writer.num_documents:
                    first = f" of {skipped:,}, the first: {examples[0]}" if skipped else ""
                    raise ValueError(f"training.dataset: {self._corpus.name} holds no document with text{first}")
                writer.finish(read=reader.read, skipped=skipped, examples=tuple(examples), is_last=is_last)
        except BaseException:
            self.close()  # where it stands is not where a segment ends
            raise
        reader.next_segment += 1

    def _note(self, document: RawDocument, number: int, examples: list[str]) -> None:
        described = f"{document.origin} ({document.problem})"
        if self._on_bad_document == "stop":
            raise ValueError(f"wlb.on_bad_document = 'stop': {described}; 'skip' leaves such documents out")
        if number <= NUM_EXAMPLES:
            examples.append(described)
            logger.warning(f"skipping a bad document: {described}")


def check_skipped(meta: SegmentMeta, on_bad_document: str) -> None:
    """ValueError where documents were skipped that were not to be; a warning where they may be."""
    if not meta.skipped:
        return
    message = f"{meta.skipped:,} bad documents of {meta.corpus}, the first: {meta.skipped_examples[0]}"
    if on_bad_document == "stop":
        raise ValueError(f"wlb.on_bad_document = 'stop': {message}; 'skip' leaves them out")
    logger.warning(f"left out {message}")


class _Reader:
    """The corpus from a segment's beginning on, encoded batch by batch.

    Attributes:
        next_segment: that starts here.
        read: documents of the corpus read up to here, bad ones included.
        position: bytes (or documents) of the corpus up to here.
    """

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder,
        num_processes: int,
        batch_characters: int,
        number: int,
        before: SegmentMeta | None,
    ) -> None:
        self.next_segment = number
        self.read = before.read if before else 0
        self.position = 0
        self._num_special = encoder.num_special
        self._encoded = _encoded(_batches(corpus, self.read, batch_characters), encoder, num_processes)
        self._following = next(self._encoded, None)

    @property
    def at_end(self) -> bool:
        """Whether the corpus holds no more."""
        return self._following is None

    def next(self) -> tuple[np.ndarray, np.ndarray, list[RawDocument]] | None:
        """(lengths, tokens, bad documents) of the next batch; None at the end."""
        if self._following is None:
            return None
        batch, lengths, tokens = self._following
        self.read, self.position = batch.read, batch.position
        is_good = lengths > self._num_special
        silent = [RawDocument(batch.origins[place], None, 0, "no token") for place in np.flatnonzero(~is_good)]
        self._following = next(self._encoded, None)
        return lengths[is_good], tokens[np.repeat(is_good, lengths)], batch.bad + silent

    def close(self) -> None:
        self._encoded.close()


@dataclass
class _Batch:
    """Documents that are encoded together, and the bad ones between them."""

    texts: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    bad: list[RawDocument] = field(default_factory=list)
    read: int = 0
    position: int = 0


def _batches(corpus: Corpus, skip: int, batch_characters: int) -> Iterator[_Batch]:
    """Batches behind the first ``skip`` documents; the last one may hold bad documents alone."""
    batch, characters = _Batch(), 0
    for place, document in enumerate(corpus):
        if place < skip:
            continue
        batch.read, batch.position = place + 1, document.position
        problem = problem_of(document)
        if problem:
            batch.bad.append(RawDocument(document.origin, None, document.position, problem))
            continue
        assert document.text is not None
        batch.texts.append(document.text)
        batch.origins.append(document.origin)
        characters += len(document.text)
        if characters >= batch_characters:
            yield batch
            batch, characters = _Batch(), 0
    if batch.read:
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


def _encode(encoder: Encoder, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    documents = encoder.encode_batch(list(texts))
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    return lengths, np.concatenate([np.empty(0, dtype=np.uint16), *documents])


_worker_encoder: Encoder | None = None


def _start_worker(encoder: Encoder) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_encoder = encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's worker does not notice by itself that the process that it works for was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    assert _worker_encoder is not None
    return _encode(_worker_encoder, texts)

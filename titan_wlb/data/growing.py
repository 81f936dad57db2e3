"""An index that is read while it is built.

node's first rank   builds segment 0, then has a background process build two segments ahead of what is read
other ranks         wait for segments to appear on the disk; no collective is involved, which could time out
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from pathlib import Path

from titan_wlb.data.background import BackgroundBuilder
from titan_wlb.data.index import FORMAT, TOKENS, Index, Segment, open_segment, read_meta, segment_folder, token_dtype
from titan_wlb.data.index_builder import IndexBuilder, check_skipped
from titan_wlb.data.once import POLL_S, REPEAT_MESSAGE_S, DamagedError

logger = logging.getLogger(__name__)

SEGMENTS_AHEAD = 2  # beside the one that is read; a bound on disk and work that a short run would not need


def index_folder(root: str | Path, corpus_fingerprint: str, encoder_fingerprint: str, segment_tokens: int) -> Path:
    """Where an index lies: another corpus, tokenizer or size of segments is another index."""
    described = f"{FORMAT}\0{corpus_fingerprint}\0{encoder_fingerprint}\0{segment_tokens}"
    return Path(root) / hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def complete_index(builder: IndexBuilder) -> Index:
    """Builds what is missing, to the corpus's end; errors as ``IndexBuilder.segment``."""
    index = Index(builder.folder, builder.segment)
    with contextlib.closing(builder):
        for _ in index.segments():
            pass
    return index


class GrowingIndex(Index):
    """Builds the first segment, or waits for who does; the others are built in the background while it is read.

    Args:
        builder: of the segments.
        background: its process, on a node's first rank; None on the others, which only wait.
        segment_tokens: that the builder fills a segment with.
        on_bad_document: as the builder's.
    """

    def __init__(
        self, builder: IndexBuilder, background: BackgroundBuilder | None, segment_tokens: int, on_bad_document: str
    ) -> None:
        super().__init__(builder.folder, self._wait_for)
        self._builder, self._background = builder, background
        self._segment_tokens, self._on_bad_document = segment_tokens, on_bad_document

    def close(self) -> None:
        """Ends the background process."""
        if self._background is not None:
            self._background.close()

    def _wait_for(self, number: int, first_id: int) -> Segment:
        if number == 0:
            with contextlib.closing(self._builder):
                segment = self._builder.segment(number, first_id)
        else:
            segment = self._from_disk(number, first_id)
            check_skipped(segment.meta, self._on_bad_document)
        if not segment.meta.is_last:
            self._build_ahead(number)
            if number == 0:
                logger.info("the index is read segment by segment: later ones are tokenised while earlier ones train")
        return segment

    def _from_disk(self, number: int, first_id: int) -> Segment:
        said_at = time.monotonic()
        seen_damaged = False
        while True:
            try:
                return open_segment(self.folder, number, first_id)
            except FileNotFoundError:
                pass
            except DamagedError:
                if self._background is not None and not seen_damaged:
                    self._background.close()  # it may have passed this segment; a new one looks at all of them
                seen_damaged = True
            if self._background is not None:
                self._background.build_up_to(number)
                self._background.check()
            if time.monotonic() - said_at >= REPEAT_MESSAGE_S:
                said_at = time.monotonic()
                logger.info(f"waiting for segment {number} of the index{self._progress(number)}")
            time.sleep(POLL_S)

    def _build_ahead(self, number: int) -> None:
        """Starts nothing where the segments ahead are there already."""
        if self._background is None:
            return
        for following in range(number + 1, number + 1 + SEGMENTS_AHEAD):
            try:
                if read_meta(segment_folder(self.folder, following)).is_last:
                    return
            except (FileNotFoundError, DamagedError):
                self._background.build_up_to(number + SEGMENTS_AHEAD)
                return

    def _progress(self, number: int) -> str:
        """How far the builder is, by the size of what it writes."""
        folder = segment_folder(self.folder, number)
        sizes = []
        for part in folder.parent.glob(f"{folder.name}.part-*"):
            with contextlib.suppress(OSError):  # just begun, or just renamed to what it becomes
                sizes.append((part / TOKENS).stat().st_size)
        token = token_dtype(self.opened[-1].meta.vocab_size).itemsize
        return f": {100 * max(sizes) // (self._segment_tokens * token)} % are tokenised" if sizes else ""

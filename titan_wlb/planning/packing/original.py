"""The ``original`` packing of Plain-4D: documents in arrival order, concatenated, cut every W tokens.

    W = 4, N = 2            documents  A (3 tokens), B (3), C (5)

    stream                  A A A B B B C C C C C
    micro-batch 0           A A A B                     A whole, B[0, 1)
    micro-batch 1                   B B C C             B[1, 3), C[0, 2)
    carried                                 C C C       C[2, 5)

A cut document's pieces attend to themselves alone. Labels are still the document's next tokens: only context is lost.
Source: paper, section 2 (the baseline).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from titan_wlb.planning.packing.packer import Stream, Waiting
from titan_wlb.planning.plan import Document, Segment


class Original:
    """Fills each of N micro-batches with W tokens.

    Args:
        num_micro_batches: N.
        context_window: W, tokens.
    """

    def __init__(self, num_micro_batches: int, context_window: int) -> None:
        self.num_micro_batches = num_micro_batches
        self.context_window = context_window

    def empty(self) -> Waiting:
        """What waits before the first step: nothing."""
        return Waiting()

    def pack(self, waiting: Waiting, stream: Stream) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """The stream's next N x W tokens, as N micro-batches."""
        return self.pack_arrived(waiting, stream.draw(self.num_micro_batches * self.context_window))

    def pack_arrived(self, waiting: Waiting, arrived: Sequence[Document]) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """N micro-batches of W tokens (fewer where documents run out) and the rest of the stream."""
        stream = deque(waiting.left_over)
        stream.extend(Segment(document, 0, document.length) for document in arrived)
        micro_batches = [_take(stream, self.context_window) for _ in range(self.num_micro_batches)]
        return micro_batches, Waiting(tuple(stream))


def _take(stream: deque[Segment], room: int) -> tuple[Segment, ...]:
    """The stream's next ``room`` tokens, which leave it."""
    taken = []
    while stream and room:
        segment = stream.popleft()
        if segment.length > room:
            cut = segment.start + room
            stream.appendleft(Segment(segment.document, cut, segment.stop))
            segment = Segment(segment.document, segment.start, cut)
        taken.append(segment)
        room -= segment.length
    return tuple(taken)

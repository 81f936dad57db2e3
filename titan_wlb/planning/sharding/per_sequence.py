"""The sequence cut into 2 x CP chunks; rank i holds chunks i and 2 CP - 1 - i.

    CP = 2, segments A of 5 tokens and B of 4: nine tokens, chunks of 3, 2, 2, 2

    A A A | A A | B B | B B         rank 0: A[0, 3) and B[2, 4)
      0      1     2     3          rank 1: A[3, 5) and B[0, 2)

Tokens are equal to within one; attention work is equal only where the sequence is one document (paper, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

from titan_wlb.planning.plan import Chunk, ShardPlan


def per_sequence(lengths: Sequence[int], cp: int) -> ShardPlan:
    """The shards of a micro-batch whose segments have ``lengths`` tokens, in this order, over ``cp`` ranks."""
    base, extra = divmod(sum(lengths), 2 * cp)
    sizes = [base + (place < extra) for place in range(2 * cp)]  # extra tokens go round the ranks, as in per_document
    chunks = _cut(lengths, sizes[:cp] + sizes[cp:][::-1])
    ranks = [_join(chunks[rank] + chunks[2 * cp - 1 - rank]) for rank in range(cp)]
    return ShardPlan("per_sequence", tuple(lengths), tuple(ranks))


def _cut(lengths: Sequence[int], sizes: Sequence[int]) -> list[list[Chunk]]:
    """The concatenated segments in parts of ``sizes`` tokens."""
    parts: list[list[Chunk]] = []
    segment = start = 0
    for size in sizes:
        part = []
        while size:
            stop = min(start + size, lengths[segment])
            part.append(Chunk(segment, start, stop))
            size -= stop - start
            segment, start = (segment, stop) if stop < lengths[segment] else (segment + 1, 0)
        parts.append(part)
    return parts


def _join(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """Neighbours of one segment become one chunk."""
    joined: list[Chunk] = []
    for chunk in chunks:
        if joined and (joined[-1].segment, joined[-1].stop) == (chunk.segment, chunk.start):
            joined[-1] = Chunk(chunk.segment, joined[-1].start, chunk.stop)
        else:
            joined.append(chunk)
    return tuple(joined)

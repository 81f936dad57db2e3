"""Every segment cut into 2 x CP chunks; rank i holds chunks i and 2 CP - 1 - i of each. No padding.

    CP = 2, segments A of 9 tokens, B of 6, C of 1

    A A A | A A | A A | A A     9 = 4 x 2 + 1, the extra token goes to rank 0
    B B | B B | B | B           6 = 4 x 1 + 2, to ranks 1 and 0
    | C | |                     1 = 4 x 0 + 1, to rank 1

    rank 0: A[0, 3) A[7, 9) B[0, 2) B[5, 6)         8 tokens
    rank 1: A[3, 7) B[2, 5) C[0, 1)                 8 tokens

Extra tokens go round the ranks, on from segment to segment, a rank's first chunk before its second. Without them ranks
hold equally many tokens, and of what is dealt in turn nobody gets two more than another: ranks are equal to within one
token, and so are the chunks of a segment. Source: paper, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.plan import Chunk, ShardPlan


def per_document(lengths: Sequence[int], cp: int) -> ShardPlan:
    """The shards of a micro-batch whose segments have ``lengths`` tokens, in this order, over ``cp`` ranks."""
    bounds = _bounds(lengths, cp)
    return ShardPlan("per_document", tuple(lengths), tuple(_chunks(bounds, cp, rank) for rank in range(cp)))


def _bounds(lengths: Sequence[int], cp: int) -> npt.NDArray[np.int64]:
    """Where the chunks of each segment start and stop, int64 [segments, 2 CP + 1]."""
    base, extra = np.divmod(np.asarray(lengths, dtype=np.int64), 2 * cp)
    turn = np.cumsum(extra) - extra  # extra tokens dealt before each segment
    # The how-manieth a rank is to get an extra token of each segment; its second one comes a round of CP later.
    place = (np.arange(cp) - turn[:, None]) % cp
    place = np.concatenate([place, place[:, ::-1] + cp], axis=1)
    sizes = base[:, None] + (place < extra[:, None])
    bounds = np.zeros((len(lengths), 2 * cp + 1), dtype=np.int64)
    np.cumsum(sizes, axis=1, out=bounds[:, 1:])
    return bounds


def _chunks(bounds: npt.NDArray[np.int64], cp: int, rank: int) -> tuple[Chunk, ...]:
    """A rank's chunks, segment by segment, without empty ones."""
    heads = [rank] if rank == cp - 1 else [rank, 2 * cp - 1 - rank]  # the last rank's two are neighbours: one chunk
    tails = [rank + 2] if rank == cp - 1 else [rank + 1, 2 * cp - rank]
    starts, stops = bounds[:, heads], bounds[:, tails]
    segments, _ = held = np.nonzero(starts < stops)
    return tuple(map(Chunk, segments.tolist(), starts[held].tolist(), stops[held].tolist()))

"""Long documents are cut, short ones stay whole: no more tiles than uncut documents cost, few keys and values to move.

    CP = 2, documents A of 9 tokens, B of 6, C of 3, tile 1 x 1: 9 tokens and 36 cells for each rank

    A A A | A A A | A A A       rank 0: A[0, 3) C A[6, 9)      1 + 2 + 3 cells, 6 of C, and 7 + 8 + 9: 36
    B B B B B B                 rank 1: B A[3, 6)              21 of B, and 4 + 5 + 6 cells: 36
    C C C

Per-document sharding would cut each of them into four chunks, and each rank would need every row of the other. Here
rank 0 needs A[3, 6), and rank 1 A[0, 3). What needs nothing of others stands first on each rank.

Ranks hold equally many tokens to within one. Work is counted in the kernel's tiles (``planning/tiles.py``) and evened
out without adding any: ``hybrid_pool.py`` says where a cut costs nothing, ``hybrid_fill.py`` who gets what, and
``hybrid_repair.py`` evens out the rest. The same on every process: integers, and floats from single operations, in one
order. Ours (DESIGN.md, decision 6); mixing whole and cut documents is also reported by FlashCP, arXiv 2606.08476.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding.hybrid_cut import Rank
from titan_wlb.planning.sharding.hybrid_fill import Filler
from titan_wlb.planning.sharding.hybrid_pool import Pool, TileCosts
from titan_wlb.planning.sharding.hybrid_repair import even_out
from titan_wlb.planning.sharding.needed import local_first
from titan_wlb.planning.tiles import FLASH_TILE, Tile

TOLERANCES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # a family of plans to choose from
_POOLED = 128  # documents, the longest, that are placed and cut with care; all others are dealt out
_TRADES = 2  # for each rank, at most


def hybrid(lengths: Sequence[int], cp: int, tile: Tile = FLASH_TILE, tolerance: float = 0.0) -> ShardPlan:
    """The shards of a micro-batch whose segments have ``lengths`` tokens, in this order, over ``cp`` ranks.

    Args:
        lengths: tokens of each segment, each at least 1.
        cp: CP ranks.
        tile: that the attention kernel computes at once.
        tolerance: by how much of the mean a rank's work may exceed it. With more of it fewer documents are cut and
            fewer keys and values move; tokens stay equal.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    costs = TileCosts(tile, int(tokens.max(initial=1)))
    order = np.argsort(-tokens, kind="stable")
    pool = Pool([(segment, int(tokens[segment])) for segment in order[:_POOLED].tolist()], costs)
    dealt = _dealt(order[_POOLED:], cp)
    rows = [int(tokens[of_rank].sum()) for of_rank in dealt]
    works = [costs.of_whole(tokens[of_rank]) for of_rank in dealt]
    share = (pool.work + sum(works)) / cp
    base, extra = divmod(int(tokens.sum()), cp)
    filler, filled = Filler(pool), []
    for rank in range(cp - 1):
        # What is left is to be met by the ranks that are left, none above its share and the tolerance.
        left, later, most = pool.work + sum(works[rank:]), cp - rank - 1, share * (1 + tolerance)
        work = left / (later + 1)
        excess, lack = max(most - work, 0.0), max(work - left + later * most, 0.0)
        filled.append(filler.fill(Rank(base + (rank < extra) - rows[rank], work - works[rank], excess, lack)))
    filled.append(pool.rest())
    aim, goal = (share * (1 + tolerance + part * _uneven(cp)) for part in (0.5, 1))
    chunks = even_out(filled, works, costs, aim, goal, _TRADES * cp)
    whole = [map(Chunk, of_rank.tolist(), repeat(0), tokens[of_rank].tolist()) for of_rank in dealt]
    ranks = tuple(local_first(sorted(chain(*of_rank))) for of_rank in zip(chunks, whole, strict=True))
    return ShardPlan("hybrid", tuple(tokens.tolist()), ranks)


def _uneven(cp: int) -> float:
    """Of a rank's work, what is not worth a trade: the smaller a rank's share, the more of it a tile is."""
    return max(0.0015, cp / 8000)


def _dealt(segments: npt.NDArray[np.int64], cp: int) -> list[npt.NDArray[np.int64]]:
    """The segments of each rank: to and fro over the ranks, from the last one on."""
    return [np.concatenate([segments[cp - 1 - rank :: 2 * cp], segments[cp + rank :: 2 * cp]]) for rank in range(cp)]

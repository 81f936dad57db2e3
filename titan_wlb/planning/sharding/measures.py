"""How good a sharding is: balance in kernel tiles, and the keys and values that have to travel.

    CP = 2, documents A of 4 rows and B of 2, tile 1 x 1        rank 0: A[0, 2) B[0, 2)      rank 1: A[2, 4)

    work       rank 0: 1 + 2 for A, 1 + 2 for B = 6 cells      rank 1: 3 + 4 = 7 cells       exact 13, 6.5 on the mean
    makespan   7 / 6.5 = 1.077                                  bound: 13 / 13 = 1
    K/V        rank 0 receives nothing (B is whole on it), rank 1 the rows A[0, 2): 2 in all. A full all-gather moves
               6: rank 0 lacks 2 rows, rank 1 lacks 4.
    needed     2 / 6           busiest sender: rank 0 sends 2 rows, over the 3 that a rank lacks on the mean: 2 / 3
    gathered   an all-gather of A, the one document that is cut, moves 4 rows: 4 / 6

Definitions: DESIGN.md, "Definitions of the measures".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.needed import rows_sent
from titan_wlb.planning.tiles import FLASH_TILE, Tile, causal_work, padded_work


@dataclass(frozen=True, slots=True)
class ShardingMeasures:
    """Of the plan of one sequence.

    Args:
        makespan: tile-padded work of the slowest rank over exact causal work / CP.
        bound: the least that any cut can reach: tile-padded work of the uncut documents over exact work.
        token_spread: most minus fewest rows of a rank.
        kv_needed: rows of K/V that ranks lack below their deepest row of a document, over those they would receive in
            an all-gather of everything; 0 with one rank.
        kv_busiest_sender: rows that the busiest rank sends, over those that a rank receives on the mean in that
            all-gather.
        kv_gathered: rows that an all-gather of the whole cut documents would move, over those of everything.
        segments_per_rank: chunks of a rank, on the mean.
    """

    makespan: float
    bound: float
    token_spread: int
    kv_needed: float
    kv_busiest_sender: float
    kv_gathered: float
    segments_per_rank: float

    @property
    def makespan_over_bound(self) -> float:
        """1 where the slowest rank has its share of the work of uncut documents."""
        return self.makespan / self.bound


def measure(plan: ShardPlan, tile: Tile = FLASH_TILE) -> ShardingMeasures:
    """The measures of a plan for a kernel's tile."""
    lengths = np.asarray(plan.lengths, dtype=np.int64)
    cp, exact = len(plan.ranks), int(causal_work(lengths).sum())
    sent = rows_sent(plan)
    everything = (cp - 1) * int(lengths.sum())  # rows that all ranks together receive in an all-gather of everything
    tokens = plan.tokens
    return ShardingMeasures(
        makespan=max(rank_works(plan, tile)) * cp / exact,
        bound=int(padded_work(0, lengths, tile).sum()) / exact,
        token_spread=max(tokens) - min(tokens),
        kv_needed=int(sent.sum()) / max(everything, 1),
        kv_busiest_sender=int(sent.sum(axis=1).max()) * cp / max(everything, 1),
        kv_gathered=int(lengths[_cut(plan)].sum()) * (cp - 1) / max(everything, 1),
        segments_per_rank=sum(map(len, plan.ranks)) / cp,
    )


def rank_works(plan: ShardPlan, tile: Tile = FLASH_TILE) -> list[int]:
    """Tile-padded work of each rank, in cells of the score matrix."""
    chunks = np.array([chunk for rank in plan.ranks for chunk in rank], dtype=np.int64).reshape(-1, 3)
    ends = np.cumsum([0, *map(len, plan.ranks)])
    total = np.concatenate([[0], np.cumsum(padded_work(chunks[:, 1], chunks[:, 2], tile))])
    works: list[int] = np.diff(total[ends]).tolist()
    return works


def _cut(plan: ShardPlan) -> Sequence[int]:
    """Documents that stand on more than one rank."""
    ranks: dict[int, set[int]] = {}
    for rank, chunks in enumerate(plan.ranks):
        for chunk in chunks:
            ranks.setdefault(chunk.segment, set()).add(rank)
    return [segment for segment, found in ranks.items() if len(found) > 1]

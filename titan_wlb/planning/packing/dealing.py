"""N micro-batches to DP ranks, N / DP each.

    costs 9 8 7 4 3 1, two ranks

    in_order      rank 0: 9 8 7 = 24    rank 1: 4 3 1 =  8     (Plain-4D)
    balanced      rank 0: 9 4 3 = 16    rank 1: 8 7 1 = 16

Equal work leaves room for equal memory, since micro-batches of like work may hold few long or many short documents:

    costs  5 5 5 5    tokens 9 8 2 1

    balanced by work alone       rank 0: 9 + 2 = 11    rank 1: 8 + 1 =  9     tokens
    and by tokens                rank 0: 8 + 2 = 10    rank 1: 9 + 1 = 10

Source: ours (longest processing time first with equal counts, then swaps between the heaviest and lightest rank, then
swaps between those of most and fewest tokens).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol

import numpy as np

from titan_wlb.planning.plan import MicroBatch


class RunOrder(Protocol):
    """Knows the pipelines' schedule: ``packing.shape.Shape``."""

    def deal(self, works: Sequence[int], tokens: Sequence[int] | None = None) -> tuple[tuple[int, ...], ...]:
        """Per DP rank its micro-batches, as places in ``works``, in the order in which it runs them.

        Where works hardly differ, ``tokens`` are to be dealt evenly too.
        """


def deal(
    packing: str, micro_batches: Sequence[MicroBatch], dp: int, order: RunOrder | None = None, max_tokens: int = 0
) -> tuple[tuple[MicroBatch, ...], tuple[int, ...]]:
    """(the micro-batches in the order in which their ranks run them, per micro-batch its DP rank).

    Plain-4D deals consecutive ones. All else is dealt by work and, as far as that allows, by tokens.

    Args:
        max_tokens: of a DP rank in a step, as for ``balanced``.
    """
    if packing == "original":
        return tuple(micro_batches), in_order(len(micro_batches), dp)
    costs = [micro_batch.cost for micro_batch in micro_batches]
    tokens = [micro_batch.tokens for micro_batch in micro_batches]
    if order is None:
        return tuple(micro_batches), balanced(costs, dp, tokens, max_tokens)
    runs = order.deal(costs, tokens)
    ranks = tuple(rank for rank, run in enumerate(runs) for _ in run)
    return tuple(micro_batches[place] for run in runs for place in run), ranks


def in_order(num_micro_batches: int, dp: int) -> tuple[int, ...]:
    """Per micro-batch its DP rank: consecutive ones to a rank."""
    return tuple(place * dp // num_micro_batches for place in range(num_micro_batches))


def balanced(
    costs: Sequence[int], dp: int, tokens: Sequence[int] | None = None, max_tokens: int = 0
) -> tuple[int, ...]:
    """Per micro-batch its DP rank, such that every rank gets as many and the sums of ``costs`` are close.

    Args:
        tokens: of each micro-batch: their sums are made close as far as no rank's work exceeds the largest by that.
        max_tokens: where a rank's tokens exceed it, work is given up for them; 0: never. What swaps one at a time do
            not reach stays above.
    """
    ranks = _longest_first(costs, dp)
    totals = [sum(costs[place] for place in places) for places in ranks]
    for _ in range(2 * dp):
        if not _swap(costs, ranks, totals):
            break
    for _ in range(2 * dp if tokens and dp > 1 else 0):
        if not _swap_tokens(costs, tokens or (), ranks, totals, max_tokens):
            break
    dealt = [0] * len(costs)
    for rank, places in enumerate(ranks):
        for place in places:
            dealt[place] = rank
    return tuple(dealt)


def _longest_first(costs: Sequence[int], dp: int) -> list[list[int]]:
    """Per rank its places: each cost, largest first, goes to the rank of least sum that has room."""
    ranks: list[list[int]] = [[] for _ in range(dp)]
    lightest = [(0, rank) for rank in range(dp)]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        total, rank = heappop(lightest)
        ranks[rank].append(place)
        if len(ranks[rank]) < len(costs) // dp:
            heappush(lightest, (total + costs[place], rank))
    return ranks


def _swap(costs: Sequence[int], ranks: list[list[int]], totals: list[int]) -> bool:
    """Exchanges a place of the heaviest rank for one of the lightest, if that brings the two closer."""
    heavy, light = totals.index(max(totals)), totals.index(min(totals))
    gap = totals[heavy] - totals[light]
    cheap = sorted(ranks[light], key=lambda place: costs[place])
    cheap_costs = [costs[place] for place in cheap]
    best, place, other = gap, -1, -1
    for candidate in ranks[heavy]:
        # The gap shrinks by twice the difference of the two costs: best is a partner cheaper by half the gap.
        ideal = bisect_left(cheap_costs, costs[candidate] - gap // 2)
        for partner in cheap[max(ideal - 1, 0) : ideal + 1]:
            remaining = abs(gap - 2 * (costs[candidate] - costs[partner]))
            if remaining < best:
                best, place, other = remaining, candidate, partner
    if best == gap:
        return False
    ranks[heavy][ranks[heavy].index(place)] = other
    ranks[light][ranks[light].index(other)] = place
    totals[heavy] -= costs[place] - costs[other]
    totals[light] += costs[place] - costs[other]
    return True


def _swap_tokens(
    costs: Sequence[int], tokens: Sequence[int], ranks: list[list[int]], totals: list[int], max_tokens: int
) -> bool:
    """Exchanges a place of the rank of most tokens for one of that of fewest, if that lowers the larger of the two."""
    sums = [sum(tokens[place] for place in places) for places in ranks]
    most, fewest = sums.index(max(sums)), sums.index(min(sums))
    moved = np.subtract.outer([tokens[place] for place in ranks[most]], [tokens[place] for place in ranks[fewest]])
    work = np.subtract.outer([costs[place] for place in ranks[most]], [costs[place] for place in ranks[fewest]])
    larger = np.maximum(sums[most] - moved, sums[fewest] + moved)
    slower = np.maximum(totals[most] - work, totals[fewest] + work)
    better, as_fast = larger < sums[most], slower <= max(totals)
    if (better & as_fast).any():
        best = int(np.where(better & as_fast, larger, sums[most]).argmin())
    elif 0 < max_tokens < sums[most] and better.any():
        best = int(np.where(better, slower, slower.max() + 1).argmin())
    else:
        return False
    one, other = divmod(best, len(ranks[fewest]))
    ranks[most][one], ranks[fewest][other] = ranks[fewest][other], ranks[most][one]
    totals[most] -= int(work[one, other])
    totals[fewest] += int(work[one, other])
    return True

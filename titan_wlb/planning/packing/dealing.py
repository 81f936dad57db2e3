"""N micro-batches to DP ranks, N / DP each.

    costs 9 8 7 4 3 1, two ranks

    in_order      rank 0: 9 8 7 = 24    rank 1: 4 3 1 =  8     (Plain-4D)
    balanced      rank 0: 9 4 3 = 16    rank 1: 8 7 1 = 16

Source: ours (longest processing time first with equal counts, then swaps between the heaviest and lightest rank).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop, heappush


def in_order(num_micro_batches: int, dp: int) -> tuple[int, ...]:
    """Per micro-batch its DP rank: consecutive ones to a rank."""
    return tuple(place * dp // num_micro_batches for place in range(num_micro_batches))


def balanced(costs: Sequence[int], dp: int) -> tuple[int, ...]:
    """Per micro-batch its DP rank, such that every rank gets as many and the sums of ``costs`` are close."""
    ranks = _longest_first(costs, dp)
    totals = [sum(costs[place] for place in places) for places in ranks]
    for _ in range(2 * dp):
        if not _swap(costs, ranks, totals):
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

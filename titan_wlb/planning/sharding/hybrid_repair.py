"""Evens out what filling leaves uneven: the slowest rank trades rows with a faster one, as many as it gets.

    slowest   A[0, 1024)            gives the deep end A[896, 1024)        one tile that costs 8
    other     B[0, 512)             gives the shallow end B[0, 128)        one tile that costs 1

Rows are traded in whole tiles at the ends of chunks, where a cut adds no tile, so that neither the ranks' rows nor the
total work change. Of all pairs of ends the trade is taken that brings the slower of the two to the goal with the fewest
rows of keys and values to move: a deep end at depth s costs its new holder s rows, a front of k tiles its old one k
tiles. So a difference of D cells is made up by documents of about 2 sqrt(D) rows, not by the longest. Ours.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.plan import Chunk
from titan_wlb.planning.sharding.hybrid_pool import TileCosts

_PARTNERS = 6  # the least loaded ranks, that the slowest one trades with if it can
_MISS = 3_000_000  # rows of keys and values that a rank's whole work is worth, for a trade that stays above the goal


def joined(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Sorted, without empty ones, neighbours of one segment as one chunk."""
    found: list[Chunk] = []
    for chunk in sorted(chunks):
        segment, start, stop = chunk
        if start == stop:
            continue
        if found and found[-1][0] == segment and found[-1][2] == start:
            found[-1] = Chunk(segment, found[-1][1], stop)
        else:
            found.append(chunk)
    return found


@dataclass(slots=True)
class _Rank:
    """A rank's chunks, and what follows from them.

    Args:
        chunks: that it may trade.
        other: key tiles of what it holds besides.
        costs: of tiles.

    Attributes:
        work: key tiles.
        deepest: per segment the depth to which the rank needs its rows.
        ends: float64 [2 x chunks, 5], the low ends and then the high ends: k tiles at an end cost
            ``[:, 0] k + [:, 1] k^2`` key tiles; then tiles that the chunk has, rows that lie before what is given, and
            1 for a low end.
    """

    chunks: list[Chunk]
    other: int
    costs: TileCosts
    work: int = field(init=False)
    deepest: dict[int, int] = field(init=False)
    ends: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.replace(self.chunks)

    def replace(self, chunks: Sequence[Chunk]) -> None:
        """Other chunks."""
        self.chunks, size = joined(chunks), self.costs.rows
        self.work = self.other + sum(self.costs.of(start, stop) for _, start, stop in self.chunks)
        self.deepest = {segment: stop for segment, _, stop in self.chunks}  # sorted: the last one of a segment stays
        slope = self.costs.slope
        low, high = [], []
        for _, start, stop in self.chunks:
            tiles = (stop - start) // size
            low.append(((-(-start // size) + 0.5) * slope, 0.5 * slope, tiles, start, 1.0))
            high.append(((-(-stop // size) + 0.5) * slope, -0.5 * slope, tiles, stop, 0.0))
        self.ends = np.array(low + high, dtype=np.float64).reshape(-1, 5)

    def cut(self, end: int, rows: int) -> tuple[list[Chunk], Chunk]:
        """(what it keeps, what it gives) of so many rows at an end."""
        place = end % len(self.chunks)
        segment, start, stop = self.chunks[place]
        if end < len(self.chunks):
            kept, given = Chunk(segment, start + rows, stop), Chunk(segment, start, start + rows)
        else:
            kept, given = Chunk(segment, start, stop - rows), Chunk(segment, stop - rows, stop)
        return [*self.chunks[:place], kept, *self.chunks[place + 1 :]], given


def even_out(
    chunks: Sequence[Sequence[Chunk]],
    works: Sequence[int],
    costs: TileCosts,
    aim: float,
    goal: float,
    max_trades: int,
) -> list[list[Chunk]]:
    """Chunks of each rank after trades of rows, as many on each rank as before.

    Args:
        chunks: of each rank.
        works: key tiles of what else the rank holds and does not trade.
        costs: of tiles.
        aim: key tiles that a trade brings the slowest rank to, if it can.
        goal: key tiles, at least ``aim``; a rank that does not exceed them trades no more.
        max_trades: after which it ends.
    """
    ranks = [_Rank(list(of_rank), work, costs) for of_rank, work in zip(chunks, works, strict=True)]
    for _ in range(max_trades):
        order = sorted(range(len(ranks)), key=lambda rank: (ranks[rank].work, rank))
        slowest, others = ranks[order[-1]], [ranks[rank] for rank in order[:-1]]
        near, far = others[:_PARTNERS], others[_PARTNERS:]
        if slowest.work <= goal or not (
            (near and _trade(slowest, near, aim, goal)) or (far and _trade(slowest, far, aim, goal))
        ):
            break
    return [rank.chunks for rank in ranks]


def _trade(slowest: _Rank, partners: Sequence[_Rank], aim: float, goal: float) -> bool:
    """The best trade, if there is one that helps."""
    ours, theirs = slowest.ends, np.concatenate([partner.ends for partner in partners])
    if not len(ours) or not len(theirs):
        return False
    sizes = [len(partner.ends) for partner in partners]
    works = np.repeat(np.array([partner.work for partner in partners], dtype=np.float64), sizes)
    linear = ours[:, None, 0] - theirs[None, :, 0]
    square = ours[:, None, 1] - theirs[None, :, 1]
    room = np.minimum(ours[:, None, 2], theirs[None, :, 2])
    wanted = np.minimum((slowest.work - works) / 2, slowest.work - aim)
    # The k at which linear k + square k^2 is what is wanted, or all where it never is.
    with np.errstate(invalid="ignore", divide="ignore"):
        exact = 2 * wanted / (linear + np.sqrt(linear * linear + 4 * square * wanted))
    exact = np.where(exact >= 0, exact, room)
    moved = _moved(slowest, partners, sizes, ours[:, 3], theirs[:, 3])
    low_ends = slowest.costs.rows * (ours[:, None, 4] + theirs[None, :, 4])
    best = (np.inf, 0, 0)
    for tiles in (np.floor(exact), np.ceil(exact)):
        tiles = np.clip(tiles, 1, np.maximum(room, 1))
        change = (linear + square * tiles) * tiles
        after = np.maximum(slowest.work - change, works + change)
        score = np.maximum(after - goal, 0) * (_MISS / goal) + moved + low_ends * tiles
        score[(room < 1) | (after >= slowest.work - 0.5)] = np.inf
        place = int(score.argmin())
        best = min(best, (float(score.flat[place]), place, int(tiles.flat[place])))
    if best[0] == np.inf:
        return False
    our_end, their_end = divmod(best[1], len(theirs))
    ends = np.cumsum(sizes).tolist()
    place = bisect_right(ends, their_end)
    partner, their_end = partners[place], their_end - (ends[place] - sizes[place])
    rows, before = best[2] * slowest.costs.rows, slowest.work
    ours_kept, given = slowest.cut(our_end, rows)
    theirs_kept, got = partner.cut(their_end, rows)
    unchanged = slowest.chunks, partner.chunks
    slowest.replace([*ours_kept, got])
    partner.replace([*theirs_kept, given])
    if max(slowest.work, partner.work) < before:
        return True
    slowest.replace(unchanged[0])  # tiles that are not square do not rise as evenly as the score takes them to
    partner.replace(unchanged[1])
    return False


def _moved(
    slowest: _Rank,
    partners: Sequence[_Rank],
    sizes: Sequence[int],
    our_depths: npt.NDArray[np.float64],
    their_depths: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Rows that the new holders of two ends will need, float64 [our ends, their ends].

    None where they need rows of that segment as deep anyway.
    """
    we_need = [[partner.deepest.get(segment, 0) < stop for partner in partners] for segment, _, stop in slowest.chunks]
    they_need = [
        slowest.deepest.get(segment, 0) < stop
        for partner in partners
        for segment, _, stop in [*partner.chunks, *partner.chunks]  # low ends, high ends
    ]
    ours = np.repeat(np.array(we_need + we_need, dtype=np.float64), sizes, axis=1)
    return ours * our_depths[:, None] + (np.array(they_need) * their_depths)[None, :]

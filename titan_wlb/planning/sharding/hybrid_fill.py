"""Gives one rank after the other its rows and its work: whole documents, and cuts of a long one where they do not do.

A rank is to get t rows that cost w key tiles. It takes, as far as they leave a residual that can still be met:

    deep    of a document too large for any rank, the back that makes up w with the shallowest rows that are to be had,
            and a share of its front: all ranks that share it read its first rows, and no single one should send them
    whole   documents, heaviest first
    cut     the residual, by a two-ended cut of the least document that can meet it: its front [start, p) and its back
            [q, stop) go to the rank, the middle stays. Or the front of one document and the back of another one

The last rank takes what is left, which is its share. Ours, after DESIGN.md, decision 6; the symmetric chunks of
per-document sharding are what comes out for a single document.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from titan_wlb.planning.plan import Chunk
from titan_wlb.planning.sharding.hybrid_cut import Cut, Rank, best_cut
from titan_wlb.planning.sharding.hybrid_pool import Piece, Pool

_WORTHWHILE = 0.5  # of a rank's work: less of a shared document's back is not worth all the rows before it
_FRONT_SHARE = 0.9  # of the front that would make all ranks of a document send alike; see Filler._front


@dataclass(slots=True)
class _Shared:
    """A document that no rank can hold whole.

    Args:
        ranks: that will share it.
        back: tiles of its back that a rank takes, about.
        front: tiles of its front that the first of them is to take.
        taken: ranks that have taken theirs.
    """

    ranks: int
    back: float
    front: float
    taken: int = 0


class Filler:
    """Fills ranks from a pool.

    Args:
        pool: what is to be held.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool, self._costs, self._size = pool, pool.costs, pool.costs.rows
        self._shared: dict[int, _Shared] = {}

    def fill(self, rank: Rank) -> list[Chunk]:
        """Chunks for a rank: exactly its rows, and about its work."""
        largest = self._pool.pieces[-1] if self._pool.pieces and rank.work > 0 else None
        if largest is not None and (largest.work > rank.work + rank.excess or largest.rows > rank.rows):
            self._deep(rank, largest)
        for excess in (0.0, rank.excess) if rank.excess else (0.0,):
            self._whole(rank, excess)
        while rank.rows and self._pool.pieces:
            self._cut(rank)
        return rank.chunks + self._pool.dust(rank.rows)

    def _deep(self, rank: Rank, piece: Piece) -> None:
        costs, size = self._costs, self._size
        # With excess, fewer ranks may have to share it.
        work = max(rank.work, piece.work / ceil(piece.work / (rank.work + rank.excess)))
        first, last = piece.tiles(size)
        tiles = min(rank.rows // size, last - first - 1)
        front = min(self._front(piece, rank), tiles - 1)
        while front > 0 and costs.front(first, front) + costs.back(last, tiles - front) < work:
            front -= 1  # the rank needs the rows for the back
        if front > 0:
            start = piece.start + front * size
            work -= (of_front := costs.front(first, front))
            rank.add(Chunk(piece.segment, piece.start, start), of_front)
            left = self._pool.keep(piece, start, piece.stop)
            assert left is not None
            piece, first = left, first + front
        low, high = 0, min(rank.rows // size, last - first - 1)
        while low < high:
            back = (low + high + 1) // 2
            if costs.back(last, back) + self._pool.least_work(rank.rows - back * size) <= work:
                low = back
            else:
                high = back - 1
        if low > 0 and costs.back(last, low) >= _WORTHWHILE * rank.share[1]:
            stop = piece.stop - low * size
            rank.add(Chunk(piece.segment, stop, piece.stop), costs.back(last, low))
            self._pool.keep(piece, piece.start, stop)

    def _front(self, piece: Piece, rank: Rank) -> int:
        """Tiles of a document's front that a rank is to take, so that all that share it send about equally much.

        Rows of the front go to all ranks that share the document, those of the back that the i-th rank takes only to
        the i ranks before it, which took deeper ones. With n ranks, f_i (n - 1) + back i is to be the same for all.
        """
        if (shared := self._shared.get(piece.segment)) is None:
            first, last = piece.tiles(self._size)
            back = min(rank.work * self._size / piece.stop, rank.rows / self._size)
            ranks = max(2, ceil(piece.work / rank.work))
            front = (max(last - first - (ranks - 1) * back, 0.0) + back * (ranks - 2) / 2) / ranks
            shared = self._shared[piece.segment] = _Shared(ranks, back, front)
        place, shared.taken = shared.taken, shared.taken + 1
        return int(_FRONT_SHARE * (shared.front - shared.back * place / (shared.ranks - 1)))

    def _whole(self, rank: Rank, excess: float) -> None:
        """Pieces as they are, heaviest first, as long as the rows left can make up the work left, and not more."""
        pool, (rows, share) = self._pool, rank.share
        if not pool.pieces:
            return
        # The key tiles that a tile left may cost. A cut of what no rank can hold whole would be deeper than need be.
        fitting = [piece for piece in pool.pieces if piece.work <= share and piece.rows <= rows] or pool.pieces[-1:]
        most_of_tile = self._costs.at(max(piece.stop for piece in fitting))
        mean_of_row = sum(piece.work for piece in fitting) / sum(piece.rows for piece in fitting)
        for place in reversed(range(len(pool.pieces))):
            work, segment, start, stop = pool.pieces[place]
            left, needed = rank.rows - (stop - start), rank.work - work
            if left < 0 or needed + excess < -0.5:
                continue
            most = max(-(-left // self._size) * most_of_tile, left * mean_of_row) + 0.5
            if needed - rank.lack > most:
                continue
            piece = pool.take(place)
            if pool.least_work(left) <= needed + excess + 0.5:
                rank.add(Chunk(segment, start, stop), work)
            else:
                pool.pieces.insert(place, piece)

    def _cut(self, rank: Rank) -> None:
        """Brings a rank nearer to its rows, mostly all the way."""
        if (cut := best_cut(self._pool, rank)) is None:
            self._any(rank)
        elif cut.missing < -rank.rows % self._size and (dust := self._pool.dust(rank.rows % self._size)):
            for chunk in dust:
                rank.add(chunk, self._costs.of(chunk.start, chunk.stop))
        else:
            self._apply(rank, cut)

    def _any(self, rank: Rank) -> None:
        """Where no cut gives a rank all its rows: a whole piece, else rows that take a tile more."""
        pool, density = self._pool, rank.work / rank.rows
        smaller = [piece for piece in pool.pieces if piece.rows <= rank.rows]
        piece = min(smaller or pool.pieces, key=lambda piece: (abs(piece.work / piece.rows - density), piece))
        stop = min(piece.stop, piece.start + rank.rows)
        pool.keep(piece, stop, piece.stop)
        rank.add(Chunk(piece.segment, piece.start, stop), piece.work if smaller else 0)

    def _apply(self, rank: Rank, cut: Cut) -> None:
        """Makes a cut where it comes closest to the rank's work. What its tiles have too many, they lack."""
        pool, size = self._pool, self._size
        tiles, missing = -(-rank.rows // size), -rank.rows % size
        first, last = cut.front.tiles(size)[0], cut.back.tiles(size)[1]

        def work(front: int) -> int:
            return self._costs.front(first, front) + self._costs.back(last, tiles - front)

        low, high = cut.least, cut.most
        while low < high:
            middle = (low + high) // 2
            if work(middle) <= rank.work:
                high = middle
            else:
                low = middle + 1
        if low > cut.least and abs(work(low - 1) - rank.work) < abs(work(low) - rank.work):
            low -= 1
        lacks = missing if low == tiles else min(missing, cut.front.missing(size)) if low else 0
        start = cut.front.start + low * size - lacks
        stop = cut.back.stop - (rank.rows - (start - cut.front.start))
        if cut.front is cut.back:
            pool.keep(cut.front, start, stop)
        else:
            pool.keep(cut.front, start, cut.front.stop)
            pool.keep(cut.back, cut.back.start, stop)
        for segment, begin, end, of_chunk in (
            (cut.front.segment, cut.front.start, start, self._costs.front(first, low)),
            (cut.back.segment, stop, cut.back.stop, self._costs.back(last, tiles - low)),
        ):
            if begin < end:
                rank.add(Chunk(segment, begin, end), of_chunk)

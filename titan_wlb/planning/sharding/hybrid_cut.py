"""Which document a rank's residual is cut from, once no whole one fits.

    a rank needs 3 tiles that cost 13 key tiles

    one piece of tiles 1 2 3 4 5 6 7        front and back:  1 2 | 7    10     1 | 6 7    14, the closest
    one of tiles 1 2 3                      1 2 3 cost 6 at most: it would miss 7
    front of 1 2 3, back of 3 4 5 6         1 | 5 6    12

A cut moves about as many rows of keys and values as its back is deep: of the cuts that reach the work, that with the
least deep back is the best one. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from titan_wlb.planning.plan import Chunk
from titan_wlb.planning.sharding.hybrid_pool import Piece, Pool

_EXACT = 0.002  # of a rank's work: a cut that misses by less is good enough not to look at pairs of documents
_MISS = 100  # rows of keys and values that each of a rank's rows is worth, for a cut that misses all of its work
_FRONTS = (3, 2)  # documents that a pair's front may come from: the ones that start first, and the longest


@dataclass(slots=True)
class Rank:
    """A rank that is being filled.

    Args:
        rows: it still needs.
        work: key tiles it still needs.
        excess: key tiles that it may hold above ``work``.
        lack: key tiles that it may lack of ``work``.

    Attributes:
        share: rows and work that it came with, the latter at least 1.
    """

    rows: int
    work: float
    excess: float
    lack: float
    chunks: list[Chunk] = field(default_factory=list)
    share: tuple[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self.share = self.rows, max(self.work, 1.0)

    def add(self, chunk: Chunk, work: int) -> None:
        """Gives it a chunk."""
        self.chunks.append(chunk)
        self.rows -= chunk.stop - chunk.start
        self.work -= work


@dataclass(frozen=True, slots=True)
class Cut:
    """Tiles from the front of one piece and from the back of another one, or of the same.

    Args:
        least, most: tiles of the front.
        missing: rows that the two can lack of their tiles.
    """

    front: Piece
    back: Piece
    least: int
    most: int
    missing: int


def best_cut(pool: Pool, rank: Rank) -> Cut | None:
    """Of the cuts that give a rank all its rows, the one that misses its work the least and moves the fewest rows.

    None where no piece, or pair of pieces, has so many rows.
    """
    costs, size = pool.costs, pool.costs.rows
    tiles, missing = -(-rank.rows // size), -rank.rows % size
    least_work, most_work = rank.work - rank.lack, rank.work + rank.excess
    rows_of_miss = _MISS * rank.share[0] / rank.share[1]
    best, best_key, best_miss = None, 0.0, 0.0
    for piece in pool.pieces:
        first, last = piece.tiles(size)
        if piece.rows < rank.rows or last - first < tiles:
            continue
        low, high = costs.front(first, tiles), costs.back(last, tiles)
        miss = max(low - most_work, least_work - high, 0.0)
        # Where the front alone does, the rank needs only what lies before it, and others need the front.
        front_alone = least_work <= low <= most_work
        moved = piece.start + rank.rows if front_alone else piece.stop
        lacks = piece.missing(size)
        key = miss * rows_of_miss + moved + (size / 2 if missing > lacks else 0)
        if best is None or key < best_key:
            best, best_key, best_miss = Cut(piece, piece, tiles if front_alone else 0, tiles, lacks), key, miss
    if best is not None and best_miss <= _EXACT * rank.share[1]:
        return best
    fronts = sorted(pool.pieces, key=lambda piece: piece.start)[: _FRONTS[0]]
    longest = sorted(pool.pieces, key=lambda piece: -piece.rows)[: _FRONTS[1]]
    fronts += [piece for piece in longest if piece not in fronts]
    for back in pool.pieces:
        before, last = back.tiles(size)
        if best is not None and back.stop > best_key:
            continue
        for front in fronts:
            # One tile of each is left over, so that their rows suffice whatever the tiles lack.
            first, behind = front.tiles(size)
            least, most = max(0, tiles - (last - before) + 1), min(tiles, behind - first - 1)
            if front is back or least > most:
                continue
            low = costs.front(first, most) + costs.back(last, tiles - most)
            high = costs.front(first, least) + costs.back(last, tiles - least)
            key = max(low - most_work, least_work - high, 0.0) * rows_of_miss + back.stop + front.start
            if best is None or key < best_key:
                best, best_key = Cut(front, back, least, most, front.missing(size) + back.missing(size)), key
    return best

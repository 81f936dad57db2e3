"""Documents, and what is left of them, that no rank holds yet; counted in query tiles.

A document of 300 rows and tiles of 128 rows: three query tiles, which lack 84 rows to be full.

    tile            1             2             3
    rows        [0, 128)      [128, 256)    [256, 300)          costs 1 + 2 + 3 key tiles of 128 keys
    cut at 200      [0, 128) [128, 200)  |  [200, 300)          costs 1 + 2     + 3: the same, two tiles and one
    cut at 100      [0, 100)  |  [100, 228) [228, 300)          costs 1     + 2 + 3
    cut at 30       [0, 30)   |  [30, 158) [158, 286) [286, 300)          1     + 2 + 3 + 3: a tile more

A cut costs nothing where the missing rows up to the next full tile never grow fewer along the document: none at its
start, 28 at 100, 56 at 200, 84 at its end; but 98 at 30. The work of a piece is then that of its tiles, whatever rows
they lack, and any piece of a document may be the one that lacks them. So work is planned in tiles, and a rank's last
rows below a tile are met by what its pieces lack. Ours.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.plan import Chunk
from titan_wlb.planning.tiles import Tile


class Piece(NamedTuple):
    """Rows [start, stop) of a segment; pieces sort by their work.

    Args:
        work: key tiles of its query tiles.
    """

    work: int
    segment: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start

    def tiles(self, size: int) -> tuple[int, int]:
        """(first, last): query tiles of ``size`` rows of the document up to its start, and up to its stop."""
        return -(-self.start // size), -(-self.stop // size)

    def missing(self, size: int) -> int:
        """Rows that its query tiles lack to be full, and that any part of it may lack instead."""
        return max(-self.stop % size - -self.start % size, 0)

    @property
    def chunk(self) -> Chunk:
        """As a plan holds it."""
        return Chunk(self.segment, self.start, self.stop)


class TileCosts:
    """What query tiles cost, in key tiles.

    Args:
        tile: of the kernel.
        longest: rows of the longest document.

    Attributes:
        rows: of a query tile.
        slope: key tiles by which a query tile costs more than the one before it, on the mean.
        upto: [tiles + 1], the cost of a document's first so many query tiles, all of them full.
    """

    def __init__(self, tile: Tile, longest: int) -> None:
        self.rows, self._keys, self.slope = tile.rows, tile.keys, tile.rows / tile.keys
        ends = np.arange(1, -(-longest // tile.rows) + 1, dtype=np.int64) * tile.rows
        self.upto: list[int] = [0, *np.cumsum(-(-ends // tile.keys)).tolist()]
        self._period, self._rise = tile.keys // gcd(tile.rows, tile.keys), tile.rows // gcd(tile.rows, tile.keys)

    def at(self, stop: int) -> int:
        """Of the query tile that ends at row ``stop``."""
        return -(-stop // self._keys)

    def front(self, first: int, tiles: int) -> int:
        """Of so many full query tiles behind the document's first ``first`` ones."""
        return self.upto[first + tiles] - self.upto[first]

    def back(self, last: int, tiles: int) -> int:
        """Of the last so many of the document's first ``last`` query tiles."""
        return self.upto[last] - self.upto[last - tiles]

    def of_whole(self, lengths: npt.NDArray[np.int64]) -> int:
        """Of whole documents of these lengths, together."""
        return int(np.array(self.upto)[-(-lengths // self.rows)].sum())

    def of(self, start: int, stop: int) -> int:
        """Of rows [start, stop), as ``padded_work`` counts; plain integers are ten times as fast as an array of one."""
        full = -(-(stop - start) // self.rows) - 1
        if full < 0:
            return 0
        tiles = -(-stop // self._keys)
        for j in range(1, self._period + 1):
            terms = max(full - j + self._period, 0) // self._period
            tiles += terms * -(-(start + self.rows * j) // self._keys) + self._rise * (terms * (terms - 1) // 2)
        return tiles


class Pool:
    """The pieces that nobody holds.

    Args:
        pieces: segments and their lengths.
        costs: of tiles.

    Attributes:
        pieces: from the least work to the most; never empty ones.
    """

    def __init__(self, pieces: Sequence[tuple[int, int]], costs: TileCosts) -> None:
        self.costs, self._lengths = costs, dict(pieces)
        self.pieces = sorted(self._piece(segment, 0, length) for segment, length in pieces)
        self._dust: list[Chunk] = []

    @property
    def work(self) -> int:
        """Key tiles of all pieces."""
        return sum(piece.work for piece in self.pieces)

    def take(self, place: int) -> Piece:
        """The piece at this place, out of the pool."""
        return self.pieces.pop(place)

    def keep(self, piece: Piece, start: int, stop: int) -> Piece | None:
        """Takes a piece and leaves its rows [start, stop) in the pool, as a piece if a query tile ends among them."""
        del self.pieces[bisect_left(self.pieces, piece)]
        if -(-start // self.costs.rows) < -(-stop // self.costs.rows):
            insort(self.pieces, left := self._piece(piece.segment, start, stop))
            return left
        if start < stop:
            self._dust.append(Chunk(piece.segment, start, stop))
            self._dust.sort(key=lambda chunk: (-chunk.start, chunk.segment))
        return None

    def least_work(self, rows: int) -> int:
        """About the least work that so many rows can have: those of the pieces with the least, the last one's front.

        What is left of a document and below a tile comes last, since it costs a whole one.
        """
        work, upto, size, small = 0, self.costs.upto, self.costs.rows, []
        for piece in self.pieces:
            of_piece, segment, start, stop = piece
            if stop - start >= rows:
                first = -(-start // size)
                return work + upto[min(first - (-rows // size), len(upto) - 1)] - upto[first]
            if stop - start < size and stop - start < self._lengths[segment]:
                small.append(piece)
                continue
            work += of_piece
            rows -= stop - start
        for piece in small:
            if rows <= 0:
                break
            work += piece.work
            rows -= piece.rows
        return work

    def dust(self, rows: int) -> list[Chunk]:
        """At most so many rows out of the least deep tile that there is, where each chunk costs a tile of that depth.

        Such a tile, once begun, is kept apart and used up to its last row before another one is begun; so is what else
        is left of a tile.
        """
        size, chunks = self.costs.rows, []
        while rows:
            if not self._dust:
                more = (piece for piece in self.pieces if piece.rows > size)
                piece = min(more, key=lambda piece: (piece.tiles(size)[0], -piece.work, piece.segment), default=None)
                if piece is None:
                    break
                self.keep(piece, piece.start + size, piece.stop)
                self._dust.append(Chunk(piece.segment, piece.start, piece.start + size))
            segment, start, stop = self._dust.pop()
            cut = max(stop - rows, start)
            chunks.append(Chunk(segment, cut, stop))
            rows -= stop - cut
            if start < cut:
                self._dust.append(Chunk(segment, start, cut))
        return chunks

    def rest(self) -> list[Chunk]:
        """All that is left."""
        return [*self._dust, *(piece.chunk for piece in self.pieces)]

    def _piece(self, segment: int, start: int, stop: int) -> Piece:
        upto, size = self.costs.upto, self.costs.rows
        return Piece(upto[-(-stop // size)] - upto[-(-start // size)], segment, start, stop)

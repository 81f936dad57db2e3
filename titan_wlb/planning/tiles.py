"""What a range of rows costs an attention kernel that works in tiles of the score matrix.

Rows [a, b) of a document attend to the rows of the document up to themselves. The kernel cuts the rows into query tiles
from a on and runs each against whole key tiles from the document's first row on, the one on the diagonal included:

    Tile(rows=2, keys=2), document of 6 rows                    #: a tile computed

    rows [0, 6)      keys 0 1 | 2 3 | 4 5           rows [1, 5)      keys 0 1 | 2 3 | 4 5
           0 1          #                                 1 2            #      #
           2 3          #        #                        3 4            #      #      #
           4 5          #        #     #            5 tiles: two more than the 3 that rows [0, 4) cost
    6 tiles of 4 cells: 24 cells

A tile that is not full costs as much as a full one. Query tile i costs ceil(min(b, a + rows (i + 1)) / keys) key tiles.
Source: paper, section 5 (128 query rows in FlashAttention).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt

Integers = int | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tile:
    """What an attention kernel computes at once: FlashAttention, head dim 128, 128 x 128 forward and 64 x 128 backward.

    Args:
        rows: queries.
        keys: keys.

    Raises:
        ValueError: one is less than 1.
    """

    rows: int = 128
    keys: int = 128

    def __post_init__(self) -> None:
        if self.rows < 1 or self.keys < 1:
            raise ValueError(f"tile {self} must have at least one row and one key")

    def __str__(self) -> str:
        return f"{self.rows}x{self.keys}"

    @property
    def cells(self) -> int:
        """Scores of a full tile."""
        return self.rows * self.keys

    @classmethod
    def of_text(cls, text: str) -> Tile:
        """The tile of "128x64": 128 rows, 64 keys.

        Raises:
            ValueError: the text is something else.
        """
        if not (found := re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)) or not all(map(int, found.groups())):
            raise ValueError(f"tile {text!r} must be ROWSxKEYS, two whole numbers from 1 on, such as 128x128")
        return cls(*map(int, found.groups()))


FLASH_TILE = Tile()


def padded_work(start: Integers, stop: Integers, tile: Tile = FLASH_TILE) -> npt.NDArray[np.int64]:
    """Cells of the score matrix that a kernel computes for rows [start, stop) of a document.

    Args:
        start: first row, counted from the document's first; an integer or int64 of any shape.
        stop: behind the last row, at least ``start``; of a shape that goes with it.
        tile: of the kernel.

    Returns:
        int64 of their common shape; 0 for an empty range.
    """
    first, stop = np.asarray(start, dtype=np.int64), np.asarray(stop, dtype=np.int64)
    full = -(-(stop - first) // tile.rows) - 1  # query tiles before the last one, -1 where there is none
    key_tiles = np.where(full < 0, 0, -(-stop // tile.keys))
    # Ends of the full ones are first + rows x j for j = 1 .. full. With every ``period``th of them the key tiles rise
    # by ``rise`` exactly, so that each residue of j is an arithmetic series.
    period, rise = tile.keys // gcd(tile.rows, tile.keys), tile.rows // gcd(tile.rows, tile.keys)
    for j in range(1, period + 1):
        terms = np.maximum(full - j + period, 0) // period
        key_tiles += terms * -(-(first + tile.rows * j) // tile.keys) + rise * (terms * (terms - 1) // 2)
    return key_tiles * tile.cells


def causal_work(lengths: Integers) -> npt.NDArray[np.int64]:
    """Cells that documents of these lengths need: row r of a document meets r + 1 keys. int64 of the same shape."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return lengths * (lengths + 1) // 2

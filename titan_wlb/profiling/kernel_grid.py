"""Which chunks a kernel profile measures, and from their times to rates; without torch.

    queries  1   2   16  ...  1536      T(q, a): time of a chunk of q rows with a keys of its document before it
    keys     1   64  512 ...  8192      square(q) = T(q, 0) - T(1, 0)      rectangle(q, a) = T(q, a) - T(q, 0)

A rate is cells x FLOP of a cell / time, without the constant of a chunk. Where the table begins with a single row, as
on the CPU, whose chunks are calls of their own, that row's square is the constant. Points left out for the work or the
memory that they take have the rate of the next fewer rows, or in the first row that of the next shorter keys: there
rates hardly change any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from titan_wlb.planning.kernel_profile import FLOPS_OF_CELL, Rates
from titan_wlb.planning.tiles import Tile, padded_work

__all__ = ["CPU_TILE", "GPU_TILES", "Times", "grid", "rates_of"]

# torch's CPU kernel works in blocks of 32, 64 (from 192 rows on) or 256 rows (from 768 on) and 512 keys; a part of a
# block costs a part. FlashAttention at head dim 128: query rows x keys.
CPU_TILE = {"forward": Tile(1, 1), "backward": Tile(1, 1)}
GPU_TILES = {"forward": Tile(128, 128), "backward": Tile(64, 128)}
_CPU_QUERIES = (1, 2, 16, 32, 64, 128, 191, 192, 384, 767, 768, 1536, 3072)
_CPU_KEYS = (1, 64, 512, 2048, 8192)
_GPU_QUERIES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_GPU_KEYS = (128, 512, 2048, 8192, 32768, 131072)
# A rectangle is measured as a difference of two times. Whatever the noise, it is not faster than that much of the best
# whole chunk.
_CEILING = 1.3

Times = Mapping[tuple[int, int], int]  # (query rows, keys before them) -> ns


def grid(device: str, longest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(query rows, keys before them) for "cpu" or "cuda", none above ``longest`` but for the least."""
    queries, keys = (_CPU_QUERIES, _CPU_KEYS) if device == "cpu" else (_GPU_QUERIES, _GPU_KEYS)
    return (
        tuple(number for number in queries if number <= max(longest, queries[0])),
        tuple(number for number in keys if number <= max(longest, keys[0])),
    )


def rates_of(
    direction: str,
    times: Times,
    queries: Sequence[int],
    keys: Sequence[int],
    *,
    tile: Tile,
    heads: int,
    head_dim: int,
    one_tile: int = 0,
    per_launch: int = 0,
) -> Rates:
    """Rates of one direction.

    Args:
        direction: "forward" or "backward".
        times: ns by (query rows, keys before them), 0 keys for the square; of the squares the first must be there.
        queries, keys: of the grid.
        tile: the kernel's.
        heads, head_dim: measured.
        one_tile, per_launch: as in ``Rates``.
    """
    flops = FLOPS_OF_CELL[direction] * heads * head_dim * 1e9

    def work(rows: int, before: int) -> float:
        return int(padded_work(before, before + rows, tile)) * flops

    constant = times.get((1, 0), 0)
    ceiling = _CEILING * max(work(*chunk) / time for chunk, time in times.items())
    square: list[float] = []
    rectangle: list[list[float]] = []
    for rows in queries:
        whole = times.get((rows, 0))
        square.append(square[-1] if whole is None else min(work(rows, 0) / max(whole - constant, 1), ceiling))
        line: list[float] = []
        for place, before in enumerate(keys):
            together = times.get((rows, before))
            if whole is not None and together is not None:
                line.append(min((work(rows, before) - work(rows, 0)) / max(together - whole, 1), ceiling))
            elif rectangle:
                line.append(rectangle[-1][place])
            else:
                line.append(line[-1] if line else square[-1])
        rectangle.append(line)
    if constant and len(square) > 1:
        square[0] = square[1]  # of a single row nothing is left beside the constant
    return Rates(
        tile=tile,
        square=tuple(_rounded(square)),
        rectangle=tuple(tuple(_rounded(line)) for line in rectangle),
        one_tile=one_tile,
        per_launch=per_launch,
        per_chunk=constant,
    )


def _rounded(rates: Sequence[float]) -> list[int]:
    """To four digits: what a measurement knows."""
    return [max(int(np.format_float_positional(rate, 4, fractional=False, trim="-").rstrip(".")), 1) for rate in rates]

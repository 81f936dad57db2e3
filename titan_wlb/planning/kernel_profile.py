"""What an attention kernel reaches on a device, by query rows and key length: the paper's Figure 10 as a table.

Rows [a, b) of a document, q = b - a of them, are a *square* of keys beside them and a *rectangle* of keys before:

                0             a         b   keys
            a   +-------------+---------+
    queries     |  rectangle  | \\square |        cells are counted in whole tiles (planning/tiles.py)
            b   +-------------+---------+

    time = constant + cells of the square / rate of squares (q) + cells of the rectangle / rate of rectangles (q, a)

Between the table's points the time per cell is interpolated linearly in 1/q and 1/a, which is exact for a rectangle's
time of c0 + c1 q + c2 a + c3 q a: a call, a query row, a key row, a cell. Beyond the table the outermost rate counts.

    one head of dimension 1, tile 1 x 1, squares 4 FLOP/s and rectangles 8 FLOP/s everywhere; 4 FLOP a cell forward

    rows [2, 4)      square 3 cells    rectangle 2 x 2 cells    3 x 4 / 4 + 4 x 4 / 8 = 3 + 2 = 5 seconds

Rates are those of a device that has enough tiles to be busy. On a GPU with few heads the deepest tile alone may take
longer: a forward tile walks along its keys, a backward one along its queries, and no other multiprocessor helps it.
Source: paper, section 5 (padded operations over achieved FLOP/s); the split, the interpolation and the floor are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.tiles import Tile, padded_work

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Products of a score matrix's size, two operations each: forward Q K^T and P V; backward two for the gradients of each
# of these, and Q K^T once more.
FLOPS_OF_CELL = {"forward": 4, "backward": 10}
DIRECTIONS = ("forward", "backward")
COLLECTIVES = ("all_gather", "reduce_scatter", "all_to_all")


def time_of_bytes(number: Rows, bytes_per_second: int) -> Rows:
    """Nanoseconds, rounded down, int64 of the same shape."""
    return np.floor(number * 1e9 / bytes_per_second).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """One direction of a kernel.

    Args:
        tile: that it computes whole; 1x1 where a part of a block costs a part.
        square: FLOP/s by query rows.
        rectangle: FLOP/s by query rows and keys before them.
        one_tile: FLOP/s of a single head's deepest tile alone on the device; 0 where tiles run one after another.
        per_launch: ns of a call of the kernel, beside its tiles.
        per_chunk: ns of each chunk, beside its tiles: where chunks are calls of their own.
        per_exchange: ns that each exchange of rows costs a rank in this direction, beside copies and transfer: what
            prepares it and takes it apart, which nothing hides.
    """

    tile: Tile
    square: tuple[int, ...]
    rectangle: tuple[tuple[int, ...], ...]
    one_tile: int = 0
    per_launch: int = 0
    per_chunk: int = 0
    per_exchange: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a collective costs a rank: ``latency`` ns, and the bytes it sends or receives over ``bytes_per_second``."""

    latency: int
    bytes_per_second: int

    def nanoseconds(self, bytes_moved: Rows) -> Rows:
        """int64 of the same shape; nothing moved still costs the latency."""
        return self.latency + time_of_bytes(bytes_moved, self.bytes_per_second)


@dataclass(frozen=True, kw_only=True)
class KernelProfile:
    """What tools/profile_latency.py measured, or what is assumed until it is.

    Args:
        origin: "measured" or "assumed".
        note: how, for the reader.
        device, clock, kernel, dtype: of the measurement.
        versions: of the packages.
        heads, kv_heads, head_dim: of the measurement; another number of heads is taken to reach the same FLOP/s.
        queries, keys: the table's query rows and key lengths, rising.
        forward, backward: rates.
        exchange_origin: "measured" or "assumed".
        exchange: by collective, of ``COLLECTIVES``.
        select_bytes, add_bytes: bytes/s of gathering rows into a packed layout, and of adding them back.
    """

    origin: str
    note: str
    device: str
    clock: str
    kernel: str
    dtype: str
    versions: dict[str, str]
    heads: int
    kv_heads: int
    head_dim: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    forward: Rates
    backward: Rates
    exchange_origin: str
    exchange: dict[str, Link]
    select_bytes: int
    add_bytes: int
    _tables: dict[str, _Table] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tables", {name: _Table(self, self.rates(name)) for name in DIRECTIONS})

    def rates(self, direction: str) -> Rates:
        """Of "forward" or "backward"."""
        rates: Rates = getattr(self, direction)
        return rates

    def kernel_ns(self, direction: str, start: Any, stop: Any, *, heads: int, head_dim: int) -> Rows:
        """Time of rows [start, stop) of documents on a device that is busy.

        Args:
            direction: "forward" or "backward".
            start, stop: int64 [chunks], none empty.
            heads: query heads.
            head_dim: of a head.

        Returns:
            int64 [chunks], ns. Each is rounded, so that sums are the same in any order.
        """
        start, stop = np.asarray(start, np.int64), np.asarray(stop, np.int64)
        tile, per_chunk = self.rates(direction).tile, self.rates(direction).per_chunk
        square = padded_work(np.zeros_like(start), stop - start, tile)
        rectangle = np.maximum(padded_work(start, stop, tile) - square, 0)
        of_square, of_rectangle = self._tables[direction].per_flop(stop - start, start)
        flops = float(FLOPS_OF_CELL[direction] * heads * head_dim)
        times = (square * of_square + rectangle * of_rectangle) * flops
        return per_chunk + _rounded(times)

    def deepest_tile_ns(self, direction: str, start: Any, stop: Any, *, head_dim: int) -> Rows:
        """Time of the longest tile of each chunk alone: int64 [chunks], ns; zeros where tiles run one after another."""
        start, stop = np.asarray(start, np.int64), np.asarray(stop, np.int64)
        rates = self.rates(direction)
        if not rates.one_tile:
            return np.zeros(len(start), np.int64)
        rows, keys = rates.tile.rows, rates.tile.keys
        if direction == "forward":
            cells = rows * (-(-stop // keys) * keys)
        else:
            cells = keys * (-(-(stop - start) // rows) * rows)
        times = cells * (FLOPS_OF_CELL[direction] * head_dim * 1e9 / rates.one_tile)
        return _rounded(times)


class _Table:
    """Nanoseconds per operation at the grid's points, and between them.

    Only sums, products and quotients of float64, element by element: the same bits on every machine.
    """

    def __init__(self, profile: KernelProfile, rates: Rates) -> None:
        self.queries = np.array(profile.queries, np.int64)
        self.keys = np.array(profile.keys, np.int64)
        self.square = 1e9 / np.array(rates.square, np.float64)
        self.rectangle = 1e9 / np.array(rates.rectangle, np.float64)

    def per_flop(self, rows: Rows, before: Rows) -> tuple[Floats, Floats]:
        """ns per operation (of the square, of the rectangle) of ``rows`` rows with ``before`` keys before them."""
        low, high, weight = _between(self.queries, rows)
        left, right, share = _between(self.keys, before)
        square = _mixed(self.square[low], self.square[high], weight)
        upper = _mixed(self.rectangle[low, left], self.rectangle[high, left], weight)
        lower = _mixed(self.rectangle[low, right], self.rectangle[high, right], weight)
        return square, _mixed(upper, lower, share)


def _rounded(times: Floats) -> Rows:
    rounded: Rows = np.floor(times + 0.5).astype(np.int64)
    return rounded


def _between(grid: Rows, values: Rows) -> tuple[Rows, Rows, Floats]:
    """Per value the grid's places around it, and how far it lies from the first to the second in 1 / value."""
    values = np.clip(values, grid[0], grid[-1])
    high = np.searchsorted(grid, values)
    low = np.where(grid[high] == values, high, high - 1)
    first, second = 1.0 / grid[low], 1.0 / grid[high]
    span = np.where(low == high, 1.0, first - second)
    return low, high, (first - 1.0 / values) / span


def _mixed(first: Floats, second: Floats, weight: Floats) -> Floats:
    return first * (1.0 - weight) + second * weight

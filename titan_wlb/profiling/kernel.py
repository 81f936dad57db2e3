"""Measures the attention kernel alone: by query rows and key length, forward and backward (the paper's Figure 10).

What is called is what training calls, ``document_attention`` on equal chunks, as many as keep the device busy.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from tqdm import tqdm

from titan_wlb.context_parallel.kernels import document_attention, document_attention_backward
from titan_wlb.planning.kernel_assumed import ASSUMED_GPUS, CPU_EXCHANGE, assumed_profile
from titan_wlb.planning.kernel_file import default_kernel_profile
from titan_wlb.planning.kernel_profile import DIRECTIONS, FLOPS_OF_CELL, KernelProfile
from titan_wlb.profiling.collectives import measure_collectives
from titan_wlb.profiling.kernel_grid import CPU_TILE, GPU_TILES, grid, rates_of
from titan_wlb.profiling.measure import device_name
from titan_wlb.profiling.site import Site
from titan_wlb.profiling.stopwatch import Stopwatch, stopwatch_for

__all__ = ["Heads", "heads_of", "measure_kernel"]

# Forward operations of a point on the CPU: what takes longer has the rate of the next shorter keys.
_MOST_OPERATIONS = 10_000_000_000
# Chunks of a point on the CPU, and their rows where it has several, at most.
_CHUNKS_ON_CPU, _QUERIES_ON_CPU, _KEYS_ON_CPU = 64, 1024, 32_768
# What is quick is noisy: points of fewer operations are timed several times in each round.
_QUICK_OPERATIONS, _TIMES_QUICK = 1_000_000_000, 4
# On a GPU the tiles of a launch fill it so many times, where that takes no more memory than this share for K and V.
_WAVES, _SHARE_OF_MEMORY = 4, 16
_CALLS_ON_GPU = 5  # of a lap, so that the host runs ahead
_COPIED_ROWS = 8192


@dataclass(frozen=True)
class Heads:
    """Of one TP rank.

    Args:
        query, kv: heads.
        dim: of a head.
    """

    query: int
    kv: int
    dim: int


def heads_of(model_args: Any, tp: int) -> Heads:
    """A model's, on each of ``tp`` ranks."""
    kv_heads = model_args.n_kv_heads or model_args.n_heads
    return Heads(model_args.n_heads // tp, max(kv_heads // tp, 1), model_args.dim // model_args.n_heads)


@dataclass(frozen=True)
class _Chunks:
    """``number`` equal ones of ``rows`` query rows and ``before`` keys before them."""

    rows: int
    before: int
    number: int


def measure_kernel(site: Site, heads: Heads, *, longest: int, repeats: int, progress: bool = True) -> KernelProfile:
    """Measures on one device; the exchange between the ranks of ``site``, or assumes it where there is one rank.

    Args:
        heads: of one TP rank.
        longest: query rows and keys of the largest chunk.
        repeats: per point; the least time counts, since other work on the machine only adds to it. They come in rounds
            over all points.
        progress: whether to show a bar.
    """
    device, stopwatch = site.device.type, stopwatch_for(site.device)
    queries, keys = grid(device, longest)
    tiles = CPU_TILE if device == "cpu" else GPU_TILES
    points = [_Chunks(rows, before, _number(site, heads, rows, before)) for rows in queries for before in (0, *keys)]
    most = _MOST_OPERATIONS if device == "cpu" else 1 << 62
    points = [chunks for chunks in points if chunks.number and _operations(heads, chunks) <= most]
    times = _measure(points, site, heads, stopwatch, repeats, progress)
    alone, launch = _alone(site, stopwatch, heads, longest, repeats) if device == "cuda" else ({}, {})
    rates = {}
    for place, direction in enumerate(DIRECTIONS):
        rates[direction] = rates_of(
            direction,
            {(chunks.rows, chunks.before): laps[place] for chunks, laps in times.items()},
            queries,
            keys,
            tile=tiles[direction],
            heads=heads.query,
            head_dim=heads.dim,
            one_tile=alone.get(direction, 0),
            per_launch=launch.get(direction, 0),
        )
    # What a call costs beside the kernel is not measured here: it is taken from what ships for the device.
    shipped = default_kernel_profile("cpu" if device == "cpu" else device_name(site.device), heads.dim)
    for direction in DIRECTIONS:
        known, measured = shipped.rates(direction), rates[direction]
        launch_ns = measured.per_launch or known.per_launch
        rates[direction] = replace(measured, per_exchange=known.per_exchange, per_launch=launch_ns)
    select, add = _copies(site, heads, stopwatch, repeats)
    links = measure_collectives(site, repeats)
    assumed = CPU_EXCHANGE if device == "cpu" else assumed_profile(ASSUMED_GPUS["h100"]).exchange
    return KernelProfile(
        origin="measured",
        note="least of the repeats, in rounds over all points",
        device=device_name(site.device),
        clock=stopwatch.clock,
        kernel=site.backend,
        dtype=str(site.dtype).removeprefix("torch."),
        versions={"torch": version("torch"), "python": platform.python_version()},
        heads=heads.query,
        kv_heads=heads.kv,
        head_dim=heads.dim,
        queries=queries,
        keys=keys,
        forward=rates["forward"],
        backward=rates["backward"],
        exchange_origin="measured" if links else "assumed",
        exchange=links or assumed,
        select_bytes=select,
        add_bytes=add,
    )


def _number(site: Site, heads: Heads, rows: int, before: int) -> int:
    """Chunks measured together; 0 where they do not fill the device within its memory."""
    if site.device.type == "cpu":
        return max(min(_CHUNKS_ON_CPU, _QUERIES_ON_CPU // rows, _KEYS_ON_CPU // (rows + before)), 1)
    properties = torch.cuda.get_device_properties(site.device)
    tiles = heads.query * -(-rows // GPU_TILES["forward"].rows)
    number = -(-_WAVES * properties.multi_processor_count // tiles)
    row_bytes = 2 * heads.kv * heads.dim * site.dtype.itemsize
    return number if number * (rows + before) * row_bytes * _SHARE_OF_MEMORY <= properties.total_memory else 0


def _operations(heads: Heads, chunks: _Chunks) -> int:
    """Of a forward pass, about."""
    cells = chunks.number * chunks.rows * (chunks.before + chunks.rows // 2)
    return cells * FLOPS_OF_CELL["forward"] * heads.query * heads.dim


def _measure(
    points: list[_Chunks], site: Site, heads: Heads, stopwatch: Stopwatch, repeats: int, progress: bool
) -> dict[_Chunks, list[int]]:
    """Per point ns (forward, backward) of a chunk; a first round warms up and does not count."""
    laps: dict[_Chunks, list[list[int]]] = {chunks: [] for chunks in points}
    often = {chunks: _TIMES_QUICK if _operations(heads, chunks) <= _QUICK_OPERATIONS else 1 for chunks in points}
    rounds = points * (repeats + 1)
    for chunks in tqdm(rounds, desc="measuring kernel", unit="point", disable=None if progress else True, leave=False):
        laps[chunks].extend(_laps(site, heads, chunks, stopwatch, often[chunks]))
    return {
        chunks: [max(min(times) // chunks.number, 1) for times in zip(*found[often[chunks] :], strict=True)]
        for chunks, found in laps.items()
    }


def _laps(site: Site, heads: Heads, chunks: _Chunks, stopwatch: Stopwatch, often: int) -> list[list[int]]:
    """So often ns of the kernel's calls (forward, backward) on all chunks together."""
    rows, keys = chunks.rows, chunks.before + chunks.rows

    def normal(number: int, of_heads: int) -> torch.Tensor:
        return torch.randn(number, of_heads, heads.dim, device=site.device, dtype=site.dtype)

    def offsets(length: int) -> torch.Tensor:
        return torch.arange(0, chunks.number * length + 1, length, device=site.device, dtype=torch.int32)

    q, dout = (normal(chunks.number * rows, heads.query) for _ in range(2))
    k, v = (normal(chunks.number * keys, heads.kv) for _ in range(2))
    segments = offsets(rows), offsets(keys), rows, keys
    scale, calls = heads.dim**-0.5, 1 if site.device.type == "cpu" else _CALLS_ON_GPU

    def run(mark: Callable[[], None]) -> None:
        mark()
        for _ in range(calls):
            out, lse = document_attention(q, k, v, *segments, scale, backend=site.backend)
        mark()
        for _ in range(calls):
            document_attention_backward(dout, q, k, v, out, lse, *segments, scale, backend=site.backend)
        mark()

    return [[max(lap // calls, 1) for lap in stopwatch.laps(run)] for _ in range(often)]


def _alone(
    site: Site, stopwatch: Stopwatch, heads: Heads, longest: int, repeats: int
) -> tuple[dict[str, int], dict[str, int]]:
    """(FLOP/s of the deepest tile of one head alone, ns of a launch) by direction.

    A head's square with fewer tiles than multiprocessors takes as long as its deepest one: forward the last query tile
    along all keys, backward the first key tile along all queries.
    """
    one = Heads(1, 1, heads.dim)
    tiles = torch.cuda.get_device_properties(site.device).multi_processor_count // 2
    rows = min(tiles * GPU_TILES["forward"].rows, max(longest, 128))
    points = [_Chunks(rows, 0, 1), _Chunks(1, 0, 1)]
    long, short = _measure(points, site, one, stopwatch, repeats, progress=False).values()
    alone, launch = {}, {}
    for place, direction in enumerate(DIRECTIONS):
        tile = GPU_TILES[direction]
        cells = rows * (tile.rows if direction == "forward" else tile.keys)
        operations = FLOPS_OF_CELL[direction] * heads.dim * cells
        alone[direction] = max(operations * 1_000_000_000 // max(long[place] - short[place], 1), 1)
        launch[direction] = short[place]
    return alone, launch


def _copies(site: Site, heads: Heads, stopwatch: Stopwatch, repeats: int) -> tuple[int, int]:
    """bytes/s of gathering rows of K and V, and of adding them back to zeros."""
    rows = torch.randn(_COPIED_ROWS, 2, heads.kv, heads.dim, device=site.device, dtype=site.dtype)
    index = torch.arange(_COPIED_ROWS, device=site.device)

    def run(mark: Callable[[], None]) -> None:
        mark()
        packed = rows.index_select(0, index)
        mark()
        torch.zeros_like(rows).index_add_(0, index, packed)
        mark()

    laps = [stopwatch.laps(run) for _ in range(repeats + 1)][1:]
    select, add = (rows.nbytes * 1_000_000_000 // min(times) for times in zip(*laps, strict=True))
    return select, add

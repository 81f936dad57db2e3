#!/usr/bin/env python3
"""The tables of sharding.md, on seeded lengths, with the library that tools/compare_sharding.py calls.

    python benchmarks/sharding.py [PART ...]      targets families tolerance tile many torch; all by default

Prints Markdown. All of it takes about three minutes on one core; only the part "torch" imports torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import Any

import numpy as np
from tqdm import tqdm

from titan_wlb.planning.length_families import lengths_of_family
from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding.compare import Planned, planner_of_spec, run, score, sequences
from titan_wlb.planning.sharding.hybrid import TOLERANCES
from titan_wlb.planning.tiles import FLASH_TILE, Tile, causal_work

WINDOW, VARIABLE = 131_072, (65_536, 190_000)
RANKS = (2, 4, 8, 16, 32)
SEEDS = (101, 102, 103, 104, 105)
OF_SEED = 20  # sequences of each size

COLUMNS = (
    ("makespan", "makespan_mean", ".3f"),
    ("over bound", "makespan_over_bound_mean", ".4f"),
    ("p95", "makespan_over_bound_p95", ".4f"),
    ("K/V needed", "kv_needed_mean", ".3f"),
    ("busiest sender", "kv_busiest_sender_mean", ".3f"),
    ("gathered", "kv_gathered_mean", ".3f"),
    ("segments per rank", "segments_per_rank_mean", ".1f"),
    ("plan, ms", "plan_ms_mean", ".2f"),
    ("slowest plan", "plan_ms_max", ".1f"),
)


def main(parts: Sequence[str]) -> None:
    """Prints the tables of the parts."""
    for part in parts or _PARTS:
        print(f"\n{part}\n")
        for line in _PARTS[part]():
            print(line, flush=True)


def _targets() -> Iterator[str]:
    yield from _head("CP", "strategy", *(title for title, _, _ in COLUMNS))
    documents = _documents("skewed_web")
    yield f"(lower bound {_measured(documents, 'per_sequence', 2)['bound_mean']:.4f}, {len(documents)} sequences)"
    for cp in RANKS:
        for spec in ("per_sequence", "per_document", "hybrid"):
            yield f"| {cp} | `{spec}` | {_cells(_measured(documents, spec, cp))} |"


def _families() -> Iterator[str]:
    yield from _head("lengths", "CP", *(title for title, _, _ in COLUMNS))
    for name, documents in (
        ("long_context", _documents("long_context")),
        ("code_like", _documents("code_like")),
        ("skewed_web, a third as long", _documents("skewed_web", scale=3)),
    ):
        for cp in RANKS:
            yield f"| {name} | {cp} | {_cells(_measured(documents, 'hybrid', cp))} |"


def _tolerance() -> Iterator[str]:
    yield from _head("CP", "tolerance", *(title for title, _, _ in COLUMNS))
    documents = _documents("skewed_web")
    for cp in (4, 16):
        for tolerance in TOLERANCES:
            yield f"| {cp} | {tolerance} | {_cells(_measured(documents, f'hybrid,tolerance={tolerance}', cp))} |"


def _tile() -> Iterator[str]:
    yield from _head("scored at", "planned for", "CP", *(title for title, _, _ in COLUMNS[:3]))
    documents, forward, backward = _documents("skewed_web"), FLASH_TILE, Tile(64, 128)
    for scored in (forward, backward):
        for planned in (forward, backward):
            for cp in (4, 16):
                found = score("", list(run(planner_of_spec("hybrid", cp, planned, None), documents)), scored)
                yield f"| {scored} | {planned} | {cp} | {_cells(found, COLUMNS[:3])} |"


def _many() -> Iterator[str]:
    yield from _head("10,000 documents", "CP", "plan, ms", "over bound", "K/V needed", "chunks of cut documents")
    generator = np.random.Generator(np.random.PCG64(1))
    for name, lengths in (
        ("of 1 token", np.ones(10_000, dtype=np.int64)),
        ("of 13 tokens", np.full(10_000, 13)),
        ("log-normal around 8", 1 + np.floor(8 * np.exp(1.2 * generator.standard_normal(10_000))).astype(np.int64)),
        ("log-normal around 3,000", 1 + np.floor(3000 * np.exp(generator.standard_normal(10_000))).astype(np.int64)),
    ):
        for cp in (2, 8, 32):
            planner = planner_of_spec("hybrid", cp, FLASH_TILE, None)
            planned = list(run(planner, [lengths.tolist()] * 5))
            cut = sum(chunk.length < lengths[chunk.segment] for rank in planned[0].plan.ranks for chunk in rank)
            found = score("", planned, FLASH_TILE)
            values = (found["makespan_over_bound_mean"], found["kv_needed_mean"])
            yield f"| {name} | {cp} | {found['plan_ms_median']:.0f} | {values[0]:.4f} | {values[1]:.4f} | {cut} |"


def _torch() -> Iterator[str]:
    import torch

    from titan_wlb.compat import load_balancers as torchs

    torch.set_num_threads(1)
    columns = COLUMNS[:-1]
    yield from _head(f"CP (torch {torch.__version__})", "balancer", *(title for title, _, _ in columns), "flex blocks")
    documents = [
        row
        for seed in SEEDS
        for row in sequences(lengths_of_family("skewed_web", num_tokens=11 * WINDOW, seed=seed), WINDOW, WINDOW, 10)
    ]
    for cp in RANKS:
        padded = [[-(-length // (2 * cp)) * 2 * cp for length in row] for row in documents]
        of_torch: Sequence[tuple[str, Callable[..., Any], list[list[int]]]] = (
            ("torch head-tail", torchs.head_tail, documents),
            ("torch per-document head-tail, equal parts of its order", torchs.per_document_head_tail, padded),
            ("torch per-document head-tail, by rank as in 2.14", _by_rank(torchs.per_document_head_tail), padded),
            ("torch PTRR", torchs.ptrr, documents),
        )
        for name, order, rows in of_torch:
            found = score(name, [_planned(order, lengths, cp) for lengths in tqdm(rows, name, leave=False)], FLASH_TILE)
            blocks = f"{_in_blocks(rows, cp):.3f}" if name == "torch PTRR" else ""
            yield f"| {cp} | {name} | {_cells(found, columns)} | {blocks} |"
        for spec in ("per_sequence", "per_document", "hybrid"):
            yield f"| {cp} | `{spec}` | {_cells(_measured(documents, spec, cp), columns)} | |"


def _planned(order: Callable[..., Any], lengths: Sequence[int], cp: int) -> Planned:
    """What one of torch's orders of rows gives each rank, as chunks of documents; the time is that of the order."""
    start = time.process_time()
    rows = order(lengths, cp)
    seconds = time.process_time() - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ranks = []
    for of_rank in rows.numpy().astype(np.int64).reshape(cp, -1):
        documents = np.searchsorted(offsets, of_rank, side="right") - 1
        begins = np.flatnonzero((np.diff(of_rank, prepend=-2) != 1) | (np.diff(documents, prepend=-1) != 0))
        stops = np.append(begins[1:], len(of_rank))
        first = of_rank[begins] - offsets[documents[begins]]
        chunks = zip(documents[begins].tolist(), first.tolist(), (first + stops - begins).tolist(), strict=True)
        ranks.append(tuple(Chunk(*chunk) for chunk in chunks))
    return Planned(ShardPlan("torch", tuple(lengths), tuple(ranks)), seconds)


def _by_rank(order: Callable[..., Any]) -> Callable[..., Any]:
    """A document-major order, rank by rank: of each document the rank's part."""

    import torch

    def ordered(lengths: Sequence[int], cp: int) -> torch.Tensor:
        parts = order(lengths, cp).split(list(lengths))
        return torch.cat([part.view(cp, -1) for part in parts], dim=1).flatten()

    return ordered


def _in_blocks(documents: Sequence[Sequence[int]], cp: int) -> float:
    """Makespan of PTRR as flex attention computes it, in blocks of the sequence, over exact work."""
    from titan_wlb.compat.load_balancers import BLOCK, blocks_of_rows, ptrr

    makespans = []
    for lengths in documents:
        counts = blocks_of_rows(lengths).numpy()
        ranks = ptrr(lengths, cp).numpy()[::BLOCK].reshape(cp, -1) // BLOCK
        exact = int(causal_work(np.array(lengths)).sum())
        makespans.append(float(counts[ranks].sum(axis=1).max()) * BLOCK**2 * cp / exact)
    return mean(makespans)


def _documents(family: str, scale: int = 1) -> list[list[int]]:
    """Sequences of the window and of variable size, of all seeds; documents a ``scale``-th as long."""
    rows = []
    for seed in SEEDS:
        tokens = 2 * OF_SEED * VARIABLE[1]
        lengths = lengths_of_family(family, num_tokens=tokens, seed=seed, context_window=WINDOW // scale)
        rows += sequences(lengths, WINDOW, WINDOW, OF_SEED) + sequences(lengths[::-1], *VARIABLE, OF_SEED, seed)
    return rows


def _measured(documents: Sequence[Sequence[int]], spec: str, cp: int) -> dict[str, Any]:
    planner = planner_of_spec(spec, cp, FLASH_TILE, None)
    bar = tqdm(run(planner, documents), f"{spec}, CP {cp}", len(documents), leave=False, disable=None)
    return score(spec, list(bar), FLASH_TILE)


def _head(*titles: str) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"


def _cells(found: dict[str, Any], columns: Sequence[tuple[str, str, str]] = COLUMNS) -> str:
    return " | ".join(format(found[key], form) for _, key, form in columns)


_PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "targets": _targets,
    "families": _families,
    "tolerance": _tolerance,
    "tile": _tile,
    "many": _many,
    "torch": _torch,
}

if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - _PARTS.keys()
    if unknown:
        sys.exit(f"{', '.join(sorted(unknown))} is no part; choose of {', '.join(_PARTS)}")
    main(sys.argv[1:])

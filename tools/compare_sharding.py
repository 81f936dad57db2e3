#!/usr/bin/env python3
"""Compares shardings of packed sequences over context-parallel ranks: balance, keys and values to move, planning time.

    tools/compare_sharding.py --lengths lengths.txt --context-window 131072 --cp 8 --sequences 200 \\
        --strategies per_sequence per_document hybrid hybrid,tolerance=0.2 adaptive --json out.json --plans plans.jsonl

A sequence is W tokens of documents in arrival order; the document at its end is cut there, and its rest begins the next
one. --context-window MIN:MAX draws each sequence's size, seeded. Strategies are per_sequence, per_document, hybrid,
hybrid,tolerance=T and adaptive; planners and measures are those of the training. No torch is needed.

makespan            work of the slowest rank in whole kernel tiles, over the exact causal work / CP
over bound          makespan over the lower bound: the tiles of the uncut documents over their exact work
spread              most minus fewest tokens of a rank, the largest over the sequences
K/V needed          rows of keys and values that a rank lacks on the mean, over those it would receive in an all-gather
busiest sender      rows that the busiest rank sends, over the same
gathered            rows that an all-gather of the whole cut documents would move, over the same
segments            chunks that a rank holds, on the mean
plan                CPU time of the planner per sequence
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from titan_wlb.planning.lengths_file import read_lengths
from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.compare import Planned, planner_of_spec, run, score, sequences
from titan_wlb.planning.tiles import FLASH_TILE, Tile


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the lengths, runs every strategy, shows the table and writes the files."""
    options = _parser().parse_args(arguments)
    try:
        _compare(options)
    except (ValueError, OSError) as error:
        sys.exit(f"compare_sharding: {' '.join(str(error).split())}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """In one line, as everything else that is refused."""
        sys.exit(f"{self.prog}: {message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("compare_sharding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--lengths", type=Path, required=True, metavar="FILE", help="in arrival order: one a line, or a JSON array")
    add("--context-window", required=True, metavar="W", help="tokens of a sequence, or MIN:MAX")
    add("--cp", type=int, required=True, metavar="C", help="context-parallel ranks")
    add("--sequences", type=int, required=True, metavar="B", help="to shard")
    add("--seed", type=int, default=0, metavar="N", help="of the sizes that MIN:MAX draws (default: 0)")
    add("--tile", default=str(FLASH_TILE), metavar="ROWSxKEYS", help=f"of the attention kernel (default: {FLASH_TILE})")
    add("--profile", type=Path, metavar="P", help="kernel profile for adaptive (default: the H100's that ships)")
    add("--strategies", nargs="+", required=True, metavar="NAME")
    add("--json", type=Path, metavar="OUT", help="measures: a JSON list, an object per strategy")
    add("--plans", type=Path, metavar="PLANS", help="every sequence of every strategy: JSON lines")
    add("--picture", type=Path, metavar="FILE", help="a sequence, ranks as colours over documents; needs matplotlib")
    add("--picture-sequence", type=int, default=0, metavar="I", help="which one, from 0 (default: 0)")
    return parser


def _compare(options: argparse.Namespace) -> None:
    pyplot = _pyplot() if options.picture else None
    for key in ("cp", "sequences"):
        if (value := getattr(options, key)) < 1:
            raise ValueError(f"--{key} {value} must be at least 1")
    if not 0 <= options.picture_sequence < options.sequences:
        raise ValueError(f"--picture-sequence {options.picture_sequence} must be from 0 to {options.sequences - 1}")
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed} must be at least 0")
    tile = Tile.of_text(options.tile)
    documents = sequences(
        read_lengths(options.lengths), *_window(options.context_window), options.sequences, options.seed
    )
    planners = [planner_of_spec(spec, options.cp, tile, options.profile) for spec in options.strategies]
    results, shown = [], []
    with ExitStack() as stack:
        plans, measures = (
            stack.enter_context(path.open("w")) if path else None for path in (options.plans, options.json)
        )
        bar = stack.enter_context(tqdm(total=len(planners) * len(documents), unit="sequence", disable=None))
        for spec, planner in zip(options.strategies, planners, strict=True):
            bar.set_description(spec)
            planned: list[Planned] = []
            for sequence in run(planner, documents):
                if plans:
                    plans.write(json.dumps(sequence.to_json(spec, len(planned)), separators=(",", ":")) + "\n")
                planned.append(sequence)
                bar.update()
            results.append(score(spec, planned, tile))
            shown.append(planned[options.picture_sequence].plan)
        if measures:
            measures.write(json.dumps(results, indent=1) + "\n")
    print("\n".join(table(results)))
    if pyplot:
        _draw(pyplot, options.picture, options.strategies, shown)


def _window(text: str) -> tuple[int, int]:
    """(least, most) tokens of a sequence."""
    found = re.fullmatch(r"([0-9]{1,12})(?::([0-9]{1,12}))?", text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise ValueError(f"--context-window {text!r} must be tokens, at least 1, or MIN:MAX with MIN at most MAX")
    return low, high


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("makespan mean", "makespan_mean", ".3f"),
    ("p95", "makespan_p95", ".3f"),
    ("over bound mean", "makespan_over_bound_mean", ".4f"),
    ("p95", "makespan_over_bound_p95", ".4f"),
    ("spread", "token_spread_max", "d"),
    ("K/V needed", "kv_needed_mean", ".3f"),
    ("busiest sender", "kv_busiest_sender_mean", ".3f"),
    ("gathered", "kv_gathered_mean", ".3f"),
    ("segments", "segments_per_rank_mean", ".2f"),
    ("plan, ms", "plan_ms_mean", ",.2f"),
)


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for the screen, in Markdown."""
    rows = [["strategy", *(title for title, _, _ in COLUMNS)]]
    rows += [[result["name"], *(format(result[key], form) for _, key, form in COLUMNS)] for result in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    lines.insert(1, "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|")
    return lines


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--picture needs matplotlib: pip install 'titan-wlb[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw(pyplot: Any, path: Path, specs: Sequence[str], plans: Sequence[ShardPlan]) -> None:
    """A line for each document, the longest on top, in the colours of the ranks that hold its rows."""
    lengths = plans[0].lengths
    order = sorted(range(len(lengths)), key=lambda document: (-lengths[document], document))
    line = {document: place for place, document in enumerate(order)}
    figure, axes = pyplot.subplots(
        1, len(plans), figsize=(1 + 4 * len(plans), 1.5 + min(0.16 * len(lengths), 8)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    colours = pyplot.get_cmap("turbo", len(plans[0].ranks))
    for axis, spec, plan in zip(axes[0], specs, plans, strict=True):
        for rank, chunks in enumerate(plan.ranks):
            axis.barh(
                [line[chunk.segment] for chunk in chunks],
                [chunk.length for chunk in chunks],
                left=[chunk.start for chunk in chunks],
                height=0.9,
                color=colours(rank),
                label=f"rank {rank}",
            )
        axis.set_title(spec)
        axis.set_xlabel("token of the document")
    axes[0][0].set_ylabel("documents")
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

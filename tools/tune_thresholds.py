#!/usr/bin/env python3
"""Shows what balance costs in delay on a list of document lengths, and picks a packer's knob for a limit on delay.

    tools/tune_thresholds.py --lengths lengths.txt --context-window 131072 --micro-batches 4 --cost 0,1,1/24576 \\
        --max-delay-iterations 0.5 --json out.json --plot frontier.png
    tools/tune_thresholds.py --index outputs/debug/wlb/index/... --context-window 4096 --micro-batches 4 \\
        --profile outputs/debug/wlb/profile.json

variable_length    number (1 to 4) and values of wlb.outlier_thresholds, the paper's packer
lookahead          wlb.balance_tolerance

time-weighted      sum over steps of the largest work / sum of the mean works: what a run pays for imbalance
p95                the imbalance degree (N x largest work / sum of works) that 95 % of the steps do not exceed
delay              mean over steps of the tokens that wait after the step / mean tokens trained per step, in steps
lower bound        no packer that draws N x W tokens a step and keeps every step within the tolerance named delays
                   less, even if it knows all documents to come; a bound below what can be reached
steps              that were scored: few at first, more where a knob seemed to be the best; of those one is picked

Packers run on the sample in new orders, as training's epochs have them. No torch is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from titan_wlb.data.index import open_index
from titan_wlb.planning.config import PlannerConfig
from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.lengths_file import read_lengths
from titan_wlb.planning.order import EpochOrder
from titan_wlb.planning.packing.auto import TUNED_FIELDS, sample_of, tune_config
from titan_wlb.planning.packing.delay_bound import delay_lower_bound
from titan_wlb.planning.packing.specs import workload_of_text
from titan_wlb.planning.packing.trials import Sample, Tuned
from titan_wlb.planning.profile_file import read_profile
from titan_wlb.planning.workload import Workload

PACKERS = tuple(TUNED_FIELDS)
BOUND_TOLERANCES = (0.001, 0.01, 0.05)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the lengths, tunes, shows the table and writes the files."""
    options = _parser().parse_args(arguments)
    try:
        _tune(options)
    except (ValueError, OSError) as error:
        sys.exit(f"tune_thresholds: {' '.join(str(error).split())}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lengths", type=Path, metavar="FILE", help="document lengths: one a line, or a JSON array")
    source.add_argument(
        "--index", type=Path, metavar="FOLDER", help="a document index that training or prepare_data built"
    )
    add("--context-window", type=int, required=True, metavar="W", help="tokens (training.seq_len)")
    add("--micro-batches", type=int, required=True, metavar="N", help="of a step (training.global_batch_size)")
    cost = parser.add_mutually_exclusive_group(required=True)
    cost.add_argument("--cost", metavar="A,B,C", help="a document of d tokens costs A + B*d + C*d^2")
    cost.add_argument("--profile", type=Path, metavar="FILE", help="the cost, as tools/profile_latency.py measured it")
    add("--max-tokens", type=int, metavar="M", help="hard cap of a micro-batch (default: 2 W)")
    add(
        "--max-delay-iterations",
        type=float,
        default=0.5,
        metavar="D",
        help="the limit, in steps (default: %(default)s)",
    )
    add(
        "--sample", type=int, default=60, metavar="B", help="of a file, global batches looked at (default: %(default)s)"
    )
    add("--packers", nargs="+", choices=PACKERS, default=PACKERS, metavar="NAME", help="default: %(default)s")
    add("--json", type=Path, metavar="OUT", help="all that was tried")
    add("--plot", type=Path, metavar="FILE", help="the frontier as a picture; needs matplotlib")
    return parser


def _tune(options: argparse.Namespace) -> None:
    pyplot = _pyplot() if options.plot else None
    configs, lengths = _configs(options), _lengths(options)
    tuned: dict[str, Tuned[Any]] = {}
    for config in configs:
        with tqdm(desc=config.packing, unit="trial", disable=None, leave=False) as bar:
            _, tuned[config.packing] = tune_config(
                config, lengths, options.max_delay_iterations, on_try=lambda _, bar=bar: bar.update()
            )
    sample = sample_of(configs[0], lengths)
    bounds = _lower_bounds(sample)
    if sample.num_micro_batches < options.micro_batches:
        print(f"with {sample.num_micro_batches} micro-batches, from which on more of them change little\n")
    print("\n".join(report(tuned, bounds)))
    if options.json:
        options.json.write_text(json.dumps(_to_json(sample, configs[0], tuned, bounds), indent=1) + "\n")
    if pyplot:
        _draw(pyplot, options.plot, tuned, bounds)


def _configs(options: argparse.Namespace) -> list[PlannerConfig]:
    """Per packer what it is tried with, its knob apart."""
    for flag in ("sample", "context_window", "micro_batches"):
        if getattr(options, flag) < 1:
            raise ValueError(f"--{flag.replace('_', '-')} {getattr(options, flag)} must be at least 1")
    if not 0 <= options.max_delay_iterations < float("inf"):
        raise ValueError(f"--max-delay-iterations {options.max_delay_iterations} must be a number of steps >= 0")
    return [
        PlannerConfig(
            packing=name,
            num_micro_batches=options.micro_batches,
            context_window=options.context_window,
            max_tokens=options.max_tokens or 2 * options.context_window,
            workload=_workload(options),
        )
        for name in options.packers
    ]


def _lengths(options: argparse.Namespace) -> np.ndarray:
    """Of all documents of an index, or of a file's first global batches."""
    if options.index:
        return np.concatenate([segment.lengths() for segment in open_index(options.index).segments()])
    lengths = read_lengths(options.lengths)
    tokens = options.sample * options.micro_batches * options.context_window
    return lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]


def _workload(options: argparse.Namespace) -> Workload:
    if not options.profile:
        return workload_of_text(options.cost, options.context_window)
    profile = read_profile(options.profile)
    return profile.workload(profile.shape, tp=profile.tp, cp=profile.cp)


def _lower_bounds(sample: Sample) -> dict[float, float]:
    """Tolerance -> bound, over as many documents as the longest trials saw, in the order that these had."""
    lengths = Intake(EpochOrder(KnownLengths(sample.lengths), seed=1)).peek(sample.longest_trial_tokens)
    arguments = lengths, sample.num_micro_batches, sample.context_window, sample.workload
    return {tolerance: delay_lower_bound(*arguments, tolerance) for tolerance in BOUND_TOLERANCES}


def report(tuned: dict[str, Tuned[Any]], bounds: dict[float, float]) -> list[str]:
    """Lines for the screen."""
    lines = ["| packer | knob | time-weighted | p95 | delay | steps | |", "|---|---|---|---|---|---|---|"]
    for name, found in tuned.items():
        shown = {one.knob: one for one in (*found.frontier(), found.best)}
        for one in sorted(shown.values(), key=lambda one: one.delay):
            mark = "**picked**" if one == found.best else ""
            lines.append(
                f"| {name} | {_knob(name, one.knob)} | {one.imbalance:.5f} | {one.imbalance_p95:.5f} | {one.delay:.3f} "
                f"| {one.steps} | {mark} |"
            )
    lines.append("")
    for name, found in tuned.items():
        if not found.within_limit:
            lines.append(
                f"{name}: nothing tried stays within a delay of {found.max_delay_iterations}; picked the least"
            )
    lines += [
        f"lower bound on the delay of packers that keep every step within {100 * tolerance:g} %: {bound:.3f}"
        for tolerance, bound in bounds.items()
    ]
    return lines


def _knob(name: str, knob: Any) -> str:
    if name == "variable_length":
        return f"outlier_thresholds = {list(knob)}"
    return f"balance_tolerance = {knob / 1_000_000:g}"


def _to_json(
    sample: Sample, config: PlannerConfig, tuned: dict[str, Tuned[Any]], bounds: dict[float, float]
) -> dict[str, Any]:
    return {
        "documents": len(sample.lengths),
        "num_micro_batches": sample.num_micro_batches,
        "context_window": sample.context_window,
        "max_tokens": config.max_tokens,
        "workload": sample.workload.to_json(),
        "delay_lower_bound": [{"tolerance": key, "delay": value} for key, value in bounds.items()],
        "packers": [
            {
                "packer": name,
                "max_delay_iterations": found.max_delay_iterations,
                "within_limit": found.within_limit,
                "best": asdict(found.best),
                "frontier": list(map(asdict, found.frontier())),
                "tried": list(map(asdict, found.tried)),
            }
            for name, found in tuned.items()
        ],
    }


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install -e '.[plot]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _draw(plt: Any, path: Path, tuned: dict[str, Tuned[Any]], bounds: dict[float, float]) -> None:
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for color, (name, found) in zip(("#0072B2", "#D55E00"), tuned.items(), strict=False):
        every = [(one.delay, one.imbalance - 1) for one in found.tried]
        line = [(one.delay, one.imbalance - 1) for one in found.frontier()]
        axis.plot(*zip(*every, strict=True), ".", color=color, alpha=0.35)
        axis.plot(*zip(*line, strict=True), "-", color=color, label=name)
        axis.plot(found.best.delay, found.best.imbalance - 1, "*", color=color, markersize=14)
    limit = next(iter(tuned.values())).max_delay_iterations
    axis.axvline(limit, color="black", linewidth=0.8, linestyle="--", label="limit")
    tolerance, bound = min(bounds.items())
    axis.axvline(bound, color="#009E73", linewidth=0.8, label=f"lower bound, all steps within {100 * tolerance:g} %")
    axis.set_yscale("log")
    axis.set_xlim(0, 1.1 * max(limit, *(one.delay for found in tuned.values() for one in found.frontier())))
    axis.set_xlabel("delay, steps")
    axis.set_ylabel("time-weighted imbalance - 1")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()

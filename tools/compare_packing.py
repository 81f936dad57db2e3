#!/usr/bin/env python3
"""Compares packers on a list of document lengths: balance, delay, tokens, planning time.

    tools/compare_packing.py --lengths lengths.txt --context-window 131072 --micro-batches 4 --global-batches 260 \\
        --warmup 60 --cost 0,1,1/24576 --packers original fixed_length,packing_window=8 \\
        variable_length,outlier_thresholds=32768:65536 --json out.json --plans plans.jsonl

A SPEC is name[,key=value...] with keys of the training's [wlb] section, list values joined by ':'. The packers, the
intake and the measures are those of the training. No torch is needed.

imbalance degree    N x largest work / sum of works of a step's micro-batches; 1 is perfect
time-weighted       sum over steps of the largest work / sum of the mean works: what the whole run pays
over whole          N x largest work per token, over the work per token of whole documents: what the run pays where it
                    counts that `original` cuts documents, which removes attention work (and context); its other
                    columns are against its own perfect balance
delay               mean over steps of the tokens that wait after it / mean tokens trained per step, in steps
trained             mean over trained tokens of the steps from arrival to training
oldest              largest age in steps that any document reached, trained or still waiting
token variation     standard deviation of the tokens per step / their mean
long tokens repeat  autocorrelation from step to step of the share of tokens in documents of half a window or more
step time           under --schedule, over that of the same work in equal micro-batches; forward:backward is 1:2
plan                CPU time of the packer per step
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from titan_wlb.planning.lengths_file import read_lengths
from titan_wlb.planning.packing.compare import Job, Step, run, score
from titan_wlb.planning.packing.specs import config_of_spec, workload_of_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the lengths, runs every packer, shows the table and writes the files."""
    options = _parser().parse_args(arguments)
    try:
        _compare(options)
    except (ValueError, OSError) as error:
        sys.exit(f"compare_packing: {' '.join(str(error).split())}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """In one line, as everything else that is refused."""
        sys.exit(f"{self.prog}: {message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("compare_packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--lengths", type=Path, required=True, metavar="FILE", help="in arrival order: one a line, or a JSON array")
    add("--context-window", type=int, required=True, metavar="W", help="tokens")
    add("--micro-batches", type=int, required=True, metavar="N", help="of a global batch")
    add("--global-batches", type=int, required=True, metavar="B", help="steps to plan, the warm-up among them")
    add("--warmup", type=int, default=0, metavar="K", help="first steps, not scored; tuning looks at them alone")
    add("--cost", required=True, metavar="A,B,C", help="a document of d tokens costs A + B*d + C*d^2")
    add("--max-tokens", type=int, metavar="M", help="hard cap of a micro-batch (default: 2 W)")
    add("--dp", type=int, default=1, metavar="D", help="data-parallel ranks that micro-batches are dealt to")
    add("--pp", type=int, metavar="P", help="pipeline ranks, with --schedule")
    add("--schedule", metavar="NAME", help="pipeline schedule that step times are computed for")
    add("--packers", nargs="+", required=True, metavar="SPEC")
    add("--json", type=Path, metavar="OUT", help="measures: a JSON list, an object per SPEC")
    add("--plans", type=Path, metavar="PLANS", help="every step of every SPEC: JSON lines")
    add("--plot", type=Path, metavar="FILE", help="a picture; needs matplotlib")
    return parser


def _compare(options: argparse.Namespace) -> None:
    pyplot = _pyplot() if options.plot else None
    for key in ("context_window", "micro_batches", "global_batches", "max_tokens", "dp", "pp"):
        if (value := getattr(options, key)) is not None and value < 1:
            raise ValueError(f"--{key.replace('_', '-')} {value} must be at least 1")
    if (options.pp is None) != (options.schedule is None):
        raise ValueError("--pp and --schedule are given together or not at all")
    job = Job(
        lengths=read_lengths(options.lengths),
        context_window=options.context_window,
        num_micro_batches=options.micro_batches,
        global_batches=options.global_batches,
        warmup=options.warmup,
        workload=workload_of_text(options.cost, options.context_window),
        max_tokens=options.max_tokens or 2 * options.context_window,
        dp=options.dp,
        pp=options.pp or 1,
        schedule=options.schedule or "",
    )
    with tqdm(desc="tuning", unit="trial", leave=False, disable=None) as bar:
        configs = [config_of_spec(spec, job, bar.update) for spec in options.packers]
    results, degrees = [], []
    with ExitStack() as stack:
        plans, measures = (
            stack.enter_context(path.open("w")) if path else None for path in (options.plans, options.json)
        )
        bar = stack.enter_context(tqdm(total=len(configs) * job.global_batches, unit="step", disable=None))
        for spec, config in zip(options.packers, configs, strict=True):
            bar.set_description(spec)
            steps: list[Step] = []
            for step in run(job, config):
                steps.append(step)
                bar.update()
                if plans:
                    plans.write(json.dumps(step.to_json(spec), separators=(",", ":")) + "\n")
            bar.update(job.global_batches - len(steps))
            results.append(score(job, spec, config, steps))
            degrees.append([step.plan.imbalance_degree for step in steps[job.warmup :]])
        if measures:
            measures.write(json.dumps(results, indent=1) + "\n")
    print("\n".join(table(results)))
    if pyplot:
        _draw(pyplot, options.plot, results, degrees)


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("imbalance mean", "imbalance_degree_mean", ".4f"),
    ("p95", "imbalance_degree_p95", ".4f"),
    ("time-weighted", "imbalance_time_weighted", ".4f"),
    ("over whole", "time_over_whole_documents", ".3f"),
    ("step time", "step_time_over_balanced_mean", ".4f"),
    ("delay", "delay_iterations_mean", ".3f"),
    ("trained", "delay_trained_mean", ".3f"),
    ("oldest", "oldest_waiting", "d"),
    ("token variation", "tokens_per_step_cv", ".1%"),
    ("max tokens / W", "max_tokens_over_window", ".2f"),
    ("in flight, max", "in_flight_tokens_max", ",d"),
    ("long tokens repeat", "long_share_autocorrelation", "+.2f"),
    ("plan, ms", "plan_ms_mean", ",.1f"),
)


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for the screen, in Markdown."""
    columns = [column for column in COLUMNS if column[1] in results[0]]
    rows = [["packer", *(title for title, _, _ in columns)]]
    rows += [[result["name"], *(format(result[key], form) for _, key, form in columns)] for result in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    lines.insert(1, "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|")
    if any(result["config"]["packing"] == "original" for result in results):
        lines.append(
            "original cuts documents, which removes attention work: its imbalance is against its own perfect balance; "
            '"over whole" compares it with the others.'
        )
    return lines


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'titan-wlb[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw(pyplot: Any, path: Path, results: Sequence[dict[str, Any]], degrees: Sequence[Sequence[float]]) -> None:
    """Balance against delay, and how the steps' imbalance degrees are distributed."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for result, of_steps in zip(results, degrees, strict=True):
        left.scatter(result["delay_iterations_mean"], result["imbalance_time_weighted"], label=result["name"])
        share = np.arange(1, len(of_steps) + 1) / len(of_steps)
        right.plot(sorted(of_steps), share)
    left.set_xlabel("delay, steps")
    left.set_ylabel("imbalance, time-weighted")
    right.set_xlabel("imbalance degree of a step")
    right.set_ylabel("share of steps at most as unbalanced")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

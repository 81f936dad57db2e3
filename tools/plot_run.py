#!/usr/bin/env python3
"""Draws what packing did to a run, or to two runs side by side.

    tools/plot_run.py outputs/plain outputs/wlb --names Plain-4D WLB-LLM --output run.png

Per run: above, the micro-batches of one step (that with the median imbalance degree) as stacks of documents, as high
as their predicted work over the mean micro-batch's; below, where each rank's time went. Needs a run with
--wlb.log_documents, and matplotlib.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from titan_wlb.metrics.jsonl import read_records
from titan_wlb.records import StepRecord
from titan_wlb.report.lines import StepLines
from titan_wlb.report.runs import cost_features, document_costs, document_lengths, line_imbalance_degree

# Okabe and Ito's palette, which colour-blind readers can tell apart
TIMES = {
    "compute": "#0072B2",
    "pipeline": "#E69F00",
    "cp": "#CC79A7",
    "fsdp": "#D55E00",
    "data": "#009E73",
    "starved": "#BBBBBB",
    "other": "#DDDDDD",
}
WARM_UP_STEPS = 2


def main() -> None:
    """Reads the runs' files and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="dump folder of a run")
    parser.add_argument("--names", nargs="+", help="titles of the runs; default: the folders' names")
    parser.add_argument(
        "--step", type=int, help="step whose micro-batches are drawn; default: the most unbalanced of the first run"
    )
    parser.add_argument("--output", type=Path, default=Path("run.png"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        sys.exit("tools/plot_run.py needs matplotlib: pip install -e '.[plot]'")
    matplotlib.use("Agg")
    names = arguments.names or [run.name for run in arguments.runs]
    if len(names) != len(arguments.runs):
        parser.error(f"--names has {len(names)} titles for {len(arguments.runs)} runs")
    draw([read_run(run) for run in arguments.runs], names, arguments.step, arguments.output)
    print(f"wrote {arguments.output}")


def read_run(folder: Path) -> tuple[dict[int, dict], dict[int, list[StepRecord]]]:
    """(step -> line of documents.jsonl, step -> records of all ranks behind the warm-up steps)."""
    documents, records = folder / "wlb" / "documents.jsonl", folder / "wlb" / "records.jsonl"
    for path in (documents, records):
        if not path.exists():
            sys.exit(f"{path} does not exist; train with --wlb.log_documents and --job.dump_folder {folder}")
    plans = dict(StepLines(documents))
    return plans, {step: ranks for step, _, _, ranks in read_records(records) if step > WARM_UP_STEPS}


def draw(runs: list, names: list[str], step: int | None, output: Path) -> None:
    """One column a run."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(runs), figsize=(4.6 * len(runs), 6.2), squeeze=False, sharey="row", layout="constrained"
    )
    for (plans, records), name, (above, below) in zip(runs, names, axes.T, strict=True):
        shown = step or sorted(plans, key=lambda number: line_imbalance_degree(plans[number]))[len(plans) // 2]
        _draw_micro_batches(above, plans[shown], document_costs(list(plans.values())), name, shown)
        _draw_times(below, records)
    axes[0][0].set_ylabel("predicted work / mean")
    axes[1][0].set_ylabel("ms per step")
    figure.legend(*axes[1][-1].get_legend_handles_labels(), loc="outside lower center", ncols=len(TIMES), frameon=False)
    figure.savefig(output, dpi=150)


def _draw_micro_batches(axis, line: dict, cost_model: np.ndarray, name: str, step: int) -> None:
    micro_batches = line["micro_batches"]
    mean = sum(micro_batch["cost"] for micro_batch in micro_batches) / len(micro_batches) / 1e6
    for place, micro_batch in enumerate(micro_batches):
        base = 0.0
        for height in cost_features(document_lengths(micro_batch)) @ cost_model / mean:
            axis.bar(place, height, bottom=base, width=0.8, color="#56B4E9", edgecolor="white", linewidth=0.4)
            base += height
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axis.set_title(f"{name}: step {step}, imbalance degree {line_imbalance_degree(line):.2f}", fontsize=10)
    axis.set_xticks(range(len(micro_batches)), [f"DP {m['dp_rank']}" for m in micro_batches])
    axis.set_xlabel("micro-batches, a block a document")


def _draw_times(axis, records: dict[int, list[StepRecord]]) -> None:
    ranks = range(len(next(iter(records.values()))))
    base = [0.0 for _ in ranks]
    for name, color in TIMES.items():
        means = [sum(step[rank].ms(name) for step in records.values()) / len(records) for rank in ranks]
        axis.bar(ranks, means, bottom=base, width=0.8, color=color, label=name)
        base = [below + mean for below, mean in zip(base, means, strict=True)]
    idle = sum(record.ms("idle") for step in records.values() for record in step)
    wall = sum(record.ms("wall") for step in records.values() for record in step)
    axis.set_title(f"{len(records)} steps, idle share {100 * idle / wall:.1f} %", fontsize=10)
    axis.set_xticks(ranks, [f"rank {rank}" for rank in ranks])


if __name__ == "__main__":
    main()

"""Tables and picture of convergence.md, from the records of the runs and the losses of their final models."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# (packing, seed) -> measures of each step
Records = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]

BASELINE = "original"
LAST = 0.2  # of the tokens that all runs have trained, the share over which the final training loss is a mean
SMOOTHING = 65_536  # tokens over which the picture's curves are running means
COLORS = {  # Okabe and Ito's palette, which colour-blind readers can tell apart
    "original": "#000000",
    "fixed_length, 1 global batch": "#E69F00",
    "fixed_length, 8 global batches": "#D55E00",
    "variable_length": "#0072B2",
    "lookahead": "#009E73",
    "lookahead, steady tokens": "#CC79A7",
}


def training_table(records: Records) -> str:
    """Of the training itself, as rows of convergence.md: means over the seeds, of losses also the least and largest."""
    curves = {run: curve_of(steps) for run, steps in records.items()}
    common = min(curve.num_tokens for curve in curves.values())
    losses: dict[str, dict[int, float]] = {}
    for (packing, seed), curve in curves.items():
        losses.setdefault(packing, {})[seed] = float(curve.mean((1 - LAST) * common, common))
    heads = ["packing", "seeds", "steps", "tokens", "a step's vary by", "imbalance degree", "delay, steps", "loss"]
    lines = [[*heads, f"minus `{BASELINE}`'s"]]
    for packing, of_seeds in losses.items():
        mine = [run for run in curves if run[0] == packing]
        tokens = statistics.mean(curves[run].num_tokens for run in mine)
        steps = statistics.mean(len(records[run]) for run in mine)
        degree = statistics.mean(m["wlb/imbalance_degree/predicted"] for run in mine for m in records[run])
        delay = statistics.mean(records[run][-1]["wlb/delay_iterations"] for run in mine)
        variation = statistics.mean(statistics.pstdev(t) / statistics.mean(t) for t in (curves[r].tokens for r in mine))
        row = [packing, f"{len(mine)}", f"{steps:g}", f"{tokens:,.0f}", f"{100 * variation:.1f} %", f"{degree:.3f}"]
        lines.append([*row, f"{delay:.2f}", spread(of_seeds.values()), differences(of_seeds, losses.get(BASELINE, {}))])
    return as_table(lines)


def evaluation_table(evaluation: dict[str, Any], long_from: int) -> str:
    """Of documents that no run has trained, as rows of convergence.md: all, then apart from ``long_from`` tokens on."""
    lengths = np.array(evaluation["lengths"])
    groups = {
        "all": lengths > 0,
        f"below {long_from}": lengths < long_from,
        f"from {long_from} on": lengths >= long_from,
    }
    columns = [["packing", *dict.fromkeys(run["packing"] for run in evaluation["runs"])]]
    for name, group in groups.items():
        labels = int((lengths - 1)[group].sum())
        losses: dict[str, dict[int, float]] = {}
        for run in evaluation["runs"]:
            losses.setdefault(run["packing"], {})[run["seed"]] = float(np.array(run["losses"])[group].sum() / labels)
        columns.append(
            [
                f"{name}: {group.sum()} documents, {labels:,} labels",
                *(spread(of_seeds.values()) for of_seeds in losses.values()),
            ]
        )
        baseline = losses.get(BASELINE, {})
        columns.append([f"minus `{BASELINE}`'s", *(differences(of_seeds, baseline) for of_seeds in losses.values())])
    return as_table(list(zip(*columns, strict=True)))


def as_table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown, the first line being its head."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Mean (least to largest)."""
    values = list(values)
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def differences(losses: Mapping[int, float], baseline: Mapping[int, float]) -> str:
    """Of losses by seed to the baseline's of the same seed: mean (least to largest); empty where no seed is in both.

    {0: 5.0, 1: 4.0} and {0: 4.5, 1: 4.25}    +0.125 (-0.250 to +0.500)
    """
    pairs = [loss - baseline[seed] for seed, loss in losses.items() if seed in baseline]
    return spread(pairs, "+.3f") if pairs else ""


@dataclass(frozen=True)
class Curve:
    """A run's loss over the tokens trained: tokens and mean loss of each step."""

    tokens: Sequence[float]
    losses: Sequence[float]

    @property
    def num_tokens(self) -> float:
        """Trained in all."""
        return sum(self.tokens)

    def mean(self, start: Any, stop: Any) -> Any:
        """Mean loss per token from one number of tokens trained to another; numbers or arrays of them.

        steps of 30 50 10 10 tokens with losses 9 5 3 2    from 70 to 100: (10 x 5 + 10 x 3 + 10 x 2) / 30 = 3.33
        """
        tokens = np.concatenate([[0.0], np.cumsum(self.tokens)])
        sums = np.concatenate([[0.0], np.cumsum(np.multiply(self.tokens, self.losses))])
        return (np.interp(stop, tokens, sums) - np.interp(start, tokens, sums)) / (stop - start)


def curve_of(steps: Sequence[Mapping[str, Any]]) -> Curve:
    """Of a run's records."""
    return Curve([measures["wlb/tokens_per_step"] for measures in steps], [measures["loss"] for measures in steps])


def draw(records: Records, image: Path) -> None:
    """Loss over tokens trained: above means over the seeds, below those minus ``original``'s, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = {run: curve_of(steps) for run, steps in records.items()}
    common = min(curve.num_tokens for curve in curves.values())
    stops = np.linspace(min(SMOOTHING, common / 2), common, 200)
    smooth = {run: curve.mean(stops - stops[0], stops) for run, curve in curves.items()}
    baseline = {seed: losses for (packing, seed), losses in smooth.items() if packing == BASELINE}
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7.5), sharex=True, layout="constrained")
    for packing, color in COLORS.items():
        mine = {seed: losses for (name, seed), losses in smooth.items() if name == packing}
        if not mine:
            continue
        above.plot(stops / 1e6, np.mean(list(mine.values()), axis=0), color=color, label=packing, linewidth=1.2)
        gaps = np.array([losses - baseline[seed] for seed, losses in mine.items() if seed in baseline])
        if len(gaps):
            below.plot(stops / 1e6, gaps.mean(axis=0), color=color, linewidth=1.2)
            below.fill_between(stops / 1e6, gaps.min(axis=0), gaps.max(axis=0), color=color, alpha=0.12, linewidth=0)
    above.set_ylabel("training loss, nats per token")
    below.set_ylabel(f"the same minus {BASELINE}'s")
    below.set_xlabel("tokens trained, millions")
    above.legend(frameon=False)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110)

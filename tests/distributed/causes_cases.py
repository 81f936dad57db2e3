"""Which delays are planted to find their causes, and what the replay of a run's records says of them. No torch here.

FOLDER/<layout>/wlb/records.jsonl    the run's records, as the product writes them
FOLDER/<layout>/late.json            a list of [step, cell, ms that the delay took], by causes_worlds.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import planted_cases
from planted_cases import CP_2, FSDP_2, KINDS, NONE, PLACES, PP_2, Cell, Layout

from titan_wlb.metrics.jsonl import read_records
from titan_wlb.planning.timeline.causes import Causes, SlowRanks, causes
from titan_wlb.planning.timeline.schedule import build_schedule

DELAYS_MS = (20, 50, 100)
CELLS = tuple(Cell(*values) for values in product(PLACES, KINDS, DELAYS_MS))
CELL_NAMES = {cell.name: cell for cell in CELLS}
planted_cases.CELL_NAMES.update(CELL_NAMES)  # where planted_worlds.py looks them up

INTERLEAVED = Layout(
    "PP 2, interleaved",
    (
        "--parallelism.pipeline_parallel_degree=2",
        "--parallelism.pipeline_parallel_schedule=Interleaved1F1B",
        "--training.global_batch_size=4",
    ),
    ("pipeline",),
    0,
    dict.fromkeys(PLACES, "pipeline"),
)
PP_2_CP_2 = Layout(
    "PP 2 x CP 2",
    (*PP_2.flags, "--parallelism.context_parallel_degree=2"),
    ("pipeline", "cp", "fsdp"),
    1,  # of the first stage
    {"forward": "cp", "backward": "cp", "loader": "fsdp"},
)
LAYOUTS = (PP_2, INTERLEAVED, FSDP_2, CP_2, PP_2_CP_2)
RANKS = {PP_2_CP_2.name: 4}  # others have two
AXES = {PP_2.name: "pipeline", INTERLEAVED.name: "pipeline", FSDP_2.name: "dp"}  # others: cp


def cause_of(layout: Layout, cell: Cell) -> str:
    """Under which cause a delay should be found."""
    return "data" if cell.place == "loader" else AXES.get(layout.name, "cp")


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Args:
        cell: name of what was planted in it.
        took_ms: how long that was; 0 without.
        found: by the replay.
        wall_ms: of the rank whose clock ran longest.
        slow_rank: the rank that was slow in most of the steps so far.
    """

    cell: str
    took_ms: float
    found: Causes
    wall_ms: float
    slow_rank: int


@dataclass(frozen=True)
class Found:
    """Of a cell, medians over its steps.

    Args:
        took: the delay.
        gain: what its cause is said to have cost.
        more: the same minus what it costs in the run's steps without a delay.
        slow: what the late rank is said to have cost (not of a loader).
        named: share of the steps in which the cause's rank is the late one.
        others: the largest of what the axes that are innocent are said to have cost more than without a delay.
    """

    took: float
    gain: float
    more: float
    slow: float
    named: float
    others: float


class Run:
    """A run's steps, in their order.

    Args:
        folder: given to causes_worlds.py.
    """

    def __init__(self, folder: Path, layout: Layout):
        self.layout = layout
        late = {step: (cell, ms) for step, cell, ms in json.loads((folder / layout.name / "late.json").read_text())}
        slow_ranks = SlowRanks()
        self.steps = []
        for number, job, measures, records in read_records(folder / layout.name / "wlb" / "records.jsonl"):
            if number not in late:
                continue  # warm-up
            works = [[0.0] * (len(measures["micro_batches"]) // job.dp) for _ in range(job.dp)]
            for dp_rank, place, predicted_ms, _ in measures["micro_batches"]:
                works[dp_rank][place] = predicted_ms
            name = "Interleaved1F1B" if layout is INTERLEAVED else "1F1B"
            schedule = build_schedule(name, job.pp, len(works[0])) if job.pp > 1 else None
            found = causes(records, job, schedule, works=works)
            slow_ranks.add(found)
            wall = max(record.ms("wall") for record in records)
            self.steps.append(Step(*late[number], found, wall, slow_ranks.rank))

    def of(self, cell: str) -> list[Step]:
        """Every step with this plant."""
        return [step for step in self.steps if step.cell == cell]

    def errors(self) -> list[float]:
        """|replayed / measured - 1| of every step, rising."""
        return sorted(abs(step.found.replayed_ms / step.found.measured_ms - 1) for step in self.steps)

    def found(self, cell: Cell) -> Found:
        """Medians of a cell's steps."""
        planted, plain = self.of(cell.name), self.of(NONE)
        cause = cause_of(self.layout, cell)

        def over(steps: list[Step], value: Callable[[Step], float]) -> float:
            return median(value(step) for step in steps)

        def more(name: str) -> float:
            return over(planted, lambda step: step.found.lost_ms[name]) - over(
                plain, lambda step: step.found.lost_ms[name]
            )

        named = [step.found.ranks[cause] == self.layout.late_rank for step in planted]
        return Found(
            took=over(planted, lambda step: step.took_ms),
            gain=over(planted, lambda step: step.found.lost_ms[cause]),
            more=more(cause),
            slow=over(planted, lambda step: step.found.lost_ms["slow_rank"]),
            named=sum(named) / len(named),
            others=max(more(name) for name in {"cp", "pipeline", "dp", "data"} - {cause}),
        )


def table(runs: list[Run]) -> str:
    """What was found of every delay, and how far the replay is from the measured step."""
    lines = [
        "",
        f"{'':<18}{'place':<9}{'kind':<6}{'delay':>6}{'took':>7} | {'gain':>6}{'more':>7}  {'cause':<9}{'named':>6}"
        f"{'slow':>7}{'others':>7}",
    ]
    for run in runs:
        for cell in CELLS:
            if run.of(cell.name):
                found = run.found(cell)
                lines.append(
                    f"{run.layout.name:<18}{cell.place:<9}{cell.kind:<6}{cell.delay_ms:>6}{found.took:>7.1f} | "
                    f"{found.gain:>6.1f}{found.more:>7.1f}  {cause_of(run.layout, cell):<9}{100 * found.named:>5.0f}%"
                    f"{found.slow:>7.1f}{found.others:>7.1f}"
                )
    lines += [
        "",
        f"{'':<18}{'steps':>6}{'step ms':>9}{'error median':>14}{'p90':>7}{'without delay: median':>23}{'p90':>7}",
    ]
    for run in runs:
        errors, plain = run.errors(), [step for step in run.steps if step.cell == NONE]
        quiet = sorted(abs(step.found.replayed_ms / step.found.measured_ms - 1) for step in plain)
        lines.append(
            f"{run.layout.name:<18}{len(errors):>6}{median(step.found.measured_ms for step in plain):>9.1f}"
            f"{100 * median(errors):>13.2f}%{100 * percentile_90(errors):>6.2f}%"
            f"{100 * median(quiet):>22.2f}%{100 * percentile_90(quiet):>6.2f}%"
        )
    lines += ["", f"{'median loss without a delay':<30}" + "".join(f"{name:>10}" for name in NAMES)]
    for run in runs:
        plain = run.of(NONE)
        medians = (median(step.found.lost_ms[name] for step in plain) for name in NAMES)
        lines.append(f"{run.layout.name:<30}" + "".join(f"{value:>10.1f}" for value in medians))
    return "\n".join(lines)


NAMES = ("cp", "pipeline", "dp", "stage", "slow_rank", "data")


def percentile_90(rising: list[float]) -> float:
    """The smallest value that nine tenths do not exceed."""
    return rising[-(-9 * len(rising) // 10) - 1]

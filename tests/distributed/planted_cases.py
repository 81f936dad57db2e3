"""Which delays are planted where, and what two ranks' steps show of them. Imports nothing heavy.

FOLDER/<layout>/<run>/rank<r>.json    a list of Step, written by planted_worlds.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median

STEPS = 9  # of every cell in a run
STEPS_UNPLANTED = 18
PLACES = ("forward", "backward", "loader")
KINDS = ("sleep", "work")
DELAYS_MS = (50, 100)
NONE = ""  # name of the cell without a plant

OWN = {"forward": "compute", "backward": "compute", "loader": "data"}
IDLE_BY_OTHERS = ("pipeline", "cp", "fsdp")


@dataclass(frozen=True)
class Layout:
    """Two ranks of ``WLBTrainer``.

    Args:
        name: of the test case and of the folder with its results.
        flags: that choose it.
        waits: categories in which its ranks wait for each other.
        late_rank: in which all delays are planted.
        lands_in: per place, what the other rank waits in. CP ranks share parameters by FSDP too: a delay between two
            gathers reaches the peer in the K/V exchange, a delay before the step's first gather in that gather.
    """

    name: str
    flags: tuple[str, ...]
    waits: tuple[str, ...]
    late_rank: int
    lands_in: dict[str, str] = field(hash=False)


# The first stage, for the last one's loader may be late by the length of its first bubble, and nobody notices.
PP_2 = Layout(
    "PP 2",
    (
        "--parallelism.pipeline_parallel_degree=2",
        "--parallelism.pipeline_parallel_schedule=1F1B",
        "--training.global_batch_size=4",
    ),
    ("pipeline",),
    0,
    dict.fromkeys(PLACES, "pipeline"),
)
FSDP_2 = Layout(
    "FSDP 2",
    ("--parallelism.data_parallel_shard_degree=2", "--training.global_batch_size=4"),
    ("fsdp",),
    1,
    dict.fromkeys(PLACES, "fsdp"),
)
CP_2 = Layout(
    "CP 2",
    ("--parallelism.context_parallel_degree=2", "--training.global_batch_size=2"),
    ("cp", "fsdp"),
    1,
    {"forward": "cp", "backward": "cp", "loader": "fsdp"},
)
LAYOUTS = (PP_2, FSDP_2, CP_2)


@dataclass(frozen=True)
class Cell:
    """A delay: so long a sleep, or so much CPU time of the rank's thread (which lasts longer on a shared core)."""

    place: str
    kind: str
    delay_ms: int

    @property
    def name(self) -> str:
        """As it stands in results and in names of test cases."""
        return f"{self.place}, {self.kind}, {self.delay_ms} ms"


CELLS = tuple(Cell(*values) for values in product(PLACES, KINDS, DELAYS_MS))
CELL_NAMES = {cell.name: cell for cell in CELLS}


@dataclass(frozen=True)
class Step:
    """What one rank saw of a step.

    Args:
        step: from 1.
        cell: name of what was planted, on the late rank, in this step.
        moments: that the clock noted: one for a mark, two for a wait.
        wall_ns: from the first of them to the last.
        times_ms: per name of ``titan_wlb.records.TIMES`` and "wall", unrounded.
        categories: of the clock's timeline.
        planted_ns: how long the delay was, by the plant's own stamps; 0 on the other rank.
        inside_ns: per category of the clock's timeline, how much of the delay lies in it.
    """

    step: int
    cell: str
    moments: int
    wall_ns: int
    times_ms: dict[str, float]
    categories: list[str]
    planted_ns: int
    inside_ns: dict[str, int]

    def ms(self, *names: str) -> float:
        """Sum over categories."""
        return sum(self.times_ms[name] for name in names)


@dataclass(frozen=True)
class Pair:
    """A step of both ranks."""

    late: Step
    peer: Step


@dataclass(frozen=True)
class Added:
    """What a delay added to the median step, ms.

    Args:
        own: to the late rank's compute, or data. What the machine takes from it meanwhile is in starved, not in here.
        own_and_starved: the same, and starved.
        planted: median length of the delay.
        idle: to the peer's pipeline + cp + fsdp.
        landed: to the one category in which the peer should wait.
    """

    own: float
    own_and_starved: float
    planted: float
    idle: float
    landed: float


class Results:
    """All steps of a layout's runs: a cell runs again where its medians were not what they should be.

    Args:
        folder: given to planted_worlds.py.
    """

    def __init__(self, folder: Path, layout: Layout):
        self.layout = layout
        runs = sorted((folder / layout.name).iterdir(), key=lambda run: int(run.name))
        self.runs = [read_run(run, layout) for run in runs]

    @property
    def pairs(self) -> list[Pair]:
        """Every step."""
        return [pair for run in self.runs for pair in run]

    def of(self, cell: str) -> list[Pair]:
        """Every step with this plant."""
        return _of(self.pairs, cell)

    def last(self, cell: str) -> tuple[list[Pair], list[Pair]]:
        """Steps with this plant and steps without any, of the last run in which it was planted."""
        run = next(run for run in reversed(self.runs) if _of(run, cell))
        return _of(run, cell), _of(run, NONE)

    def added(self, cell: Cell) -> Added:
        """Medians over the steps of a cell, minus those of the same run's steps without any plant."""
        planted, plain = self.last(cell.name)

        def difference(value: Callable[[Pair], float]) -> float:
            return median(value(pair) for pair in planted) - median(value(pair) for pair in plain)

        return Added(
            own=difference(lambda pair: pair.late.ms(OWN[cell.place])),
            own_and_starved=difference(lambda pair: pair.late.ms(OWN[cell.place], "starved")),
            planted=median(pair.late.planted_ns for pair in planted) / 1e6,
            idle=difference(lambda pair: pair.peer.ms(*IDLE_BY_OTHERS)),
            landed=difference(lambda pair: pair.peer.ms(self.layout.lands_in[cell.place])),
        )

    def blocked_ms(self) -> float:
        """Median over the steps of a run without a plant, of the worse rank; the least of all runs."""
        return min(
            max(median(pair.late.ms("blocked") for pair in plain), median(pair.peer.ms("blocked") for pair in plain))
            for plain in (_of(run, NONE) for run in self.runs)
        )

    def missed(self) -> set[str]:
        """Names of cells whose medians are not what they should be; ``NONE`` among them, if blocked is not."""
        names = {pair.late.cell for pair in self.pairs} - {NONE}
        missed = {name for name in names if wrong_medians(self.added(CELL_NAMES[name]), CELL_NAMES[name])}
        return missed | ({NONE} if self.blocked_ms() >= 1 else set())


def wrong_medians(added: Added, cell: Cell) -> list[str]:
    """What a delay should have added and did not; nothing where all is well."""
    own_tolerance, peer_tolerance = max(5.0, 0.1 * cell.delay_ms), max(10.0, 0.2 * cell.delay_ms)
    wrong = []
    if abs(added.own - cell.delay_ms) > own_tolerance:
        wrong.append(f"{added.own:.1f} ms in the late rank's {OWN[cell.place]}")
    if abs(added.idle - added.planted) > peer_tolerance:
        wrong.append(f"{added.idle:.1f} ms in the peer's {' + '.join(IDLE_BY_OTHERS)}")
    if abs(added.landed - added.planted) > peer_tolerance:
        wrong.append(f"{added.landed:.1f} ms where the peer should have waited")
    return wrong


def read_run(folder: Path, layout: Layout) -> list[Pair]:
    """All steps of one run."""
    ranks = [[Step(**step) for step in json.loads((folder / f"rank{rank}.json").read_text())] for rank in range(2)]
    return [Pair(*pair) for pair in zip(ranks[layout.late_rank], ranks[1 - layout.late_rank], strict=True)]


def _of(pairs: list[Pair], cell: str) -> list[Pair]:
    return [pair for pair in pairs if pair.late.cell == cell]

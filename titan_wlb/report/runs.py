"""What is read of a run's folder: its logged steps, as tables of ranks by fields, and the documents of a step.

    counted      logged steps behind the first two of each process, which compile, allocate and connect
    era          consecutive steps of one layout; a run that was resumed with another number of ranks has several

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.packing.measures import imbalance_degree
from titan_wlb.records import Layout, StepRecord, from_json
from titan_wlb.records.per_rank import AXES, FIELDS
from titan_wlb.report.lines import StepLines

NAMES = tuple(name for name, _ in FIELDS)
WARM_UP_STEPS = 2
_WARM = "wlb/run/idle_share"  # a measure that a process writes from its third step on; older runs do not have it


@dataclass(frozen=True)
class Step:
    """A logged step.

    Args:
        number: from 1.
        layout: of the job in this step.
        measures: tag -> value, as TensorBoard has them, with "loss" and "micro_batches".
        table: ms, float32 [num_ranks, num_fields]; columns as in ``NAMES``.
    """

    number: int
    layout: Layout
    measures: dict[str, Any]
    table: npt.NDArray[np.float32]

    def ms(self, name: str) -> npt.NDArray[np.float32]:
        """A column, [num_ranks]."""
        column: npt.NDArray[np.float32] = self.table[:, NAMES.index(name)]
        return column

    def own_ms(self) -> npt.NDArray[np.float32]:
        """What each rank worked by itself, [num_ranks]: compute. Who is starved is chance where ranks share cores."""
        return self.ms("compute")

    @property
    def step_ms(self) -> float:
        """Wall time of the slowest rank."""
        return float(self.ms("wall").max())

    @property
    def idle_share(self) -> float:
        """Idle / wall time, over the ranks."""
        return float(self.ms("idle").sum() / max(self.ms("wall").sum(), 1e-9))


@dataclass(frozen=True)
class Era:
    """Consecutive logged steps with one layout."""

    layout: Layout
    steps: tuple[Step, ...]

    @property
    def first(self) -> int:
        """Number of its first step."""
        return self.steps[0].number

    @property
    def last(self) -> int:
        """Number of its last step."""
        return self.steps[-1].number

    def stack(self, name: str) -> npt.NDArray[np.float32]:
        """A field as [steps, ranks], in ms."""
        return np.stack([step.ms(name) for step in self.steps])


@dataclass(frozen=True)
class Run:
    """A job's dump folder.

    Args:
        name: for titles.
        folder: that was read.
        steps: logged, in order.
        restarts: steps at which a process took back what came from there on.
    """

    name: str
    folder: Path
    steps: tuple[Step, ...]
    restarts: tuple[int, ...]

    @cached_property
    def counted(self) -> tuple[Step, ...]:
        """Steps that means are of: behind the warm-up of each process, or all if there are no others."""
        if any(_WARM in step.measures for step in self.steps):
            return tuple(step for step in self.steps if _WARM in step.measures)
        numbers = {step.number for step in self.steps}
        cold = set(range(1, 1 + WARM_UP_STEPS))
        starts = {era.first for era in self.all_eras} | set(self.restarts)
        # A process that logs each step began here; one that logs every tenth began somewhere before.
        cold |= {step for start in starts if start + 1 in numbers for step in range(start, start + WARM_UP_STEPS)}
        return tuple(step for step in self.steps if step.number not in cold) or self.steps

    @cached_property
    def all_eras(self) -> tuple[Era, ...]:
        """Of all logged steps."""
        return _eras(self.steps)

    @cached_property
    def eras(self) -> tuple[Era, ...]:
        """Of the counted steps."""
        return _eras(self.counted)

    def typical(self) -> Step:
        """The counted step of the last era with the median idle share."""
        steps = sorted(self.eras[-1].steps, key=lambda step: (step.idle_share, step.number))
        return steps[len(steps) // 2]

    def records(self, step: int) -> tuple[Layout, list[StepRecord]]:
        """What each rank's clock measured in a logged step, with its sections.

        Raises:
            ValueError: the step was not logged.
        """
        lines = StepLines(_records_path(self.folder))
        if step not in lines:
            known = lines.steps
            raise ValueError(f"{self.folder} has no record of step {step}: there are {len(known)} of {_range(known)}")
        line = lines.read(step)
        return Layout(**line["layout"]), [from_json(rank, step) for rank in line["ranks"]]

    def documents(self) -> StepLines | None:
        """Lines of ``documents.jsonl``, where the run kept them (``--wlb.log_documents``)."""
        path = self.folder / "wlb" / "documents.jsonl"
        return StepLines(path) if path.is_file() else None


def read_run(
    folder: Path,
    name: str | None = None,
    watch: Callable[[StepLines], Iterable[tuple[int, dict[str, Any]]]] = iter,
) -> Run:
    """Everything but the sections and documents of a run.

    Args:
        folder: ``job.dump_folder`` of the run.
        name: for titles; by default the folder's.
        watch: passes on what it is given to go through, ``tqdm`` say: hundreds of megabytes take a while.

    Raises:
        ValueError: there is no run, or its records cannot be read.
    """
    path = _records_path(folder)
    lines = StepLines(path)
    steps = []
    for number, line in watch(lines):
        try:
            layout = Layout(**line["layout"])
            if len(line["ranks"]) != layout.size:
                raise ValueError(f"{len(line['ranks'])} ranks, of {layout.size}")
            table = np.array([_row(rank) for rank in line["ranks"]], dtype=np.float32)
            steps.append(Step(number, layout, dict(line["measures"]), table))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the line of step {number} is no record of ours ({error!r})") from None
    if not steps:
        raise ValueError(f"{path} has no record: was metrics.log_freq larger than the number of steps?")
    return Run(name or folder.resolve().name, folder, tuple(steps), tuple(lines.restarts))


def words_of(layout: Layout) -> str:
    """A layout for a person: "4 ranks (PP 2 x CP 2)"."""
    ranks = "1 rank" if layout.size == 1 else f"{layout.size:,} ranks"
    degrees = [f"{axis.upper()} {getattr(layout, axis)}" for axis in AXES if getattr(layout, axis) > 1]
    return f"{ranks} ({' x '.join(degrees)})" if degrees else ranks


def document_lengths(micro_batch: dict[str, Any]) -> list[int]:
    """Tokens of each document or piece of a micro-batch of ``documents.jsonl``, the longest first."""
    return sorted((stop - start for _, start, stop, _ in micro_batch["documents"]), reverse=True)


def line_imbalance_degree(line: dict[str, Any]) -> float:
    """Predicted, of a line of ``documents.jsonl``."""
    return imbalance_degree([micro_batch["cost"] for micro_batch in line["micro_batches"]])


def document_costs(lines: Sequence[dict[str, Any]]) -> npt.NDArray[np.float64]:
    """The cost model that a run used, as its lines of ``documents.jsonl`` tell it: float64 [3].

    Returns:
        Milliseconds per document, per token and per token squared (least squares over the micro-batches' costs).
    """
    micro_batches = [micro_batch for line in lines for micro_batch in line["micro_batches"]]
    features = [cost_features(document_lengths(micro_batch)).sum(axis=0) for micro_batch in micro_batches]
    costs = np.array([micro_batch["cost"] / 1e6 for micro_batch in micro_batches])
    scale = np.maximum(np.max(features, axis=0), 1.0)  # tokens squared are large: the same unit for all
    found: npt.NDArray[np.float64] = np.linalg.lstsq(np.array(features) / scale, costs, rcond=None)[0] / scale
    return found


def cost_features(lengths: Sequence[int]) -> npt.NDArray[np.float64]:
    """float64 [documents, 3]: 1, tokens, tokens squared; times ``document_costs`` the cost of each."""
    tokens = np.array(lengths, dtype=np.float64)
    return np.stack([np.ones_like(tokens), tokens, tokens**2], axis=1)


def _row(rank: dict[str, Any]) -> list[float]:
    """``per_rank_rows`` of a rank in a line, without making a record of its sections: in half the time."""
    waiting = {f"{name}_waiting": max(rank[f"{name}_ms"] - rank[f"{name}_transfer_ms"], 0.0) for name in ("cp", "fsdp")}
    return [waiting[name] if name in waiting else rank[f"{name}_ms"] for name in NAMES]


def _eras(steps: Sequence[Step]) -> tuple[Era, ...]:
    eras: list[list[Step]] = []
    for step in steps:
        if not eras or eras[-1][-1].layout != step.layout:
            eras.append([])
        eras[-1].append(step)
    return tuple(Era(of_one[0].layout, tuple(of_one)) for of_one in eras)


def _records_path(folder: Path) -> Path:
    path = folder / "wlb" / "records.jsonl"
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the job.dump_folder of a run")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {folder} is not the job.dump_folder of a run that logged a step")
    return path


def _range(steps: Sequence[int]) -> str:
    return f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"

"""What a run's records say, in numbers: the same facts for text, JSON and page. Source: ours; definitions in DESIGN.md.

Means are over the counted steps (``titan_wlb.report.runs``) and, where it says so, over ranks. What is told of single
ranks is of the last era, since ranks of other layouts are others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from titan_wlb.metrics.scalars import percentile
from titan_wlb.metrics.stragglers import place_name
from titan_wlb.records import MicroBatchCost, cost_error, cost_scale
from titan_wlb.records.per_rank import AXES, PLACES
from titan_wlb.report.runs import NAMES, Era, Run, Step, words_of
from titan_wlb.report.slow_ranks import SlowRanks, slow_ranks

_LOST = re.compile(r"wlb/lost/(\w+)_ms")
_DEGREE = "wlb/imbalance_degree/"


@dataclass(frozen=True)
class EraFacts:
    """Steps with one layout: numbers of the first and last, the layout in words, its ranks."""

    first: int
    last: int
    layout: str
    num_ranks: int


@dataclass(frozen=True)
class RankFacts:
    """A rank of the last era, or ranks that share a place on an axis.

    Args:
        name: "rank 3", or "pp 1".
        place: the rank's coordinates.
        times_ms: per step: "wall", "idle", "blocked" and each of ``PLACES``.
    """

    name: str
    place: str
    times_ms: dict[str, float]

    @property
    def idle_share(self) -> float:
        """Idle / wall."""
        return self.times_ms["idle"] / max(self.times_ms["wall"], 1e-9)


@dataclass(frozen=True)
class CostFacts:
    """Predicted against measured cost of micro-batches.

    Args:
        number: micro-batches.
        scale: measured over predicted, median over the steps.
        error: mean of |predicted / measured - 1|, predictions scaled step by step so that their sum is right.
        pairs: (predicted ms, measured ms), at most 600, evenly over the steps.
    """

    number: int
    scale: float
    error: float
    pairs: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class RunFacts:
    """A run.

    Args:
        name: of the run.
        eras: of all logged steps.
        restarts: steps at which a process took back what came from there on.
        logged, counted: numbers of steps; the means are of the counted.
        step_ms, step_ms_p95: wall time of the slowest rank.
        tokens: real tokens of a step.
        tokens_per_second: of the job.
        times_ms: per step and rank: "wall", "idle", "blocked" and each of ``PLACES``.
        idle_share: idle / wall time of all ranks and steps.
        lost_rank_hours: idle time of all ranks over all steps.
        degrees: "predicted" and "measured" -> mean imbalance degree; without those that were not recorded.
        degrees_p95: the same at the 95th percentile.
        delay_iterations: mean delay of a token as the last process counted it.
        losses: (step, loss) of the first and last logged step; None without any.
        cost: None where it was not recorded.
        lost_ms: cause -> ms that a step would have gained, mean; empty where no causes were recorded.
        slow_rank: (rank, share of the counted steps) that the causes name most often; None without any.
        slow: which ranks are slow.
        last_era: the counted steps that ``slow``, ``ranks`` and ``axes`` are of.
        ranks: of the last era.
        axes: means over the ranks that share a place on an axis, of axes with several,
            where several ranks share one.
        series: name -> value per logged step; "step" holds their numbers, None stands for what is not known.
    """

    name: str
    eras: tuple[EraFacts, ...]
    restarts: tuple[int, ...]
    logged: int
    counted: int
    step_ms: float
    step_ms_p95: float
    tokens: float
    tokens_per_second: float
    times_ms: dict[str, float]
    idle_share: float
    lost_rank_hours: float
    degrees: dict[str, float]
    degrees_p95: dict[str, float]
    delay_iterations: float | None
    losses: tuple[tuple[int, float], tuple[int, float]] | None
    cost: CostFacts | None
    lost_ms: dict[str, float]
    slow_rank: tuple[int, float] | None
    last_era: EraFacts
    slow: SlowRanks
    ranks: tuple[RankFacts, ...]
    axes: dict[str, tuple[RankFacts, ...]]
    series: dict[str, list[float | None]]

    def share(self, place: str) -> float:
        """Of all time of all ranks."""
        return self.times_ms[place] / max(self.times_ms["wall"], 1e-9)

    def to_json(self) -> dict[str, Any]:
        """As plain values; what is not finite becomes None, since JSON does not know it."""
        values: dict[str, Any] = _plain(asdict(self))
        return values


def facts_of(run: Run) -> RunFacts:
    """All of them."""
    steps, era = run.counted, run.eras[-1]
    wall_ms = [step.step_ms for step in steps]
    tokens = [step.measures.get("wlb/tokens_per_step", 0.0) for step in steps]
    degrees = {kind: found for kind in ("predicted", "measured") if (found := _values(steps, f"{_DEGREE}{kind}"))}
    losses = [(step.number, step.measures["loss"]) for step in run.steps if step.measures.get("loss") is not None]
    tables = [step.table for step in steps]
    sums = np.sum([table.sum(axis=0, dtype=np.float64) for table in tables], axis=0)
    times = dict(zip(NAMES, (sums / sum(map(len, tables))).tolist(), strict=True))
    last: npt.NDArray[np.float64] = np.stack([step.table for step in era.steps]).mean(axis=0, dtype=np.float64)
    ranks = tuple(RankFacts(f"rank {rank}", place_name(era.layout, rank), _times(row)) for rank, row in enumerate(last))
    return RunFacts(
        name=run.name,
        eras=tuple(map(_era_facts, run.all_eras)),
        restarts=run.restarts,
        logged=len(run.steps),
        counted=len(steps),
        step_ms=sum(wall_ms) / len(steps),
        step_ms_p95=percentile(wall_ms, 95),
        tokens=sum(tokens) / len(steps),
        tokens_per_second=1e3 * sum(tokens) / max(sum(wall_ms), 1e-9),
        times_ms={name: times[name] for name in ("wall", "idle", "blocked", *PLACES)},
        idle_share=times["idle"] / max(times["wall"], 1e-9),
        lost_rank_hours=_lost_rank_hours(run.steps),
        degrees={kind: sum(found) / len(found) for kind, found in degrees.items()},
        degrees_p95={kind: percentile(found, 95) for kind, found in degrees.items()},
        delay_iterations=run.steps[-1].measures.get("wlb/delay_iterations"),
        losses=(losses[0], losses[-1]) if losses else None,
        cost=_cost(steps),
        lost_ms=_lost_ms(steps),
        slow_rank=_slow_rank(steps),
        last_era=_era_facts(era),
        slow=slow_ranks(np.stack([step.own_ms() for step in era.steps]), era.layout),
        ranks=ranks,
        axes=_axes(run, last),
        series=_series(run.steps),
    )


def evenly(number: int, most: int) -> list[int]:
    """At most so many places of a list, evenly spread: all of them where there are fewer."""
    return [place * number // min(number, most) for place in range(min(number, most))]


def _era_facts(era: Era) -> EraFacts:
    return EraFacts(era.first, era.last, words_of(era.layout), era.layout.size)


def _times(row: Sequence[float] | npt.NDArray[np.float64]) -> dict[str, float]:
    values = dict(zip(NAMES, map(float, row), strict=True))
    return {name: values[name] for name in ("wall", "idle", "blocked", *PLACES)}


def _values(steps: Sequence[Step], tag: str) -> list[float]:
    return [step.measures[tag] for step in steps if step.measures.get(tag) is not None]


def _lost_rank_hours(steps: Sequence[Step]) -> float:
    """As each process counted it at its end; of runs that did not count, a logged step stands for those before it."""
    counted = _values(steps, "wlb/lost_rank_hours")
    if counted:
        return sum(value for value, after in zip(counted, [*counted[1:], 0.0], strict=True) if after < value)
    total, before = 0.0, steps[0].number - 1
    for step in steps:
        total += float(step.ms("idle").sum()) * (step.number - before)
        before = step.number
    return total / 3.6e6


def _cost(steps: Sequence[Step]) -> CostFacts | None:
    of_steps = [
        [MicroBatchCost(*row) for row in step.measures["micro_batches"]]
        for step in steps
        if step.measures.get("micro_batches")
    ]
    if not of_steps:
        return None
    pairs = [(cost.predicted_ms, cost.measured_ms) for costs in of_steps for cost in costs]
    return CostFacts(
        number=len(pairs),
        scale=float(np.median([cost_scale(costs) for costs in of_steps])),
        error=sum(map(cost_error, of_steps)) / len(of_steps),
        pairs=tuple(pairs[place] for place in evenly(len(pairs), 600)),
    )


def _lost_ms(steps: Sequence[Step]) -> dict[str, float]:
    causes = dict.fromkeys(found[1] for step in steps for tag in step.measures if (found := _LOST.fullmatch(tag)))
    lost = {cause: _values(steps, f"wlb/lost/{cause}_ms") for cause in causes}
    return {cause: sum(values) / len(values) for cause, values in lost.items() if values}


def _slow_rank(steps: Sequence[Step]) -> tuple[int, float] | None:
    named = Counter(int(rank) for rank in _values(steps, "wlb/lost/slow_rank") if rank >= 0)
    if not named:
        return None
    rank, times = named.most_common(1)[0]
    return rank, times / len(steps)


def _axes(run: Run, table: npt.NDArray[np.float64]) -> dict[str, tuple[RankFacts, ...]]:
    layout = run.eras[-1].layout
    coordinates = np.array([layout.coordinates(rank) for rank in range(layout.size)])
    found = {}
    for i, axis in enumerate(AXES):
        degree = getattr(layout, axis)
        if 1 < degree < layout.size:  # else they are the ranks themselves
            means = [table[coordinates[:, i] == place].mean(axis=0) for place in range(degree)]
            found[axis] = tuple(RankFacts(f"{axis} {place}", "", _times(row)) for place, row in enumerate(means))
    return found


def _series(steps: Sequence[Step]) -> dict[str, list[float | None]]:
    def of(tag: str) -> list[float | None]:
        return [step.measures.get(tag) for step in steps]

    return {
        "step": [step.number for step in steps],
        "step_ms": [step.step_ms for step in steps],
        "idle_share": [step.idle_share for step in steps],
        "imbalance_degree_predicted": of(f"{_DEGREE}predicted"),
        "imbalance_degree_measured": of(f"{_DEGREE}measured"),
        "tokens": of("wlb/tokens_per_step"),
        "tokens_per_second": of("wlb/tokens_per_second"),
        "delay_iterations": of("wlb/delay_iterations"),
        "loss": of("loss"),
        "num_ranks": [step.layout.size for step in steps],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value

"""What a step lost, by cause: the measured step is run again with one axis evened out, and the difference is the loss.

    PP 2 x CP 2, CP rank 1 of the first stage 50 ms late in one forward

    location    stage 0: the other CP rank waits in cp; stage 1: both wait in pipeline; all wait in the norm
    cause       cp 50 ms, pipeline 0, dp 0, data 0; the slow rank is rank 1

Losses are independent answers to "what if": they overlap, and need not add up to anything. Which axis a late rank is
counted under: the innermost that has peers, CP before micro-batches and DP.

    cp         CP ranks within an action              dp      DP ranks
    pipeline   micro-batches of a pipeline            stage   its stages: the last one has the output projection
    slow_rank  one rank takes what its peers take     data    no rank waits for the dataloader
    starved    no CPU rank waits for a core; the other causes are told as if none did, for where ranks share cores it
               would be chance which of them is late

``peers`` says who these are. A stage that is slow in all its actions has none where there is one pipeline.

Source: DESIGN, "Compute and idle"; ours.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.timeline.measured import Floats, Measured, Own, measured
from titan_wlb.planning.timeline.peers import evened, usual
from titan_wlb.planning.timeline.rerun import step_times
from titan_wlb.planning.timeline.schedule import Schedule
from titan_wlb.records import Layout, StepRecord

CAUSES = ("cp", "pipeline", "dp", "stage", "slow_rank", "data", "starved")

_SLOW_SHARE = 0.02  # of a step: a rank that is so much later than usual is slow in it
_MAX_SLOW_RANKS = 16  # of a step; further ones make no difference to who is slow in most
_LEAST_WORK = 0.01  # of the mean: padding at the end of the data has none


@dataclass(frozen=True, slots=True)
class Causes:
    """What a step lost.

    Args:
        step: from 1.
        measured_ms: the step, from one gradient norm to the next.
        replayed_ms: the same, run again with nothing changed.
        lost_ms: per name of ``CAUSES`` what the step would have gained, at least 0.
        ranks: per name of ``CAUSES`` the rank that stands out most, with TP rank 0.
        late_ms: ranks that took this much more than is usual, 2 % of a step or more; the largest first.
    """

    step: int
    measured_ms: float
    replayed_ms: float
    lost_ms: Mapping[str, float]
    ranks: Mapping[str, int]
    late_ms: tuple[tuple[int, float], ...]


def causes(
    records: Sequence[StepRecord],
    layout: Layout,
    schedule: Schedule | None = None,
    *,
    works: npt.ArrayLike | None = None,
    stage_works: Sequence[float] | None = None,
    slow_rank: int = -1,
    wires: str = "independent",
) -> Causes:
    """What a step lost.

    Args:
        records: of all ranks, in the order of their ranks.
        schedule: of each DP rank's pipeline; None without a pipeline.
        works: predicted work of the step in any unit, [dp, micro_batches] in the order in which a DP rank runs them, or
            [dp, micro_batches, cp]. Without it all are taken to be equal: then two DP ranks that were dealt 6 and 2 ms
            are said to lose 4, though 2 are all that can be gained.
        stage_works: of a micro-batch on each stage, in any unit; equal where it is not given.
        slow_rank: the rank whose loss is told as "slow_rank", ``SlowRanks.rank`` say; -1 for the latest of this step.
        wires: "independent" (gloo) or "in_order" (NCCL): how sends and receives travel.

    Raises:
        ValueError: records, works or schedule are of another layout than ``layout``.
    """
    step = measured(records, layout)
    return causes_of(
        step,
        schedule,
        number=records[0].times.step,
        works=works,
        stage_works=stage_works,
        slow_rank=slow_rank,
        wires=wires,
    )


def causes_of(
    step: Measured,
    schedule: Schedule | None = None,
    *,
    number: int,
    works: npt.ArrayLike | None = None,
    stage_works: Sequence[float] | None = None,
    slow_rank: int = -1,
    wires: str = "independent",
) -> Causes:
    """The same from a step's arrays, ``measured_of_packed`` say.

    Args:
        number: of the step.
    """
    layout = step.layout
    num_micro_batches = step.own.actions.shape[-1]
    if layout.pp > 1 and schedule is None:
        raise ValueError(f"a pipeline of {layout.pp} ranks needs its schedule")
    if schedule is not None and (schedule.pp, schedule.num_micro_batches) != (layout.pp, num_micro_batches):
        raise ValueError(
            f"records of {layout.pp} pipeline ranks and {num_micro_batches} micro-batches, "
            f"but a schedule of {schedule.pp} and {schedule.num_micro_batches}"
        )
    own, even = (
        step.own,
        evened(step, _works(works, layout, num_micro_batches), _stage_works(stage_works, step.own.actions.shape[2])),
    )
    late = _late_ms(own, even.peers)
    if slow_rank < 0:
        slow_rank = _rank_of(late, layout)
    pp_rank, dp_rank, cp_rank, _ = layout.coordinates(slow_rank)
    cases = {
        "starved": own,
        "cp": even.cp,
        "pipeline": even.pipeline,
        "dp": even.dp,
        "stage": even.stage,
        "slow_rank": _of_one_rank(own, even.peers, (dp_rank, cp_rank, pp_rank)),
        "data": replace(own, data=np.zeros_like(own.data)),
    }
    replayed, *times = step_times(step, _stacked([own + step.starved, *cases.values()]), schedule, wires=wires).tolist()
    without = dict(zip(cases, times, strict=True))
    before = dict.fromkeys(cases, without["starved"]) | {"starved": replayed}
    stand_out = {name: _late_ms(own, case) for name, case in cases.items()}
    stand_out |= {"data": own.data, "slow_rank": late, "starved": _late_ms(own + step.starved, own)}
    return Causes(
        step=number,
        measured_ms=step.step_ms,
        replayed_ms=replayed,
        lost_ms={name: max(before[name] - without[name], 0.0) for name in CAUSES},
        ranks={name: _rank_of(stand_out[name], layout) for name in CAUSES} | {"slow_rank": slow_rank},
        late_ms=_late_ranks(late, layout, step.step_ms),
    )


@dataclass
class SlowRanks:
    """Which rank is slow in most steps: a machine, not its work.

    A step's slow ranks are those of ``Causes.late_ms`` that are at least half as late as the latest of them. A rank is
    named that is among them in more than half of the steps, and for which there are three such steps to each in which
    others are and it is not: of two ranks that are late by turns neither is.

    Args:
        window: logged steps that are looked at.
        least: of them that must have been seen before a rank is named.
    """

    window: int = 20
    least: int = 8
    _steps: deque[tuple[int, ...]] = field(default_factory=deque)

    def add(self, causes: Causes) -> None:
        """A further logged step."""
        latest = causes.late_ms[0][1] if causes.late_ms else 0.0
        self._steps.append(tuple(rank for rank, late_ms in causes.late_ms if late_ms >= latest / 2))
        if len(self._steps) > self.window:
            self._steps.popleft()

    @property
    def rank(self) -> int:
        """The rank that was slow most often; -1 where there is none."""
        counts = Counter(rank for ranks in self._steps for rank in ranks)
        if len(self._steps) < self.least or not counts:
            return -1
        rank = min(counts, key=lambda rank: (-counts[rank], rank))
        others = sum(bool(ranks) and rank not in ranks for ranks in self._steps)
        return rank if 2 * counts[rank] > len(self._steps) and counts[rank] >= 3 * others else -1

    @property
    def share(self) -> float:
        """In how many of the steps that rank was slow; 0.0 where there is none."""
        rank = self.rank
        return sum(rank in ranks for ranks in self._steps) / len(self._steps) if rank >= 0 else 0.0


def lost_scalars(causes: Causes, slow_ranks: SlowRanks) -> dict[str, float]:
    """A step's losses as scalars: ``wlb/lost/<cause>_ms``, ``wlb/lost/slow_rank`` (-1 without one), and the replay's
    relative error ``wlb/lost/replay_error``. The slow rank's loss is 0 until a rank is slow in most steps.
    """
    rank = slow_ranks.rank
    values = {f"wlb/lost/{name}_ms": lost for name, lost in causes.lost_ms.items()}
    if rank < 0:
        values["wlb/lost/slow_rank_ms"] = 0.0
    values["wlb/lost/slow_rank"] = float(rank)
    values["wlb/lost/replay_error"] = causes.replayed_ms / max(causes.measured_ms, 1e-9) - 1
    return values


def _works(works: npt.ArrayLike | None, layout: Layout, num_micro_batches: int) -> Floats:
    """[dp, micro_batches, cp]."""
    shape = (layout.dp, num_micro_batches, layout.cp)
    if works is None:
        return np.ones(shape)
    given = np.asarray(works, dtype=np.float64)
    if given.shape not in (shape, shape[:2]):
        raise ValueError(f"works of shape {list(given.shape)}, but the step has {list(shape)}")
    given = np.broadcast_to(given.reshape(*given.shape, *(1,) * (3 - given.ndim)), shape)
    mean = float(given.mean())
    return np.maximum(given, _LEAST_WORK * mean) if mean > 0 else np.ones(shape)


def _stage_works(stage_works: Sequence[float] | None, num_stages: int) -> Floats:
    works = np.ones(num_stages) if stage_works is None else np.array(stage_works, dtype=np.float64)
    if works.shape != (num_stages,) or works.min() <= 0:
        raise ValueError(f"stage_works {stage_works}: there are {num_stages} stages, each with some work")
    return works


def _late_ms(own: Own, peers: Own) -> Floats:
    """How much longer each rank takes than its peers, [dp, cp, pp]."""
    dp, cp, _, _, num_micro_batches = own.actions.shape
    pp = own.phases.shape[2]
    actions = (own.actions - peers.actions).reshape(dp, cp, -1, pp, 2, num_micro_batches).sum(axis=(2, 4, 5))
    reductions = (own.reductions - peers.reductions).reshape(dp, cp, -1, pp).sum(axis=2)
    late: Floats = actions + reductions + (own.phases - peers.phases).sum(axis=3)
    return late


def _of_one_rank(own: Own, peers: Own, place: tuple[int, int, int]) -> Own:
    """One rank as its peers are."""
    dp_rank, cp_rank, pp_rank = place
    pp = own.phases.shape[2]
    actions, reductions, phases = own.actions.copy(), own.reductions.copy(), own.phases.copy()
    stages = dp_rank, cp_rank, slice(pp_rank, None, pp)
    actions[stages], reductions[stages], phases[dp_rank, cp_rank, pp_rank] = (
        peers.actions[stages],
        peers.reductions[stages],
        peers.phases[dp_rank, cp_rank, pp_rank],
    )
    return replace(own, actions=actions, reductions=reductions, phases=phases)


def _stacked(cases: Sequence[Own]) -> Own:
    return Own(*(np.stack([getattr(case, name) for case in cases]) for name in Own.__dataclass_fields__))


def _rank_of(times: Floats, layout: Layout) -> int:
    """Where the largest of [dp, cp, pp] stands."""
    dp_rank, cp_rank, pp_rank = np.unravel_index(int(times.argmax()), times.shape)
    return int(((pp_rank * layout.dp + dp_rank) * layout.cp + cp_rank) * layout.tp)


def _late_ranks(late: Floats, layout: Layout, step_ms: float) -> tuple[tuple[int, float], ...]:
    """(rank, ms later than usual) of those that are late in this step, the latest first."""
    by_rank = late.transpose(2, 0, 1).ravel()
    if len(by_rank) > 1:
        by_rank = by_rank - usual(by_rank, 0)
    order = np.argsort(-by_rank, kind="stable")[:_MAX_SLOW_RANKS]
    return tuple(
        (int(rank) * layout.tp, float(by_rank[rank])) for rank in order if by_rank[rank] >= _SLOW_SHARE * step_ms
    )

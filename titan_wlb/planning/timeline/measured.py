"""One step's records as arrays: what every rank itself took, and what no rank of its group was spared.

    F of stage 0, micro-batch 0, two CP ranks         compute  starved   cp
    CP rank 0                                            10       1       5       own 10, starved 1
    CP rank 1                                            14       0       2       own 14, exposed 2

A rank's *own* time in an action is what it computes. Waits are left out: the replay finds them again. What even the
rank that came last spent in an exchange is its *exposed* time; it stays, whoever is made faster. Time for which a CPU
rank had no core is kept apart, since it says nothing about the rank or its work.

Ranks enter their steps at different times. They leave the gradient norm together, so that the time from there to the
norm of the step before is known up to the optimizer: a step lasts from one norm to the next (``Measured.step_ms``).

Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.timeline.schedule import Action
from titan_wlb.records import (
    COMPUTE,
    CP,
    DATA,
    FSDP,
    KINDS,
    OTHER,
    PIPELINE,
    STARVED,
    TIMES,
    Layout,
    StepRecord,
    packed_size,
)

Floats = npt.NDArray[np.float64]

FORWARD, BACKWARD = range(2)
START, HEAD, NORM = range(3)  # of ``Own.phases``
_HEAD, _REDUCE, _NORM, _TAIL = (KINDS.index(kind) for kind in ("head", "R", "norm", "tail"))
_DIRECTION = {KINDS.index("F"): FORWARD, KINDS.index("B"): BACKWARD, KINDS.index("W"): BACKWARD}


@dataclass(frozen=True, slots=True)
class Own:
    """What ranks themselves take, ms. Further axes may stand in front. Of TP ranks the longest counts.

    Args:
        actions: forward and backward, [dp, cp, stages, 2, micro_batches].
        reductions: of gradients, [dp, cp, stages].
        phases: late start against the rank that began first; from there to the first action; norm, [dp, cp, pp, 3].
        data: waiting for the dataloader, [dp, cp, pp].
    """

    actions: Floats
    reductions: Floats
    phases: Floats
    data: Floats

    def __add__(self, other: Own) -> Own:
        return Own(
            self.actions + other.actions,
            self.reductions + other.reductions,
            self.phases + other.phases,
            self.data + other.data,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """A step.

    Args:
        layout: of the job.
        own: what ranks themselves took.
        starved: of CPU ranks, beside it: the core was another's.
        exchange: exposed time of the K/V exchanges, [dp, 1, stages, 2, micro_batches]; 0 where CP ranks do not meet.
        gather: the same of FSDP's collectives, [1, 1, stages, 2, micro_batches].
        reduce: the same of the gradient reductions, [stages].
        norm: exposed time of the norm's collectives.
        other: logging, checkpoints and validation, [dp, cp, pp].
        tail: the shortest tail (optimizer) of all ranks.
        order: of the first rank's actions, as it ran them.
        step_ms: from one gradient norm to the next.
    """

    layout: Layout
    own: Own
    starved: Own
    exchange: Floats
    gather: Floats
    reduce: Floats
    norm: float
    other: Floats
    tail: float
    order: tuple[Action, ...]
    step_ms: float

    @property
    def gathers_again(self) -> bool:
        """Whether FSDP frees parameters between micro-batches, so that DP ranks meet in every one."""
        return bool((self.gather[0, 0, :, FORWARD, 1:] > 0).any())


def measured(records: Sequence[StepRecord], layout: Layout) -> Measured:
    """The arrays of a step.

    Args:
        records: of all ranks, in the order of their ranks.

    Raises:
        ValueError: there are not as many as the layout has ranks.
    """
    if len(records) != layout.size:
        raise ValueError(f"{len(records)} records of a step, but {layout} has {layout.size} ranks")
    kinds = {kind: number for number, kind in enumerate(KINDS)}
    rows = (
        (rank, kinds[section.kind], section.stage, section.micro_batch, section.start_ms, *section.times_ms)
        for rank, record in enumerate(records)
        for section in record.times.sections
    )
    return _measured(np.fromiter(chain.from_iterable(rows), np.float64).reshape(-1, 5 + len(TIMES)), layout)


def measured_of_packed(packed: Floats, layout: Layout) -> Measured:
    """The same from records as they travel, which spares a large job their objects.

    Args:
        packed: per rank what ``titan_wlb.records.pack`` gives, padded to one length, [ranks, numbers].

    Raises:
        ValueError: there are not as many rows as the layout has ranks.
    """
    if len(packed) != layout.size:
        raise ValueError(f"{len(packed)} records of a step, but {layout} has {layout.size} ranks")
    sections = packed[:, packed_size(0) :].reshape(layout.size, -1, 4 + len(TIMES))
    rank, place = np.nonzero(np.arange(sections.shape[1]) < packed[:, 2:3])
    return _measured(np.column_stack([rank, sections[rank, place]]), layout)


def _measured(rows: Floats, layout: Layout) -> Measured:
    """From rows of one section each, a rank's in their order: rank, kind, stage, micro-batch, start, times."""
    rank, kind, stage, micro_batch = (rows[:, column].astype(np.int64) for column in range(4))
    start, times = rows[:, 4], rows[:, 5:]
    is_action = np.isin(kind, list(_DIRECTION))
    virtual = int(stage.max(initial=0)) // layout.pp + 1
    num = int(micro_batch[is_action].max(initial=0)) + 1
    direction = np.where(kind == KINDS.index("F"), FORWARD, BACKWARD)
    cell = ((rank * virtual + stage // layout.pp) * 2 + direction) * num + micro_batch

    def actions(values: Floats) -> Floats:
        sums = _sums(cell[is_action], values[is_action], layout.size * virtual * 2 * num)
        return _by_stage(sums, layout, virtual, (2, num))

    def reductions(values: Floats) -> Floats:
        chosen = kind == _REDUCE
        sums = _sums((rank * virtual + stage // layout.pp)[chosen], values[chosen], layout.size * virtual)
        return _by_stage(sums, layout, virtual, ())

    def phase(which: int, values: Floats) -> Floats:
        chosen = kind == which
        return _by_rank(_sums(rank[chosen], values[chosen], layout.size), layout)

    def of_ranks(in_actions: Floats, elsewhere: Floats, late: Floats, data: Floats) -> Own:
        phases = (late, *(phase(which, elsewhere).max(axis=3) for which in (_HEAD, _NORM)))
        return Own(actions(in_actions).max(axis=2), reductions(elsewhere).max(axis=2), np.stack(phases, axis=-1), data)

    met_in_cp, met_in_fsdp = actions(times[:, CP]), actions(times[:, FSDP])
    tail_starts = np.full(layout.size, np.inf)
    np.minimum.at(tail_starts, rank[kind == _TAIL], start[kind == _TAIL])
    late = _by_rank(tail_starts.max() - tail_starts, layout).max(axis=3)
    tail = float(phase(_TAIL, times[:, COMPUTE] + times[:, STARVED] + times[:, OTHER]).max(axis=3).min())
    data = _by_rank(_sums(rank, times[:, DATA], layout.size), layout).max(axis=3)
    first = is_action & (rank == 0)
    return Measured(
        layout=layout,
        own=of_ranks(times[:, COMPUTE] + times[:, OTHER], times[:, COMPUTE], late, data),
        starved=of_ranks(times[:, STARVED], times[:, STARVED], np.zeros_like(late), np.zeros_like(data)),
        exchange=met_in_cp.min(axis=(1, 2))[:, np.newaxis],
        gather=met_in_fsdp.min(axis=(0, 1, 2))[np.newaxis, np.newaxis],
        reduce=reductions(times[:, FSDP]).min(axis=(0, 1, 2)),
        norm=float(phase(_NORM, times[:, FSDP] + times[:, PIPELINE]).min()),
        other=phase(_HEAD, times[:, OTHER]).max(axis=3),
        tail=tail,
        order=tuple(
            Action("F" if k == KINDS.index("F") else "B", int(s), int(m))
            for k, s, m in zip(kind[first], stage[first], micro_batch[first], strict=True)
        ),
        step_ms=float(tail_starts.max()) + tail,
    )


def _sums(places: npt.NDArray[np.int64], values: Floats, number: int) -> Floats:
    """Of the values at each of so many places."""
    sums: Floats = np.bincount(places, values, number).astype(np.float64)
    return sums


def _by_rank(values: Floats, layout: Layout) -> Floats:
    """[dp, cp, pp, tp] of one value per rank."""
    by_rank: Floats = values.reshape(layout.pp, layout.dp, layout.cp, layout.tp).transpose(1, 2, 0, 3)
    return by_rank


def _by_stage(values: Floats, layout: Layout, virtual: int, inner: tuple[int, ...]) -> Floats:
    """[dp, cp, tp, stages, *inner] of [ranks, virtual stages, *inner]; stage = virtual stage x pp + pp rank."""
    shaped = values.reshape(layout.pp, layout.dp, layout.cp, layout.tp, virtual, *inner)
    moved = np.moveaxis(shaped, 0, 4)
    by_stage: Floats = moved.reshape(layout.dp, layout.cp, layout.tp, virtual * layout.pp, *inner)
    return by_stage

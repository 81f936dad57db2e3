"""One axis evened out: every member of it takes what is usual among its peers for the work that is its share.

    two CP ranks that hold equal shares       11  14    ->  11  11      the slower one does as its peer does
    the second holds 3/4 of the work           5  15    ->  10  10      same pace: the work is shared out
    four DP ranks, equal work                 40  41  42  90    ->  41.5 each

*Usual* is the median, of two the smaller: a rank that is late does not shift it, so that the gain from evening out a
delay is the delay, and not a half of it. Two ranks that differ by chance count as if the slower could do better.

    CP ranks         of an action
    micro-batches    of a pipeline: on each stage, the usual pace of that stage x the mean work
    DP ranks         of each stage and direction: the usual pace x the mean work of a DP rank
    stages           of a pipeline: each direction at the usual pace of the stages x the mean work of a stage

The axes of pipeline and DP look at what is usual among an action's CP ranks; how a CP rank differs from it stays.

Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.timeline.measured import Floats, Measured, Own


@dataclass(frozen=True, slots=True)
class Evened:
    """What ranks would take.

    Args:
        cp, pipeline, dp, stage: with this axis evened out; as measured, where the axis has one member.
        peers: every rank as its peers are, and all else as it was: its CP ranks, else its DP ranks' or, in a pipeline
            alone, what its own actions usually take. Phases are compared over CP and DP ranks alone.
    """

    cp: Own
    pipeline: Own
    dp: Own
    stage: Own
    peers: Own


def usual(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """Median over an axis, which stays with size 1; of two values the smaller."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    if np.prod([values.shape[place] for place in axes]) <= 2:
        smaller: Floats = values.min(axis=axes, keepdims=True)
        return smaller
    median: Floats = np.median(values, axis=axes, keepdims=True)
    return median


def evened(measured: Measured, works: Floats, stage_works: Floats) -> Evened:
    """Each axis evened out, from what a step measured.

    Args:
        works: that each rank was given, in any unit, [dp, micro_batches, cp], above 0.
        stage_works: of a micro-batch on each stage, in any unit, [stages], above 0.
    """
    own, layout = measured.own, measured.layout
    work = works.transpose(0, 2, 1)[:, :, np.newaxis, np.newaxis]  # [dp, cp, 1, 1, micro_batches]
    share = work / work.mean(axis=1, keepdims=True)
    level = usual(own.actions / share, 1)
    differs = own.actions - level * share
    # What a micro-batch takes against the others of its DP rank, on all stages and in both directions.
    form = usual(_over(level, np.median(level, axis=4, keepdims=True)), (2, 3))
    usual_here = usual(_over(level, form), 4)
    total = work.sum(axis=(1, 4), keepdims=True)
    part = _over(form, form.sum(axis=4, keepdims=True))
    usual_of_dp = usual(level.sum(axis=4, keepdims=True) / total, 0)

    cp = pipeline = dp = stage = peers = own
    if layout.cp > 1:
        cp = _as_usual(own, 1, level)
        peers = _as_usual(own, (0, 1), level * share)
    elif layout.dp > 1:
        peers = _as_usual(own, (0, 1), usual_of_dp * total * part)
    elif layout.pp > 1:
        peers = replace(own, actions=usual_here * form)
    if layout.pp > 1:
        even = usual_here * form.mean(axis=4, keepdims=True)
        pipeline = replace(own, actions=np.maximum(even * share + differs, 0.0))
        per_work = usual(usual_here / stage_works[:, np.newaxis, np.newaxis], 2) * stage_works.mean()
        even = level + (per_work - usual_here) * form
        stage = replace(own, actions=np.maximum(even * share + differs, 0.0))
    if layout.dp > 1:
        even = usual_of_dp * total.mean(axis=0, keepdims=True) * _even_where_met(part, measured.gather > 0)
        dp = _as_usual(own, 0, np.maximum(even * share + differs, 0.0))
    return Evened(cp, pipeline, dp, stage, peers)


def _even_where_met(part: Floats, met: npt.NDArray[np.bool_]) -> Floats:
    """What part of a DP rank's work a micro-batch is: the same for all where they meet, the rest as it was dealt."""
    part = np.broadcast_to(part, np.broadcast_shapes(part.shape, met.shape))
    mean = np.where(met, part.mean(axis=0, keepdims=True), 0.0)
    rest = np.where(met, 0.0, part)
    left = 1.0 - mean.sum(axis=4, keepdims=True)
    return mean + rest * _over(left, rest.sum(axis=4, keepdims=True))


def _as_usual(own: Own, axis: int | tuple[int, ...], actions: Floats) -> Own:
    """These actions; reductions and phases as is usual over an axis."""
    return replace(
        own,
        actions=np.broadcast_to(actions, own.actions.shape),
        reductions=np.broadcast_to(usual(own.reductions, axis), own.reductions.shape),
        phases=np.broadcast_to(usual(own.phases, axis), own.phases.shape),
    )


def _over(values: Floats, by: Floats) -> Floats:
    """Quotients; 1 where nothing is divided by nothing."""
    values, by = np.broadcast_arrays(values, by)
    return np.divide(values, by, out=np.ones_like(values), where=by > 0)

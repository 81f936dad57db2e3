"""What a step would take if one axis were even: the cause of idle time, told by replaying what was measured.

    one pipeline rank, 2 CP ranks, 2 micro-batches; milliseconds of their forwards

    CP rank 0    6 2     each forward ends with the slower of the two: 6 + 6 = 12 ms
    CP rank 1    2 6     with CP ranks evened out 4 + 4 = 8 ms; the micro-batches are even as they are: still 12 ms

Everything but the axis stays as it was: *cp* gives every CP rank of an action their mean; the other axes scale each
member (a DP rank, a stage of a pipeline, a micro-batch of a pipeline) to the mean of the members' totals.

Source: ours.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.timeline.replay import step_time
from titan_wlb.planning.timeline.schedule import Schedule

Measured: TypeAlias = npt.NDArray[np.float64]  # [dp, cp, stages, micro_batches]

_OTHERS = {"dp": (1, 2, 3), "stage": (1, 3), "micro_batch": (1, 2)}  # axes that a member's total runs over
AXES = ("cp", *_OTHERS)


def step_time_of_ranks(
    schedule: Schedule, forward: Measured, backward: Measured, *, transfer: float = 0.0, wires: str = "independent"
) -> float:
    """The slowest DP rank's step time. An action takes as long as on the slowest of its CP ranks, which exchange K/V.

    Args:
        schedule: of each DP rank's pipeline.
        forward: time of every rank's forwards, [dp, cp, stages, micro_batches].
        backward: the same of the backwards.
        transfer: time of what travels between pipeline ranks.
        wires: one of ``WIRES``.
    """
    return max(
        step_time(schedule, stages_f.max(axis=0), stages_b.max(axis=0), transfer=transfer, wires=wires)
        for stages_f, stages_b in zip(forward, backward, strict=True)
    )


def evened(forward: Measured, backward: Measured, axis: str) -> tuple[Measured, Measured]:
    """(forward, backward) with the same total and one axis even.

    Args:
        axis: one of ``AXES``.

    Raises:
        ValueError: there is no such axis.
    """
    if axis not in AXES:
        raise ValueError(f"no axis {axis!r}: choose one of {', '.join(AXES)}")
    if axis == "cp":
        return _mean_of_cp_ranks(forward), _mean_of_cp_ranks(backward)
    totals = (forward + backward).sum(axis=_OTHERS[axis], keepdims=True)
    members = {"dp": 0, "stage": 2, "micro_batch": 3}[axis]
    mean = totals.mean(axis=members, keepdims=True)
    scale = np.divide(mean, totals, out=np.ones_like(totals), where=totals > 0)
    return forward * scale, backward * scale


def _mean_of_cp_ranks(times: Measured) -> Measured:
    return np.broadcast_to(times.mean(axis=1, keepdims=True), times.shape)

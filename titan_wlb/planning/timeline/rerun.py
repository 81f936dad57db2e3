"""A measured step, run again by all ranks of the job with changed times: how long would it have taken?

    begin -> data -> actions of the schedule -> gradient reduction -> norm, where all ranks meet -> optimizer

    pipeline    an action starts after what it receives, as in ``events``
    CP ranks    end an action together, with the slowest of them: they exchange K/V in every layer
    FSDP ranks  (dp x cp) end an action together in which they gathered or reduced in every layer; they also start it
                together where parameters are gathered

Many cases run at once: every array has them as its first axis.

Source: ours.
"""

from __future__ import annotations

import numpy as np

from titan_wlb.planning.timeline.events import Event, events_of
from titan_wlb.planning.timeline.measured import BACKWARD, FORWARD, HEAD, NORM, START, Floats, Measured, Own
from titan_wlb.planning.timeline.schedule import Schedule

_FSDP, _CP = (1, 2), (2,)  # axes of a group in [cases, dp, cp]


def step_times(measured: Measured, own: Own, schedule: Schedule | None, *, wires: str = "independent") -> Floats:
    """Step times in ms, [cases].

    Args:
        measured: what stays as it was: exposed times, other, optimizer.
        own: what ranks take in each case, its arrays with the cases in front.
        schedule: of the pipeline; None without one.
        wires: one of ``WIRES``.
    """
    pp = measured.layout.pp
    events = _in_order(measured) if schedule is None else events_of(schedule, wires)
    last_backward = {
        event.action.stage: place
        for place, event in enumerate(events)
        if event.action.kind == "B" and not event.travels
    }
    phases = own.phases
    begun = phases[..., START] + phases[..., HEAD] + own.data + measured.other
    free = [begun[..., rank] for rank in range(pp)]  # when a rank is done with what it does now
    meets_cp = measured.exchange.max(axis=(0, 1)) > 0
    meets_fsdp = measured.gather.max(axis=(0, 1)) > 0
    gathers_again = measured.gathers_again
    ends: list[Floats] = []
    for place, ((kind, stage, micro_batch), travels, after) in enumerate(events):
        direction = FORWARD if kind == "F" else BACKWARD
        if travels:
            ends.append(_latest([ends[before] for before in after]))
            continue
        rank = stage % pp
        cell = ..., stage, direction, micro_batch
        time = _latest([free[rank], *(ends[before] for before in after)])
        is_met = meets_fsdp[stage, direction, micro_batch]
        if is_met and (direction == FORWARD or gathers_again):
            time = time.max(axis=_FSDP, keepdims=True)
        time = time + own.actions[cell]
        if meets_cp[stage, direction, micro_batch]:
            time = time.max(axis=_CP, keepdims=True) + measured.exchange[cell]
        if is_met:
            time = time.max(axis=_FSDP, keepdims=True) + measured.gather[cell]
        ends.append(time)
        if place == last_backward[stage] and (own.reductions[..., stage].any() or measured.reduce[stage] > 0):
            time = time + own.reductions[..., stage]
            if measured.reduce[stage] > 0:
                time = time.max(axis=_FSDP, keepdims=True) + measured.reduce[stage]
        free[rank] = time
    met = np.stack([(time + phases[..., rank, NORM]).max(axis=_FSDP) for rank, time in enumerate(free)]).max(axis=0)
    times: Floats = met + measured.norm + measured.tail
    return times


def _latest(times: list[Floats]) -> Floats:
    latest = times[0]
    for time in times[1:]:
        latest = np.maximum(latest, time)
    return latest


def _in_order(measured: Measured) -> tuple[Event, ...]:
    """Without a pipeline: one action after the other."""
    assert measured.layout.pp == 1, "a pipeline has a schedule"
    return tuple(Event(action, False, (place - 1,) if place else ()) for place, action in enumerate(measured.order))

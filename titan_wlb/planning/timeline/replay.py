"""When every forward and backward of a pipeline starts and ends, from what each takes: predicted or measured.

    1F1B, 2 ranks, 2 micro-batches that take 2 and 1 for a forward and twice that for a backward, on each stage

    time      0   1   2   3   4   5   6   7   8   9  10  11  12
    rank 0    [ F0  ] F1              .       [     B0      ] [ B1  ]
    rank 1            [ F0  ] [     B0      ] F1  [ B1  ]

The step time is the longest of many sums of durations: convex in them, and never less when one of them grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.timeline.events import events_of
from titan_wlb.planning.timeline.schedule import Schedule

Durations: TypeAlias = Sequence[Sequence[float]] | npt.NDArray[np.float64]  # [stage][micro_batch]


@dataclass(frozen=True, slots=True)
class Timeline:
    """A step of one pipeline, in the unit of the durations.

    Args:
        schedule: that was run.
        starts: per rank, when each action of ``schedule.ranks`` starts to compute.
        ends: per rank, when it ends.
    """

    schedule: Schedule
    starts: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]

    @property
    def step_time(self) -> float:
        """From the first action's start to the last one's end."""
        return max(ends[-1] for ends in self.ends)

    @property
    def idle(self) -> tuple[float, ...]:
        """Per rank, what of the step time it does not compute."""
        busy = (
            fsum(end - start for start, end in zip(starts, ends, strict=True))
            for starts, ends in zip(self.starts, self.ends, strict=True)
        )
        return tuple(self.step_time - time for time in busy)

    def waits(self, rank: int) -> tuple[float, ...]:
        """How long a rank waits right before each of its actions."""
        before = (0.0, *self.ends[rank][:-1])
        return tuple(start - end for start, end in zip(self.starts[rank], before, strict=True))


def replay(
    schedule: Schedule, forward: Durations, backward: Durations, *, transfer: float = 0.0, wires: str = "independent"
) -> Timeline:
    """The timeline of a step.

    Args:
        schedule: whose actions take their time.
        forward: time of each stage's forward of each micro-batch, [stage][micro_batch], at least 0.
        backward: the same of the backwards.
        transfer: time of what travels from one rank to another.
        wires: one of ``WIRES``.
    """
    events = events_of(schedule, wires)
    starts, ends = _replay(schedule, forward, backward, transfer, wires)
    places: list[list[int]] = [[] for _ in range(schedule.pp)]
    for place, event in enumerate(events):
        if not event.travels:
            places[event.action.stage % schedule.pp].append(place)
    return Timeline(
        schedule,
        tuple(tuple(starts[place] for place in of_rank) for of_rank in places),
        tuple(tuple(ends[place] for place in of_rank) for of_rank in places),
    )


def step_time(
    schedule: Schedule, forward: Durations, backward: Durations, *, transfer: float = 0.0, wires: str = "independent"
) -> float:
    """``replay(...).step_time``, quicker."""
    return max(_replay(schedule, forward, backward, transfer, wires)[1])


def _replay(
    schedule: Schedule, forward: Durations, backward: Durations, transfer: float, wires: str
) -> tuple[list[float], list[float]]:
    """(starts, ends) of the events."""
    assert len(forward) == len(backward) == schedule.num_stages, "a row per stage"
    durations = {
        "F": forward.tolist() if isinstance(forward, np.ndarray) else forward,
        "B": backward.tolist() if isinstance(backward, np.ndarray) else backward,
    }
    starts: list[float] = []
    ends: list[float] = []
    for (kind, stage, micro_batch), travels, after in events_of(schedule, wires):
        start = 0.0
        for place in after:
            if ends[place] > start:
                start = ends[place]
        starts.append(start)
        ends.append(start + (transfer if travels else durations[kind][stage][micro_batch]))
    return starts, ends

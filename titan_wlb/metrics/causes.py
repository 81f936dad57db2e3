"""A run's lost time by cause, logged step after logged step: what the planner knows of a step, beside its records.

    work of a micro-batch [0, 4) [4, 8) of one document on two CP ranks     b + c of each token, both 1
    CP rank 0    4 tokens, 16 of 64 squares    20
    CP rank 1    4 tokens, 48 of 64 squares    52

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from titan_wlb.planning.plan import ShardPlan, StepPlan
from titan_wlb.planning.planner import Pipeline
from titan_wlb.planning.sharding.needed import chunk_array
from titan_wlb.planning.timeline.causes import CAUSES, SlowRanks, causes
from titan_wlb.planning.timeline.measured import Floats
from titan_wlb.planning.timeline.schedule import SCHEDULES, build_schedule
from titan_wlb.planning.workload import Workload
from titan_wlb.records import Layout, StepRecord


class LostTime:
    """Called for every logged step, in their order, on the rank that logs.

    Args:
        pipeline: that micro-batches run through.
        workload: cost model, for how a micro-batch's work is shared out over CP ranks.
        rank_ms: from a micro-batch's predicted cost in ns to what each of its ranks computes, in ms.
        wires: "independent" (gloo) or "in_order" (NCCL), as in ``planning/timeline/events``.
    """

    def __init__(
        self,
        layout: Layout,
        pipeline: Pipeline,
        workload: Workload,
        rank_ms: Callable[[int], float],
        *,
        wires: str = "independent",
    ):
        self._layout, self._pipeline, self._workload, self._rank_ms = layout, pipeline, workload, rank_ms
        self._wires = wires
        self._slow_ranks = SlowRanks()
        self.replay_error = 0.0

    def __call__(self, records: Sequence[StepRecord], plan: StepPlan) -> tuple[Mapping[str, float], int]:
        """(cause -> ms that the step would have gained, the rank that is slow in most steps or -1).

        The slow rank's own loss is 0 until there is one. ``replay_error`` then holds replayed / measured - 1. Nothing
        is told of pipelines whose schedule the timeline does not know.

        Args:
            records: of all ranks, in the order of their ranks.
            plan: of the same step.
        """
        if self._layout.pp > 1 and self._pipeline.schedule not in SCHEDULES:
            return {}, -1
        schedule = None
        if self._layout.pp > 1:
            number = len(plan.of_dp_rank(0))
            schedule = build_schedule(self._pipeline.schedule, self._layout.pp, number, self._pipeline.virtual_stages)
        found = causes(
            records,
            self._layout,
            schedule,
            works=works_of(plan, self._layout, self._workload, self._rank_ms),
            slow_rank=self._slow_ranks.rank,
            wires=self._wires,
        )
        if records[0].times.totals.steps:  # not in a process's first two steps, which compile and connect
            self._slow_ranks.add(found)
        self.replay_error = found.replayed_ms / max(found.measured_ms, 1e-9) - 1
        slow_rank = self._slow_ranks.rank
        lost_ms = {name: found.lost_ms[name] for name in CAUSES}
        if slow_rank < 0 or slow_rank != found.ranks["slow_rank"]:
            lost_ms["slow_rank"] = 0.0
        return lost_ms, slow_rank


def works_of(plan: StepPlan, layout: Layout, workload: Workload, rank_ms: Callable[[int], float]) -> Floats:
    """What each rank of a micro-batch's pipeline was given, ms, [dp, micro_batches, cp]."""
    works = []
    for dp_rank in range(layout.dp):
        places = plan.of_dp_rank(dp_rank)
        shares = [cp_shares(plan.shards[place], workload) for place in places]
        works.append(
            [rank_ms(plan.micro_batches[place].cost) * share for place, share in zip(places, shares, strict=True)]
        )
    return np.array(works)


def cp_shares(plan: ShardPlan, workload: Workload) -> Floats:
    """The work of each CP rank over their mean: its tokens, and the rows of attention that it computes."""
    if len(plan.ranks) == 1:
        return np.ones(1)
    works = np.zeros(len(plan.ranks))
    for cp_rank, chunks in enumerate(plan.ranks):
        _, start, stop = chunk_array(chunks).T
        tokens, squares = int((stop - start).sum()), int((stop * stop - start * start).sum())
        works[cp_rank] = workload.linear * tokens + workload.quadratic * squares
    mean = float(works.mean())
    return works / mean if mean > 0 else np.ones(len(plan.ranks))

"""Lost time by cause as the reporter asks for it: plan in, scalars out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "planning"))

from simulated_step import Job, simulate

from titan_wlb.metrics.causes import LostTime, cp_shares, works_of
from titan_wlb.planning.plan import Chunk, Document, MicroBatch, Segment, ShardPlan, StepPlan
from titan_wlb.planning.planner import Pipeline
from titan_wlb.planning.timeline.causes import CAUSES
from titan_wlb.planning.timeline.schedule import Action
from titan_wlb.planning.workload import Workload
from titan_wlb.records import Layout, StepRecord, Totals

WORKLOAD = Workload(0, 1, 1)


def plan_of(costs: list[list[int]], ranks: tuple[tuple[Chunk, ...], ...]) -> StepPlan:
    """A step whose DP ranks run micro-batches of these costs, dealt by turns."""
    micro_batch = MicroBatch((Segment(Document(0, 8), 0, 8),), 0)
    number = len(costs[0])
    dealt = [(dp_rank, costs[dp_rank][place]) for place in range(number) for dp_rank in range(len(costs))]
    return StepPlan(
        step=7,
        epoch=0,
        micro_batches=tuple(replace(micro_batch, cost=cost) for _, cost in dealt),
        dp_ranks=tuple(dp_rank for dp_rank, _ in dealt),
        shards=tuple(ShardPlan("per_sequence", (8,), ranks) for _ in dealt),
        num_labels=1,
        arrived=1,
        waiting_documents=0,
        waiting_tokens=0,
        delay_trained=0,
        oldest_waiting=0,
        digest="",
        state=b"",
    )


def later(records: list[StepRecord]) -> list[StepRecord]:
    """The same behind the two warm-up steps."""
    return [replace(record, times=replace(record.times, totals=Totals(1))) for record in records]


WHOLE = ((Chunk(0, 0, 8),),)
HALVES = ((Chunk(0, 0, 4),), (Chunk(0, 4, 8),))


def test_the_drawn_shares():
    assert (cp_shares(ShardPlan("per_sequence", (8,), HALVES), WORKLOAD) * 36).tolist() == pytest.approx([20, 52])
    assert cp_shares(ShardPlan("per_sequence", (8,), WHOLE), WORKLOAD).tolist() == [1.0]


def test_works_stand_at_the_place_at_which_a_dp_rank_runs_them():
    works = works_of(plan_of([[1, 2, 3], [4, 5, 6]], HALVES), Layout(dp=2, cp=2), WORKLOAD, lambda cost: 36.0 * cost)
    assert works[:, :, 0].tolist() == [[20, 40, 60], [80, 100, 120]]
    assert works[:, :, 1].tolist() == [[52, 104, 156], [208, 260, 312]]


def test_a_head_start_by_sharding_is_cp_and_no_slow_rank():
    job = Job(Layout(cp=2), work=lambda dp_rank, micro_batch, cp_rank: (5.0, 13.0)[cp_rank])
    lost_time = LostTime(job.layout, Pipeline(), WORKLOAD, float)
    for _ in range(10):
        lost_ms, slow_rank = lost_time(later(simulate(job)), plan_of([[9, 9, 9, 9]], HALVES))
    assert slow_rank == -1
    assert set(lost_ms) == set(CAUSES)
    assert lost_ms["cp"] == pytest.approx(4 * 3 * 4.0)
    assert lost_ms["slow_rank"] == 0.0
    assert lost_time.replay_error == pytest.approx(0.0, abs=1e-9)


def test_a_slow_rank_is_told_once_it_was_slow_in_most_steps_behind_the_warm_up():
    job = Job(Layout(pp=2, dp=2))
    lost_time = LostTime(job.layout, Pipeline("1F1B", 2), WORKLOAD, float)
    records = simulate(job, {(1, Action("F", 0, 0)): 50.0})
    plan = plan_of([[9, 9, 9, 9]] * 2, WHOLE)
    told = [lost_time(records, plan)]
    told += [lost_time(later(records), plan) for _ in range(10)]
    assert [slow_rank for _, slow_rank in told] == [-1] * 8 + [1] * 3
    assert [lost_ms["slow_rank"] for lost_ms, _ in told] == pytest.approx([0.0] * 8 + [50.0] * 3)
    assert all(lost_ms["dp"] == pytest.approx(50.0) for lost_ms, _ in told)


def test_nothing_is_told_of_an_unknown_schedule():
    job = Job(Layout(pp=2))
    lost_time = LostTime(job.layout, Pipeline("InterleavedZeroBubble", 2), WORKLOAD, float)
    assert lost_time(simulate(job), plan_of([[9, 9, 9, 9]], WHOLE)) == ({}, -1)

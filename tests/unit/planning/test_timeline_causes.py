"""Delays planted in a simulated step are found again: the rank, the cause, and what the step would have gained."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_step import Job, simulate

from titan_wlb.planning.timeline.causes import CAUSES, SlowRanks, causes, causes_of, lost_scalars
from titan_wlb.planning.timeline.measured import measured, measured_of_packed
from titan_wlb.planning.timeline.peers import usual
from titan_wlb.planning.timeline.schedule import Action
from titan_wlb.records import COMPUTE, CP, STARVED, TIMES, Layout, Section, StepRecord, StepTimes, pack

JOBS = {
    "cp2": Job(Layout(cp=2)),
    "cp4": Job(Layout(cp=4)),
    "dp2": Job(Layout(dp=2)),
    "dp2, gathers again": Job(Layout(dp=2), gathers_again=True),
    "dp4": Job(Layout(dp=4)),
    "pp2": Job(Layout(pp=2)),
    "pp2, interleaved": Job(Layout(pp=2), "Interleaved1F1B", virtual_stages=2),
    "pp4, gpipe": Job(Layout(pp=4), "GPipe", micro_batches=6),
    "pp2 cp2": Job(Layout(pp=2, cp=2)),
    "pp2 dp2": Job(Layout(pp=2, dp=2)),
    "pp2 dp2 cp2": Job(Layout(pp=2, dp=2, cp=2)),
}
jobs = pytest.mark.parametrize("name", JOBS)
DELAYS_MS = (20.0, 50.0, 100.0)


def found(job: Job, plants=None, **arguments):
    return causes(simulate(job, plants), job.layout, job.pipeline, **arguments)


def axis_of(layout: Layout) -> set[str]:
    """Where a delay of one rank in one action is to be found."""
    if layout.cp > 1:
        return {"cp"}
    return ({"dp"} if layout.dp > 1 else set()) | ({"pipeline"} if layout.pp > 1 else set())


def on_the_critical_path(job: Job) -> list[tuple[int, Action]]:
    """The first rank's first forward and last backward, and the last rank's last backward."""
    last_stage = (job.pipeline.num_stages if job.pipeline else 1) - 1
    last_rank, last = job.layout.size - 1, job.micro_batches - 1
    return [
        (0, Action("F", 0, 0)),
        (0, Action("B", 0, last)),
        (last_rank, Action("B", last_stage, last)),
    ]


@jobs
def test_a_step_without_delays_is_replayed_and_has_lost_nothing(name):
    result = found(JOBS[name])
    assert result.replayed_ms == pytest.approx(result.measured_ms)
    assert result.lost_ms == pytest.approx(dict.fromkeys(CAUSES, 0.0) | {"data": 0.25})
    assert not result.late_ms


@jobs
@pytest.mark.parametrize("delay", DELAYS_MS)
def test_a_late_action_is_found_at_its_rank_and_under_its_axis(name, delay):
    job = JOBS[name]
    for rank, action in on_the_critical_path(job):
        result = found(job, {(rank, action): delay})
        assert result.replayed_ms == pytest.approx(result.measured_ms)
        for cause in axis_of(job.layout) | {"slow_rank"}:
            assert result.lost_ms[cause] == pytest.approx(delay), cause
            assert result.ranks[cause] == rank
        for cause in set(CAUSES) - axis_of(job.layout) - {"slow_rank", "data"}:
            assert result.lost_ms[cause] == pytest.approx(0.0), cause
        assert result.late_ms == ((rank, pytest.approx(delay)),)


@jobs
def test_a_late_loader_is_data_and_no_slow_rank(name):
    job = JOBS[name]
    rank = job.layout.dp * job.layout.cp - 1  # of the first stage: later ones have time
    result = found(job, {(rank, "data"): 50.0})
    assert result.replayed_ms == pytest.approx(result.measured_ms)
    assert result.lost_ms["data"] == pytest.approx(50.25)
    assert result.ranks["data"] == rank
    assert not result.late_ms


@pytest.mark.parametrize("name", ["cp2", "dp2", "pp2 cp2", "pp2 dp2"])
@pytest.mark.parametrize("place", ["head", "tail"])
def test_a_rank_that_is_late_at_the_beginning_or_from_its_last_optimizer_is_found(name, place):
    job = JOBS[name]
    result = found(job, {(1, place): 50.0})
    assert result.lost_ms["slow_rank"] == pytest.approx(50.0)
    assert result.ranks["slow_rank"] == 1
    (cause,) = axis_of(job.layout) - {"pipeline"}
    assert result.lost_ms[cause] == pytest.approx(50.0)
    assert result.replayed_ms == pytest.approx(result.measured_ms)


def test_a_slow_cp_rank_inside_a_pipeline_is_named_although_all_others_wait_elsewhere():
    """The drawing of ``causes``."""
    job = JOBS["pp2 cp2"]
    records = simulate(job, {(1, Action("F", 0, 0)): 50.0})
    assert records[0].ms("cp") > 50
    for record in records[2:]:
        assert record.ms("pipeline") > 50 > record.ms("cp")
    result = causes(records, job.layout, job.pipeline)
    assert result.lost_ms == pytest.approx(
        {"cp": 50.0, "pipeline": 0.0, "dp": 0.0, "stage": 0.0, "slow_rank": 50.0, "data": 0.25, "starved": 0.0}
    )
    assert result.ranks["slow_rank"] == 1


@pytest.mark.parametrize("name", ["cp2", "cp4"])
def test_delays_that_meet_one_another_add_up(name):
    job = JOBS[name]
    result = found(job, {(0, Action("F", 0, 1)): 20.0, (1, Action("F", 0, 2)): 30.0})
    assert result.measured_ms == pytest.approx(found(job).measured_ms + 50.0)
    assert result.replayed_ms == pytest.approx(result.measured_ms)
    assert result.lost_ms["cp"] == pytest.approx(50.0)
    assert result.lost_ms["slow_rank"] == pytest.approx(30.0)
    assert result.ranks["slow_rank"] == 1


def test_a_delay_that_a_bubble_hides_is_late_and_costs_only_what_it_costs():
    job = JOBS["pp4, gpipe"]
    plain, late = found(job), found(job, {(3, Action("F", 3, 0)): 1000.0})
    assert late.lost_ms["slow_rank"] == pytest.approx(late.measured_ms - plain.measured_ms)
    hidden = found(job, {(0, Action("F", 0, 5)): 3.0, (3, Action("B", 3, 0)): 3.0})
    assert hidden.lost_ms["pipeline"] == pytest.approx(hidden.measured_ms - plain.measured_ms)


def test_a_stage_that_is_slow_in_all_its_actions_is_the_stages_loss_and_no_machines():
    job = JOBS["pp2"]
    plants = {(0, Action(kind, 0, micro_batch)): 5.0 for kind in "FB" for micro_batch in range(4)}
    result = found(job, plants)
    plain = found(job)
    assert result.lost_ms["stage"] == pytest.approx(result.measured_ms - plain.measured_ms)
    assert result.ranks["stage"] == 0
    assert result.lost_ms["pipeline"] == pytest.approx(0.0)
    # 15 and 10 ms forward, 25 and 20 ms backward: as planned if the first stage has more layers
    planned = found(Job(Layout(pp=2), work=job.work), stage_works=[1.0, 1.0])
    assert planned.lost_ms["stage"] == pytest.approx(0.0)


WORKS = [[6.0, 8.0, 9.0, 12.0], [11.0, 7.0, 10.0, 13.0]]


def test_work_dealt_unevenly_over_dp_ranks_loses_what_even_dealing_would_gain():
    job = Job(Layout(dp=2), work=lambda dp_rank, micro_batch, cp_rank: WORKS[dp_rank][micro_batch])
    total, mean = 3 * sum(WORKS[1]), 3 * (sum(WORKS[0]) + sum(WORKS[1])) / 2
    result = found(job, works=WORKS)
    # the first forward's gathers and the last backward's reductions make the ranks wait once more
    assert result.lost_ms["dp"] == pytest.approx(total - mean, abs=3.0)
    assert not result.late_ms, "work is no slowness"
    assert found(job).late_ms, "unless nobody tells what the work is"


def test_work_dealt_unevenly_over_cp_ranks_loses_what_even_sharding_would_gain():
    shares = np.array([0.5, 1.5])
    job = Job(Layout(cp=2), work=lambda dp_rank, micro_batch, cp_rank: 10.0 * float(shares[cp_rank]))
    result = found(job, works=np.broadcast_to(shares, (1, 4, 2)))
    assert result.lost_ms["cp"] == pytest.approx(4 * 3 * 5.0)
    assert not result.late_ms
    late = found(job, {(1, Action("F", 0, 0)): 50.0}, works=np.broadcast_to(shares, (1, 4, 2)))
    assert late.lost_ms["cp"] == pytest.approx(4 * 3 * 5.0 + 50.0)
    assert late.late_ms == ((1, pytest.approx(50.0)),)


@given(st.lists(st.integers(20, 60), min_size=4, max_size=7), st.sampled_from(["1F1B", "GPipe"]), st.integers(2, 3))
@settings(max_examples=40, deadline=None)
def test_uneven_micro_batches_lose_what_even_ones_would_gain(works, schedule, pp):
    def job(of):
        return Job(Layout(pp=pp), schedule, len(works), work=lambda dp_rank, micro_batch, cp_rank: of[micro_batch])

    mean = sum(works) / len(works)
    result, even = found(job(works)), found(job([mean] * len(works)))
    assert result.replayed_ms == pytest.approx(result.measured_ms)
    assert result.lost_ms["pipeline"] == pytest.approx(max(result.measured_ms - even.measured_ms, 0.0), abs=1e-6)
    assert result.lost_ms["stage"] == pytest.approx(0.0, abs=1e-6)


@given(st.sampled_from(sorted(JOBS)), st.data())
@settings(max_examples=40, deadline=None)
def test_a_loss_is_never_negative_and_never_more_than_the_step(name, data):
    job = JOBS[name]
    ms = st.floats(1.0, 30.0)
    table = data.draw(st.lists(ms, min_size=16, max_size=16))
    job = replace(job, work=lambda d, m, c: table[(5 * d + 3 * m + 7 * c) % 16])
    result = found(job)
    assert result.replayed_ms == pytest.approx(result.measured_ms, rel=0.15)
    for cause in CAUSES:
        assert 0 <= result.lost_ms[cause] <= result.replayed_ms
        assert 0 <= result.ranks[cause] < job.layout.size


def test_a_rank_that_is_slow_in_most_steps_is_named_and_one_that_changes_is_not():
    job = JOBS["dp4"]
    always, turns, few = SlowRanks(), SlowRanks(), SlowRanks()
    for step in range(20):
        slow = found(job, {(2, Action("B", 0, 1)): 20.0})
        always.add(slow if step % 3 else found(job))
        turns.add(found(job, {(step % 4, Action("B", 0, 1)): 20.0}))
        few.add(slow if step % 3 == 0 else found(job))
        assert always.rank == (2 if step >= 7 else -1)
        assert turns.rank == few.rank == -1
    assert always.share == pytest.approx(0.65)
    result = found(job, {(2, Action("B", 0, 1)): 20.0}, slow_rank=always.rank)
    scalars = lost_scalars(result, always)
    assert scalars["wlb/lost/slow_rank"] == 2
    assert scalars["wlb/lost/slow_rank_ms"] == pytest.approx(20)
    assert scalars["wlb/lost/dp_ms"] == pytest.approx(20)
    assert lost_scalars(result, turns)["wlb/lost/slow_rank_ms"] == 0
    assert lost_scalars(result, turns)["wlb/lost/slow_rank"] == -1
    for _ in range(20):
        always.add(found(job))
    assert (always.rank, always.share) == (-1, 0.0), "repaired"


def test_two_slow_ranks_hide_neither_and_two_that_take_turns_are_chance():
    job = JOBS["dp4"]
    both, turns = SlowRanks(), SlowRanks()
    for step in range(20):
        both.add(found(job, {(rank, Action("F", 0, 1)): 50.0 + rank for rank in (0, 1)}))
        turns.add(found(job, {(0 if step % 5 < 3 else 1, Action("F", 0, 1)): 50.0}))
    assert both.rank == 0
    assert turns.rank == -1


def test_the_slow_rank_that_is_asked_for_is_the_one_told_of():
    job = JOBS["dp4"]
    plants = {(2, Action("B", 0, 1)): 50.0, (1, Action("F", 0, 1)): 20.0}
    assert found(job, plants).ranks["slow_rank"] == 2
    assert found(job, plants).lost_ms["slow_rank"] == pytest.approx(30)
    asked = found(job, plants, slow_rank=1)
    assert asked.ranks["slow_rank"] == 1
    assert asked.lost_ms["slow_rank"] == pytest.approx(0)


def test_tp_ranks_count_as_the_longest_and_are_named_by_their_first():
    job = Job(Layout(pp=2, cp=2, tp=2))
    both = {(rank, Action("F", 0, 0)): 50.0 for rank in (2, 3)}  # they meet in every layer
    result = found(job, both)
    assert result.lost_ms["cp"] == pytest.approx(50)
    assert result.ranks["cp"] == result.ranks["slow_rank"] == 2


def test_the_drawn_own_and_exposed_times():
    def record(rank, compute, starved, cp):
        times = [0.0] * len(TIMES)
        times[COMPUTE], times[STARVED], times[CP] = compute, starved, cp
        sections = Section("F", 0, 0, 0.0, tuple(times)), Section("tail", -1, -1, 16.0, (0.0,) * len(TIMES))
        return StepRecord(rank, StepTimes(1, sections))

    arrays = measured([record(0, 10.0, 1.0, 5.0), record(1, 14.0, 0.0, 2.0)], Layout(cp=2))
    assert arrays.own.actions[0, :, 0, 0, 0].tolist() == [10.0, 14.0]
    assert arrays.starved.actions[0, :, 0, 0, 0].tolist() == [1.0, 0.0]
    assert arrays.exchange[0, 0, 0, 0, 0] == 2.0
    assert arrays.step_ms == 16.0


def test_the_drawn_usual():
    assert usual(np.array([11.0, 14.0]), 0).tolist() == [11.0]
    assert (usual(np.array([5.0, 15.0]) / np.array([0.5, 1.5]), 0)).tolist() == [10.0]
    assert usual(np.array([40.0, 41.0, 42.0, 90.0]), 0).tolist() == [41.5]


def test_what_does_not_fit_is_refused_in_one_line():
    job = JOBS["pp2"]
    records = simulate(job)
    other = Job(Layout(pp=2), micro_batches=6)
    wrong = [
        (lambda: causes(records[:1], job.layout, job.pipeline), "1 records of a step, but .* has 2 ranks"),
        (lambda: causes(records, job.layout), "a pipeline of 2 ranks needs its schedule"),
        (lambda: causes(records, job.layout, other.pipeline), "4 micro-batches, but a schedule of 2 and 6"),
        (lambda: causes(records, job.layout, job.pipeline, works=[[1.0, 2.0]]), r"works of shape \[1, 2\]"),
        (lambda: causes(records, job.layout, job.pipeline, stage_works=[1.0]), "there are 2 stages"),
    ]
    for call, words in wrong:
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_the_same_records_give_the_same_numbers():
    results = [found(JOBS["pp2 dp2 cp2"], {(3, Action("F", 0, 1)): 7.7}) for _ in range(2)]
    assert results[0] == results[1]


@jobs
def test_packed_records_give_the_same(name):
    job = JOBS[name]
    records = simulate(job, {(0, Action("F", 0, 0)): 20.0})
    rows = [pack(record) for record in records]
    packed = np.array([[*row, *(-9.0,) * (max(map(len, rows)) + 12 - len(row))] for row in rows])
    result = causes_of(measured_of_packed(packed, job.layout), job.pipeline, number=7)
    assert result == causes(records, job.layout, job.pipeline)
    with pytest.raises(ValueError, match="records of a step, but"):
        measured_of_packed(packed[1:], job.layout)


def test_every_rank_and_delay_is_told_apart():
    job = JOBS["pp2 dp2 cp2"]
    for rank, delay in product(range(job.layout.size), (20.0, 100.0)):
        pp_rank = job.layout.coordinates(rank)[0]
        result = found(job, {(rank, Action("B", pp_rank, 3)): delay})
        assert result.ranks["slow_rank"] == rank
        assert result.lost_ms["cp"] == result.lost_ms["slow_rank"] == pytest.approx(delay)

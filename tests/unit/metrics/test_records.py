import json
import subprocess
import sys

import pytest

from titan_wlb.records import (
    KINDS,
    TIMES,
    Layout,
    MicroBatchCost,
    Section,
    StepRecord,
    StepTimes,
    Totals,
    cost_error,
    cost_scale,
    from_json,
    idle_share,
    measured_imbalance_degree,
    micro_batch_compute_ms,
    micro_batch_costs,
    pack,
    packed_size,
    to_json,
    unpack,
)


def section(kind, micro_batch, compute=0.0, stage=0, **times):
    times = {"compute": compute, **times}
    return Section(kind, stage, micro_batch, 0.0, tuple(float(times.get(name, 0)) for name in TIMES))


def record(rank, *sections, **kwargs):
    return StepRecord(rank, StepTimes(3, sections), **kwargs)


def test_ranks_are_numbered_as_torchtitan_does():
    layout = Layout(pp=2, dp=3, cp=2, tp=2)
    places = [layout.coordinates(rank) for rank in range(layout.size)]
    assert places == [(p, d, c, t) for p in range(2) for d in range(3) for c in range(2) for t in range(2)]


def test_wall_is_everything_once_and_blocked_lies_inside_compute():
    times = section("F", 0, 100, blocked=30, starved=1, pipeline=2, cp=4, fsdp=8, data=16, other=32)
    assert times.wall_ms == record(0, times).ms("wall") == 163
    assert record(0, times).ms("idle") == 30


def test_waiting_is_what_transfer_leaves_of_a_collectives_time():
    step = record(0, section("F", 0, 10, cp=7, fsdp=20), cp_transfer_ms=3, fsdp_transfer_ms=20.5)
    assert (step.ms("cp_transfer"), step.ms("cp_waiting")) == (3, 4)
    assert (step.ms("fsdp_transfer"), step.ms("fsdp_waiting")) == (20.5, 0)


def test_the_measured_degree_is_of_forward_and_backward_averaged_over_the_ranks_of_a_pipeline():
    """Two stages, two DP ranks, two micro-batches each; waits, reductions and the optimizer do not count.

    dp_rank 0    micro-batch 0: (10 + 30) / 2 = 20     micro-batch 1: (20 + 20) / 2 = 20
    dp_rank 1    micro-batch 0: (60 + 60) / 2 = 60     micro-batch 1: (10 + 10) / 2 = 10
    degree       4 * 60 / 110
    """
    noise = section("R", -1, 500, stage=1), section("tail", -1, 500), section("head", -1, 500)
    records = [
        record(0, section("F", 0, 4, cp=99), section("B", 0, 6, starved=99), section("F", 1, 20), *noise),
        record(1, section("F", 0, 60), section("B", 1, 10), *noise),
        record(2, section("F", 0, 10, stage=1), section("W", 0, 20, stage=1), section("B", 1, 20, stage=1), *noise),
        record(3, section("F", 0, 60, pipeline=99), section("B", 1, 10), *noise),
    ]
    layout = Layout(pp=2, dp=2)
    assert micro_batch_compute_ms(records, layout) == {(0, 0): 20, (0, 1): 20, (1, 0): 60, (1, 1): 10}
    assert measured_imbalance_degree(records, layout) == pytest.approx(4 * 60 / 110)


def test_predicted_costs_stand_beside_measured_ones_per_rank():
    layout = Layout(pp=2, dp=2)
    records = [record(rank, section("F", 0, 10 * (1 + layout.coordinates(rank)[1]))) for rank in range(4)]
    costs = micro_batch_costs(records, layout, {(0, 0): 15.0, (1, 0): 5.0})
    assert costs == [MicroBatchCost(0, 0, 15.0, 10.0), MicroBatchCost(1, 0, 5.0, 20.0)]
    assert cost_scale(costs) == 1.5
    assert cost_error(costs) == pytest.approx((1.25 + 0.625) / 2)


def test_costs_that_are_all_off_by_one_factor_are_no_error():
    costs = [MicroBatchCost(0, place, ms, 7 * ms) for place, ms in enumerate((1.0, 2.0, 5.0))]
    assert cost_error(costs) == pytest.approx(0) and cost_scale(costs) == 7
    assert cost_error([]) == 0 and cost_scale([]) == 1


def test_without_any_action_nothing_is_unbalanced():
    assert measured_imbalance_degree([record(0, section("head", -1, 5))], Layout()) == 1.0


def test_idle_share_weighs_ranks_by_their_wall_time():
    records = [record(0, section("F", 0, 90, pipeline=10)), record(1, section("F", 0, 0, fsdp=100, other=100))]
    assert idle_share(records) == pytest.approx(110 / 300)


def test_a_record_survives_packing_with_padding_behind_it():
    sections = tuple(Section(kind, i, i + 1, i / 3, tuple(i + j / 7 for j in range(8))) for i, kind in enumerate(KINDS))
    totals = Totals(9, tuple(j * 1.1 for j in range(8)))
    before = StepRecord(12, StepTimes(345, sections, {}, totals), 1.25, 2.5)
    row = pack(before)
    assert len(row) == packed_size(len(sections))
    assert unpack(row + [0.0] * 24) == before


def test_a_record_survives_a_json_line_to_the_microsecond():
    before = record(4, section("F", 0, 1.2344, cp=2.5), section("tail", -1, 3), cp_transfer_ms=2.0)
    after = from_json(json.loads(json.dumps(to_json(before))), step=3)
    assert after.rank == 4 and after.times.step == 3
    assert after.ms("compute") == pytest.approx(before.ms("compute"), abs=1e-3)
    assert after.ms("cp_waiting") == pytest.approx(0.5)


def test_means_are_per_step():
    totals = Totals(2, (10.0,) * 8) + Totals(3, (5.0,) * 8)
    assert (totals.steps, totals.mean("compute"), totals.mean("wall")) == (5, 3, 21)
    assert Totals().mean("wall") == 0


def test_records_never_import_torch():
    code = "import sys, titan_wlb.records; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

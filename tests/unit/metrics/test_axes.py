import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.records import TIMES, Layout, Section, StepRecord, StepTimes, measured_imbalance_degree
from titan_wlb.records.axes import AXES, imbalance_by_axis


def section(kind, micro_batch, compute, stage=0, waits=50.0):
    times = {"compute": compute, "cp": waits, "fsdp": waits}
    return Section(kind, stage, micro_batch, 0.0, tuple(float(times.get(name, 0)) for name in TIMES))


def records_of(layout, compute, micro_batches=1):
    """``compute(rank, kind, micro_batch)`` in ms; everybody has a head, a reduction and a tail that do not count."""
    records = []
    for rank in range(layout.size):
        stage = layout.coordinates(rank)[0]
        sections = [section("head", -1, 900, -1), section("R", -1, 900, stage), section("tail", -1, 900, -1)]
        sections += [
            section(kind, i, compute(rank, kind, i), stage) for i in range(micro_batches) for kind in ("F", "B")
        ]
        records.append(StepRecord(rank, StepTimes(1, tuple(sections))))
    return records


def test_the_drawing():
    """Two DP ranks of two CP ranks, one micro-batch each: forward + backward 10 | 14 and 20 | 20."""
    works = (10, 14, 20, 20)
    degrees = imbalance_by_axis(records_of(Layout(dp=2, cp=2), lambda rank, kind, i: works[rank] / 2), Layout(1, 2, 2))
    assert degrees["cp"] == pytest.approx((14 + 20) / (12 + 20))
    assert degrees["dp"] == degrees["ranks"] == pytest.approx(20 / 16)
    assert degrees["pp"] == degrees["stages"] == 1


def test_cp_ranks_that_take_turns_at_being_slow_are_unbalanced_although_their_sums_are_equal():
    layout = Layout(cp=2)
    degrees = imbalance_by_axis(records_of(layout, lambda rank, kind, i: 10 + 20 * (rank == i), 2), layout)
    assert degrees["ranks"] == 1
    assert degrees["cp"] == pytest.approx(30 / 20)


def test_micro_batches_of_a_pipeline_are_unbalanced_and_nobody_else():
    layout = Layout(pp=2, dp=2)
    degrees = imbalance_by_axis(records_of(layout, lambda rank, kind, i: (30, 10)[i], 2), layout)
    assert degrees == {"ranks": 1, "cp": 1, "pp": 30 / 20, "stages": 1, "dp": 1}


def test_a_stage_that_holds_more_of_the_model_is_no_matter_of_micro_batches():
    layout = Layout(pp=2, dp=2)
    degrees = imbalance_by_axis(records_of(layout, lambda rank, kind, i: 30 if rank >= 2 else 10, 2), layout)
    assert degrees == {"ranks": 30 / 20, "cp": 1, "pp": 1, "stages": 30 / 20, "dp": 1}


def test_without_any_action_nothing_is_unbalanced():
    assert imbalance_by_axis([StepRecord(0, StepTimes(1, ()))], Layout()) == dict.fromkeys(AXES, 1.0)


layouts = st.builds(Layout, *(st.integers(1, 3) for _ in range(4)))


@given(layouts, st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_degree_lies_between_even_and_all_on_one(layout, micro_batches, random):
    times = {}
    records = records_of(layout, lambda *key: times.setdefault(key, random.uniform(0.1, 10)), micro_batches)
    degrees = imbalance_by_axis(records, layout)
    most = {"ranks": layout.size, "cp": layout.cp, "pp": micro_batches, "stages": layout.pp, "dp": layout.dp}
    for axis, number in most.items():
        assert 1 - 1e-9 <= degrees[axis] <= number + 1e-9
    if micro_batches == 1 and layout.tp == 1:
        assert degrees["dp"] == pytest.approx(measured_imbalance_degree(records, layout))


@given(layouts, st.integers(1, 3))
def test_equal_work_is_balanced_on_every_axis(layout, micro_batches):
    degrees = imbalance_by_axis(records_of(layout, lambda *key: 7.0, micro_batches), layout)
    assert degrees == pytest.approx(dict.fromkeys(AXES, 1.0))

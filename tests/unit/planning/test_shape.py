import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.packing.shape import build_shape
from titan_wlb.planning.timeline import build_schedule, step_time_over_balanced, target_works
from titan_wlb.planning.timeline.events import WIRES
from titan_wlb.planning.timeline.works import step_times_of_works

# Of the best shape, as a linear program solver (HiGHS) finds it: benchmarks/schedule_shapes.md
BEST = {("1F1B", 2, 2): 0.9778, ("1F1B", 4, 4): 0.9486, ("1F1B", 4, 8): 0.9264, ("1F1B", 8, 8): 0.9304}


def test_the_drawn_optimum():
    assert target_works("1F1B", 4, 4) == pytest.approx((0.72, 1.20, 1.12, 0.96), abs=0.002)
    assert step_time_over_balanced([target_works("1F1B", 4, 4)], "1F1B", 4) == pytest.approx(0.949, abs=0.0005)


def test_the_drawn_shape():
    shape = build_shape("schedule", "1F1B", pp=2, dp=2, num_micro_batches=4)
    assert shape.targets == pytest.approx((1.2, 1.2, 0.8, 0.8), abs=0.002)
    assert shape.deal([13, 11, 8, 7]) == ((0, 3), (1, 2))


@pytest.mark.parametrize("layout", BEST)
def test_the_shape_found_is_within_a_thousandth_of_the_best(layout):
    targets = target_works(*layout)
    assert np.mean(targets) == pytest.approx(1, abs=1e-4)
    found = step_time_over_balanced([targets], *layout[:2])
    assert BEST[layout] - 1e-4 <= found <= BEST[layout] * 1.001


@pytest.mark.parametrize(
    "layout", [("GPipe", 4, 4), ("1F1B", 1, 4), ("Interleaved1F1B", 4, 4), ("Interleaved1F1B", 8, 8)]
)
def test_micro_batches_stay_equal_where_a_shape_gains_nothing_on_one_of_the_wires(layout):
    assert target_works(*layout) == (1.0,) * layout[2]


@pytest.mark.parametrize("layout", [*BEST, ("1F1B", 4, 16), ("Interleaved1F1B", 2, 8)])
@pytest.mark.parametrize("wires", WIRES)
def test_a_shape_gains_whatever_the_wires(layout, wires):
    assert step_time_over_balanced([target_works(*layout)], *layout[:2], wires=wires) < 0.995


@pytest.mark.parametrize("layout", BEST)
def test_a_shape_is_worth_its_gain_where_costs_are_five_percent_off(layout):
    name, pp, num_micro_batches = layout
    noise = 1 + 0.05 * np.random.default_rng(0).standard_normal((400, num_micro_batches))
    schedule = build_schedule(name, pp, num_micro_batches)
    shaped = step_times_of_works(schedule, np.array(target_works(*layout)) * noise).mean()
    equal = step_times_of_works(schedule, noise).mean()
    assert 1 - shaped / equal > 0.6 * (1 - BEST[layout])


def test_another_ratio_of_backward_to_forward_has_another_shape():
    targets = target_works("1F1B", 4, 4, backward_over_forward=1.0)
    assert targets != target_works("1F1B", 4, 4)
    assert step_time_over_balanced([targets], "1F1B", 4, backward_over_forward=1.0) < 0.94


@given(
    st.sampled_from([("1F1B", 4, 2, 8), ("1F1B", 2, 3, 9), ("1F1B", 1, 4, 8), ("GPipe", 3, 2, 4)]),
    st.sampled_from(["equal", "schedule"]),
    st.data(),
)
@settings(max_examples=50)
def test_every_micro_batch_is_dealt_once_and_as_many_to_every_rank(layout, micro_batch_shape, data):
    name, pp, dp, num_micro_batches = layout
    works = data.draw(st.lists(st.integers(0, 10**10), min_size=num_micro_batches, max_size=num_micro_batches))
    shape = build_shape(micro_batch_shape, name, pp, dp, num_micro_batches)
    runs = shape.deal(works)
    assert [len(run) for run in runs] == [num_micro_batches // dp] * dp
    assert sorted(place for run in runs for place in run) == list(range(num_micro_batches))
    assert len(shape.targets) == num_micro_batches
    assert list(shape.targets) == sorted(shape.targets, reverse=True)


@given(st.permutations(range(16)), st.floats(0, 0.002))
@settings(max_examples=20)
def test_micro_batches_packed_to_a_shape_take_its_step_time_in_whatever_order_they_come(permutation, tolerance):
    shape = build_shape("schedule", "1F1B", pp=8, dp=2, num_micro_batches=16)
    works = [shape.targets[place] * 10**9 * (1 + tolerance * (place % 3)) for place in permutation]
    dealt = [[works[place] for place in run] for run in shape.deal([round(work) for work in works])]
    assert step_time_over_balanced(dealt, "1F1B", 8) <= BEST["1F1B", 8, 8] + 0.001 + tolerance


def test_micro_batches_of_like_work_are_dealt_by_tokens():
    shape = build_shape("schedule", "1F1B", pp=2, dp=2, num_micro_batches=4)
    works, tokens = [12_000, 12_001, 8_000, 8_001], [9, 2, 3, 4]
    assert shape.deal(works) == ((1, 2), (0, 3))
    assert shape.deal(works, tokens) == ((0, 2), (1, 3))


def test_equal_targets_are_dealt_with_the_largest_in_the_middle():
    shape = build_shape("equal", "1F1B", pp=4, dp=1, num_micro_batches=4)
    assert shape.targets == (1, 1, 1, 1)
    works = [12, 11, 10, 9]
    (run,) = shape.deal(works)
    assert [works[place] for place in run] == [10, 12, 11, 9]


def test_a_shape_is_the_same_in_every_process():
    program = (
        "from titan_wlb.planning.packing.shape import build_shape as b; s = b('schedule', '1F1B', 4, 2, 16); "
        "print(s.targets, s.deal([place * 7919 % 101 for place in range(16)]))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1


def test_a_layout_that_cannot_run_is_refused():
    with pytest.raises(ValueError, match="at least 4 micro-batches, not 2"):
        build_shape("schedule", "1F1B", pp=4, dp=4, num_micro_batches=8)

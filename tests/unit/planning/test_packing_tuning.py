"""Tuning knobs for balance at a limited delay, and what delay cannot go below."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from titan_wlb.planning.config import PlannerConfig
from titan_wlb.planning.intake import Intake
from titan_wlb.planning.length_families import lengths_of_family
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import InOrder
from titan_wlb.planning.packing import auto, trials
from titan_wlb.planning.packing.delay_bound import delay_lower_bound
from titan_wlb.planning.packing.measures import imbalance_degree
from titan_wlb.planning.packing.trials import MARGIN, Sample, Tried, Tuned, try_packer
from titan_wlb.planning.packing.tuning import MAX_QUEUES, equal_ratios, neighbours, tune_thresholds, tune_tolerance
from titan_wlb.planning.packing.variable_length import VariableLength
from titan_wlb.planning.workload import Workload

WINDOW = 4096
WORKLOAD = Workload(0, 768, 1, 768)


def sample_of(num_micro_batches: int, *, seed: int = 0, batches: int = 10) -> Sample:
    lengths = lengths_of_family(
        "skewed_web", num_tokens=batches * num_micro_batches * WINDOW, seed=seed, context_window=WINDOW
    )
    return Sample(
        lengths=lengths,
        num_micro_batches=num_micro_batches,
        context_window=WINDOW,
        workload=WORKLOAD,
        documents_per_trial=4000,
    )


def packer_of(sample: Sample, thresholds: tuple[int, ...]) -> VariableLength:
    return VariableLength(sample.num_micro_batches, WINDOW, 2 * WINDOW, thresholds, WORKLOAD)


def tuned_thresholds(sample: Sample, limit: float, max_evaluations: int = 32) -> Tuned[tuple[int, ...]]:
    return tune_thresholds(
        sample, lambda thresholds: packer_of(sample, thresholds), limit, max_evaluations=max_evaluations
    )


@pytest.fixture(scope="module")
def found() -> Tuned[tuple[int, ...]]:
    return tuned_thresholds(sample_of(4), 0.6)


def test_the_drawn_choice_is_the_best_balance_within_the_limit() -> None:
    tried = (
        Tried((65536,), 1.029, 1.1, 0.41, 100),
        Tried((16384, 32768, 65536), 1.001, 1.0, 0.76, 100),
        Tried((32768, 65536), 1.004, 1.0, 0.49, 100),
        Tried((1, 2, 3), 1.03, 1.1, 0.6, 100),
    )
    tuned = Tuned(tried[2], tried, 0.5)
    assert tuned.within_limit
    assert [one.knob for one in tuned.frontier()] == [(65536,), (32768, 65536), (16384, 32768, 65536)]


def test_the_drawn_thresholds_are_tried() -> None:
    first = list(equal_ratios(64))
    assert first[:3] == [(48,), (40,), (32,)] and {(32, 45), (16, 32), (32, 40, 51)} <= set(first)
    assert list(neighbours((32, 45), 64, 4)) == [(28, 45), (36, 45), (32, 41), (32, 49), (32, 45, 54), (45,), (32,)]


def test_tuned_thresholds_stay_within_the_limit_and_beat_those_of_a_first_guess(found) -> None:
    assert found.best.delay <= MARGIN * 0.6 and found.within_limit
    guess = try_packer(packer_of(sample_of(4), (WINDOW // 2,)), sample_of(4), None)
    assert found.best.imbalance < guess.imbalance
    assert all(1 <= len(one.knob) <= MAX_QUEUES and one.knob[-1] <= WINDOW for one in found.tried)


def test_tuned_thresholds_hold_on_documents_that_were_not_in_the_sample(found) -> None:
    unseen = sample_of(4, seed=9, batches=100)
    outcome = try_packer(packer_of(unseen, found.best.knob), unseen, None)
    assert outcome.delay < 0.6
    assert outcome.imbalance < try_packer(packer_of(unseen, (WINDOW // 2,)), unseen, None).imbalance


def test_the_same_sample_gives_the_same_choice_in_any_process(found) -> None:
    again = tuned_thresholds(sample_of(4), 0.6)
    assert again == found


def test_a_looser_limit_never_balances_worse(found) -> None:
    assert tuned_thresholds(sample_of(4), 2.0).best.imbalance <= found.best.imbalance + 1e-3


def test_a_limit_that_nothing_meets_gives_the_least_delay_and_says_so() -> None:
    tuned = tuned_thresholds(sample_of(4), 0.0, max_evaluations=12)
    assert not tuned.within_limit
    assert tuned.best.delay == pytest.approx(min(one.delay for one in tuned.tried), abs=0.15)


def test_the_number_of_trials_is_bounded() -> None:
    heard = []
    sample = sample_of(2)
    tune_thresholds(sample, lambda knob: packer_of(sample, knob), 0.5, max_evaluations=5, on_try=heard.append)
    assert 5 < len(heard) <= 5 + 12, "and those of the finalists"


def test_tiny_windows_and_samples_are_tuned_too() -> None:
    workload = Workload(0, 1, 1)
    sample = Sample(
        lengths=np.array([3, 1, 2]), num_micro_batches=2, context_window=4, workload=workload, documents_per_trial=50
    )
    tuned = tune_thresholds(sample, lambda knob: VariableLength(2, 4, 8, knob, workload), 10.0, max_evaluations=10)
    assert tuned.tried
    with pytest.raises(ValueError, match="tuning needs the lengths of some documents"):
        Sample(lengths=np.array([], dtype=np.int64), num_micro_batches=2, context_window=4, workload=workload)


def test_a_tolerance_is_the_best_balance_within_the_limit() -> None:
    sample = sample_of(4)

    def make(millionths: int) -> VariableLength:  # a knob that trades balance for delay, as a tolerance does
        return packer_of(sample, (round(WINDOW * (0.45 + 0.55 * millionths / 128_000)),))

    tuned = tune_tolerance(sample, make, 0.3)
    assert tuned.best.delay <= MARGIN * 0.3
    assert all(
        one.delay > MARGIN * 0.3 or round(one.imbalance, 4) >= round(tuned.best.imbalance, 4) - 0.03
        for one in tuned.tried
    )
    assert len(tuned.tried) < 20


def config_of(packing: str, num_micro_batches: int) -> PlannerConfig:
    return PlannerConfig(
        packing=packing,
        num_micro_batches=num_micro_batches,
        context_window=WINDOW,
        max_tokens=2 * WINDOW,
        workload=WORKLOAD,
    )


def test_a_run_of_many_micro_batches_is_tuned_with_fewer() -> None:
    lengths = lengths_of_family("skewed_web", num_tokens=70 * 4 * WINDOW, seed=0, context_window=WINDOW)
    small, large = (auto.sample_of(config_of("lookahead", number), lengths) for number in (4, 1024))
    assert (small.num_micro_batches, large.num_micro_batches) == (4, auto.MOST_MICRO_BATCHES)
    assert 60 * 4 * WINDOW <= small.lengths.sum() < 61 * 4 * WINDOW
    assert sorted(large.lengths) == sorted(lengths), "each at most once"
    with pytest.raises(ValueError, match="tuning needs the lengths of some documents"):
        auto.sample_of(config_of("lookahead", 4), lengths[:0])


def test_a_run_may_leave_its_knob_to_the_sample(monkeypatch) -> None:
    monkeypatch.setattr(auto, "MOST_MICRO_BATCHES", 2)
    monkeypatch.setattr(trials, "STEPS_SCORED", (20, 20))
    lengths = sample_of(100, batches=2).lengths
    paper, tuned = auto.tune_config(config_of("variable_length", 100), lengths, 0.6)
    assert paper == replace(config_of("variable_length", 100), outlier_thresholds=tuned.best.knob)
    ours, tuned_too = auto.tune_config(config_of("lookahead", 100), lengths, 0.6)
    assert ours == replace(config_of("lookahead", 100), balance_tolerance_ppm=tuned_too.best.knob)
    assert tuned_too.within_limit and tuned_too.best.imbalance < tuned.best.imbalance


def test_a_large_step_is_tried_for_fewer_steps() -> None:
    assert [sample_of(number, batches=1).num_steps for number in (1, 8, 256)] == [200, 40, 40]


def test_the_drawn_bound_is_the_least_that_waits() -> None:
    lengths = np.array([4, 2, 1, 1, 4, 2, 1, 1])
    assert delay_lower_bound(lengths, 2, 4, Workload(0, 0, 1)) == 1 / 4
    assert delay_lower_bound(lengths, 2, 4, Workload(0, 0, 1), num_steps=1) == 1 / 2
    assert delay_lower_bound(lengths, 2, 4, Workload(0, 0, 1), tolerance=0.5) == 0, "32 / 1.5 is less than 22"


def test_equal_documents_need_no_delay() -> None:
    assert delay_lower_bound(np.full(100, 8), 4, 16, Workload(0, 1, 1)) == 0
    assert delay_lower_bound(np.array([3]), 4, 16, Workload(0, 1, 1)) == 0, "no step is drawn in full"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_packer_delays_less_than_the_bound_at_its_own_worst_balance(data: st.DataObject) -> None:
    window = data.draw(st.integers(4, 64), label="window")
    num_micro_batches = data.draw(st.integers(1, 4), label="N")
    lengths = data.draw(st.lists(st.integers(1, 2 * window), min_size=30, max_size=120), label="lengths")
    thresholds = data.draw(
        st.lists(st.integers(1, window), max_size=2, unique=True).map(lambda values: tuple(sorted(values)))
    )
    constant, linear, quadratic = data.draw(st.tuples(st.integers(0, 50), st.integers(1, 50), st.integers(0, 50)))
    workload = Workload(constant, linear, quadratic)
    packer = VariableLength(num_micro_batches, window, 2 * window, thresholds, workload)
    tokens = num_micro_batches * window
    intake, waiting = Intake(InOrder(KnownLengths(lengths))), packer.empty()
    worst, waited, steps, drawn = 1.0, 0, 0, 0
    while intake.goal + tokens <= sum(lengths):
        intake.step = steps + 1
        goal = intake.goal
        packed, waiting = packer.pack(waiting, intake)
        if intake.goal != goal + tokens or intake.exhausted:  # drew more than N x W, or the data's end releases all
            break
        worst = max(worst, imbalance_degree([workload.costs(one.length for one in segments) for segments in packed]))
        waited += sum(segment.length for segment in waiting)
        steps, drawn = steps + 1, intake.drawn
    assume(steps > 0)
    bound = delay_lower_bound(np.array(lengths), num_micro_batches, window, workload, worst - 1, num_steps=steps)
    assert bound <= waited / drawn + 1e-9


def least_waiting(arrivals: list[list[int]], works: dict[int, int], tolerance: Fraction) -> int:
    """The least sum of tokens that wait after the steps, by trying whatever two micro-batches can train."""
    states = {(): 0}  # lengths that wait -> the least sum so far
    for arrived in arrivals:
        after: dict[tuple[int, ...], int] = {}
        for waiting, sum_so_far in states.items():
            documents = (*waiting, *arrived)
            for places in product((0, 1, 2), repeat=len(documents)):  # 2: waits
                work = [sum(works[d] for d, place in zip(documents, places, strict=True) if place == i) for i in (0, 1)]
                if sum(work) > 0 and 2 * max(work) <= (1 + tolerance) * sum(work):
                    left = tuple(sorted(d for d, place in zip(documents, places, strict=True) if place == 2))
                    after[left] = min(after.get(left, 1 << 60), sum_so_far + sum(left))
        states = after
    return min(states.values(), default=1 << 60)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(2, 4), min_size=6, max_size=8),
    st.sampled_from([Fraction(0), Fraction(1, 10), Fraction(1, 3), Fraction(1, 2)]),
    st.sampled_from([Workload(0, 0, 1), Workload(3, 1, 0), Workload(0, 1, 3)]),
)
def test_the_bound_is_no_more_than_the_least_of_all_that_can_be_done(lengths, tolerance, workload) -> None:
    intake, arrivals = Intake(InOrder(KnownLengths(lengths))), []
    while intake.drawn + 8 <= sum(lengths):
        arrivals.append([document.length for document in intake.draw(8)])
    least = least_waiting(arrivals, {length: workload.cost(length) for length in (2, 3, 4)}, tolerance)
    assume(least < 1 << 60)
    bound = delay_lower_bound(np.array(lengths), 2, 4, workload, float(tolerance), num_steps=len(arrivals))
    assert bound * intake.drawn <= least + 1e-6


def test_the_bound_rises_with_what_is_asked_of_balance() -> None:
    lengths = sample_of(4, batches=100).lengths
    bounds = [delay_lower_bound(lengths, 4, WINDOW, WORKLOAD, tolerance) for tolerance in (0.001, 0.1, 0.5, math.inf)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > 0.05 and bounds[-1] == 0

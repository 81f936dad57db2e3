from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.intake import Intake
from titan_wlb.planning.length_families import lengths_of_family
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import EpochOrder, InOrder
from titan_wlb.planning.packing.lookahead import Lookahead
from titan_wlb.planning.packing.measures import imbalance_degree
from titan_wlb.planning.packing.packer import Waiting
from titan_wlb.planning.plan import Segment
from titan_wlb.planning.workload import Workload

SHAPES = {2: (1.2, 0.8), 4: (1.2, 1.12, 0.96, 0.72)}  # of works, by N
QUADRATIC = Workload(0, 0, 1)
LINEAR_AND_QUADRATIC = Workload(0, 24_576, 1, 24_576)


@dataclass
class Step:
    """One planned step."""

    number: int
    micro_batches: list[tuple[Segment, ...]]
    waiting: Waiting
    exhausted: bool

    @property
    def trained(self) -> list[Segment]:
        return [segment for segments in self.micro_batches for segment in segments]

    @property
    def tokens(self) -> int:
        return sum(segment.length for segment in self.trained)

    def imbalance(self, workload: Workload) -> float:
        return imbalance_degree([workload.costs(s.length for s in segments) for segments in self.micro_batches])


def steps(packer: Lookahead, lengths: Sequence[int], *, resume: bool = False) -> Iterator[Step]:
    """All steps until everything is trained; with ``resume`` each in a new packer, from what a checkpoint holds."""
    intake, waiting = intake_of(lengths), packer.empty()
    for number in range(1, 10_000):
        intake.step = number
        micro_batches, waiting = packer.pack(waiting, intake)
        yield Step(number, micro_batches, waiting, intake.exhausted)
        if intake.exhausted and not list(waiting):
            return
        if resume:
            state = json.loads(json.dumps([intake.state(), waiting.to_json()]))
            intake, waiting = intake_of(lengths), Waiting.from_json(state[1])
            intake.set_state(state[0])
    raise AssertionError("it never ends")


def intake_of(lengths: Sequence[int]) -> Intake:
    return Intake(InOrder(KnownLengths(lengths)))


def lengths_of(micro_batches: Sequence[Sequence[Segment]]) -> list[list[int]]:
    return [[segment.length for segment in segments] for segments in micro_batches]


def test_the_drawn_example() -> None:
    a, b, c, d, e, f, g = 12, 5, 5, 3, 3, 2, 2
    h, i, j, k, p, m, o = 11, 5, 4, 4, 3, 3, 2
    further = [2] * 1000  # there are documents to come
    packer = Lookahead(2, 16, 32, QUADRATIC, balance_tolerance=0.02)
    first, second, *_ = steps(packer, [a, b, c, d, e, f, g, h, i, j, k, p, m, o, *further])
    assert lengths_of(first.micro_batches) == [[b, d, f], [c, e, g]]
    assert [segment.length for segment in first.waiting] == [a]
    assert lengths_of(second.micro_batches) == [[a, j, p, o], [h, i, k, m]]
    assert not list(second.waiting)


def test_short_documents_wait_where_the_cap_leaves_them_no_room() -> None:
    first, *_ = steps(Lookahead(2, 64, 64, QUADRATIC), [13] * 40)
    assert lengths_of(first.micro_batches) == [[13] * 4, [13] * 4]
    assert len(list(first.waiting)) == 2


def test_equal_documents_leave_no_micro_batch_empty_although_their_works_cannot_follow_the_targets() -> None:
    first, *_ = steps(Lookahead(4, 64, 64, QUADRATIC, targets=SHAPES[4]), [52] * 6)
    assert [len(segments) for segments in first.micro_batches] == [1, 1, 1, 1]


lengths_lists = st.one_of(
    st.lists(st.integers(1, 64), min_size=1, max_size=60),
    st.lists(st.integers(1, 5), min_size=1, max_size=120),
    st.lists(st.sampled_from([1, 2, 3, 20, 40, 60, 64, 150]), min_size=1, max_size=60),
    st.integers(1, 80).flatmap(lambda length: st.lists(st.just(length), min_size=1, max_size=40)),
)
workloads = st.sampled_from([QUADRATIC, LINEAR_AND_QUADRATIC, Workload(50, 1, 0), Workload(0, 1, 0, 10**6)])

packers = st.builds(
    lambda num, cap, workload, tolerance, age, steady, shaped: Lookahead(
        num,
        64,
        cap,
        workload,
        balance_tolerance=tolerance,
        max_age_iterations=age,
        steady_tokens=steady,
        targets=SHAPES.get(num, ()) if shaped else (),
    ),
    st.integers(1, 5),
    st.sampled_from([64, 80, 128]),
    workloads,
    st.sampled_from([0.0, 0.001, 0.05]),
    st.sampled_from([0, 0, 1, 3]),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(packers, lengths_lists)
def test_every_token_is_trained_exactly_once_under_the_cap(packer: Lookahead, lengths: list[int]) -> None:
    trained: dict[int, list[tuple[int, int]]] = {}
    for step in steps(packer, lengths):
        assert len(step.micro_batches) == packer.num_micro_batches
        for segments in step.micro_batches:
            assert sum(segment.length for segment in segments) <= packer.max_tokens
            assert segments or step.exhausted
        for segment in step.trained:
            trained.setdefault(segment.document.id, []).append((segment.start, segment.stop))
    for id, length in enumerate(lengths):
        ranges = sorted(trained[id])
        assert ranges[0][0] == 0 and ranges[-1][1] == length
        assert all(before[1] == after[0] for before, after in pairwise(ranges))


@settings(max_examples=60, deadline=None)
@given(packers, lengths_lists)
def test_a_run_resumed_after_every_step_plans_the_same(packer: Lookahead, lengths: list[int]) -> None:
    through = [(step.micro_batches, step.waiting) for step in steps(packer, lengths)]
    resumed = [(step.micro_batches, step.waiting) for step in steps(packer, lengths, resume=True)]
    assert through == resumed


@settings(max_examples=60, deadline=None)
@given(lengths_lists, st.integers(1, 5), st.booleans())
def test_the_plan_does_not_depend_on_the_unit_of_cost(lengths: list[int], num: int, steady: bool) -> None:
    plans = [
        [step.micro_batches for step in steps(Lookahead(num, 64, 128, workload, steady_tokens=steady), lengths)]
        for workload in (Workload(2, 3, 1), Workload(2 << 40, 3 << 40, 1 << 40))
    ]
    assert plans[0] == plans[1]


@settings(max_examples=60, deadline=None)
@given(packers, lengths_lists)
def test_of_equal_documents_the_earlier_ones_are_trained_first(packer: Lookahead, lengths: list[int]) -> None:
    for step in steps(packer, lengths):
        for waiting in step.waiting:
            for segment in step.trained:
                if segment.length == waiting.length:
                    key = (segment.document.arrival, segment.document.id, segment.start)
                    assert key <= (waiting.document.arrival, waiting.document.id, waiting.start)


@settings(max_examples=100, deadline=None)
@given(lengths_lists, st.integers(1, 5), st.integers(1, 4), st.booleans(), workloads)
def test_nothing_waits_longer_than_the_age_bound(
    lengths: list[int], num: int, age: int, steady: bool, workload: Workload
) -> None:
    packer = Lookahead(num, 64, 128, workload, max_age_iterations=age, steady_tokens=steady)
    before: list[Segment] = []
    for step in steps(packer, lengths):
        due = [segment for segment in before if step.number - segment.document.arrival >= age]
        if step.exhausted:
            due = [*step.trained, *step.waiting]
        if sum(segment.length for segment in due) <= num * (packer.max_tokens - packer.context_window):
            assert all(step.number - segment.document.arrival < age for segment in step.waiting)
        before = list(step.waiting)


@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize(
    "lengths",
    [[20] * 400, [64] * 40, [17] * 40, [33] * 41, [5], [64], [200]],
    ids=["tiny", "all_long", "all_equal", "all_outliers", "one_short", "one_long", "one_in_pieces"],
)
def test_unusual_streams_are_balanced_until_they_end(lengths: list[int], steady: bool) -> None:
    packer = Lookahead(4, 64, 128, LINEAR_AND_QUADRATIC, steady_tokens=steady)
    for step in steps(packer, lengths):
        if not step.exhausted:
            most, least = (f(map(len, step.micro_batches)) for f in (max, min))
            assert most - least <= 1
    assert sum(lengths) == sum(step.tokens for step in steps(packer, lengths))


@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize("lengths", [[33] * 7, [64] * 5, [150, 40, 40], [1] * 9], ids=["33", "64", "pieces", "tiny"])
def test_what_waits_stays_bounded_whatever_the_lengths(lengths: list[int], steady: bool) -> None:
    packer = Lookahead(4, 64, 128, LINEAR_AND_QUADRATIC, steady_tokens=steady)
    intake, waiting = Intake(EpochOrder(KnownLengths(lengths), seed=0)), packer.empty()
    for intake.step in range(1, 60):
        micro_batches, waiting = packer.pack(waiting, intake)
        assert all(micro_batches)
        assert sum(segment.length for segment in waiting) <= 5 * 4 * 64


@pytest.mark.parametrize("seed", range(3))
def test_skewed_lengths_are_balanced_with_little_delay(seed: int) -> None:
    waiting = tokens = 0
    degrees = []
    window = 131_072
    lengths = lengths_of_family("skewed_web", num_tokens=100 * 4 * window, seed=seed)
    packer = Lookahead(4, window, 2 * window, LINEAR_AND_QUADRATIC, balance_tolerance=0.001)
    for step in steps(packer, lengths.tolist()):
        if step.number > 80:
            break
        degrees.append(step.imbalance(LINEAR_AND_QUADRATIC))
        waiting += sum(segment.length for segment in step.waiting)
        tokens += step.tokens
    assert sum(degrees) / len(degrees) <= 1.001 and sorted(degrees)[75] <= 1.002
    assert waiting / tokens <= 0.35


@pytest.mark.parametrize("seed", range(2))
def test_works_follow_their_targets_with_less_delay_than_equal_ones(seed: int) -> None:
    waiting = tokens = 0
    window, targets = 131_072, SHAPES[4]
    lengths = lengths_of_family("skewed_web", num_tokens=100 * 4 * window, seed=seed)
    packer = Lookahead(4, window, 2 * window, LINEAR_AND_QUADRATIC, targets=targets)
    excesses = []
    for step in steps(packer, lengths.tolist()):
        if step.number > 80:
            break
        works = [LINEAR_AND_QUADRATIC.costs(s.length for s in segments) for segments in step.micro_batches]
        mean = sum(works) / 4
        excesses.append(max(work / target / mean for work, target in zip(works, targets, strict=True)) - 1)
        waiting += sum(segment.length for segment in step.waiting)
        tokens += step.tokens
    assert sum(excesses) / len(excesses) <= 0.001 and sorted(excesses)[75] <= 0.002
    assert waiting / tokens <= 0.25


@pytest.mark.parametrize("seed", range(2))
def test_a_forced_release_does_not_unbalance_a_step(seed: int) -> None:
    window = 131_072
    lengths = lengths_of_family("skewed_web", num_tokens=140 * 4 * window, seed=seed)
    packer = Lookahead(4, window, 2 * window, LINEAR_AND_QUADRATIC, max_age_iterations=6)
    degrees = []
    for step in steps(packer, lengths.tolist()):
        if step.number > 80:
            break
        assert all(step.number - segment.document.arrival < 6 for segment in step.waiting)
        degrees.append(step.imbalance(LINEAR_AND_QUADRATIC))
    assert (
        sum(degrees) / len(degrees) <= 1.001 and max(degrees) <= 1.05
    )  # 1.3 to 2.0 where what is due is released without looking ahead


@pytest.mark.parametrize("seed", range(2))
def test_steady_steps_train_the_same_number_of_tokens(seed: int) -> None:
    window = 131_072
    lengths = lengths_of_family("skewed_web", num_tokens=80 * 4 * window, seed=seed)
    packer = Lookahead(4, window, 2 * window, LINEAR_AND_QUADRATIC, steady_tokens=True)
    for step in steps(packer, lengths.tolist()):
        if step.number > 60:
            break
        assert step.tokens == pytest.approx(4 * window, rel=0.01)


def test_the_end_of_the_data_is_seen_coming() -> None:
    window = 131_072
    degrees = []
    for seed in range(3):
        lengths = lengths_of_family("skewed_web", num_tokens=24 * 4 * window, seed=seed)
        packer = Lookahead(4, window, 2 * window, LINEAR_AND_QUADRATIC)
        *_, last = steps(packer, lengths.tolist())
        degrees.append(last.imbalance(LINEAR_AND_QUADRATIC))
    assert sum(degrees) / len(degrees) <= 1.1

import sys
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.packing.fixed_length import FixedLength
from titan_wlb.planning.plan import Document, Segment
from titan_wlb.planning.workload import Workload

pytest.importorskip("highspy", reason="the extra 'solver' is not installed")

from titan_wlb.planning.packing.solver import Solver, solve

SQUARE = Workload(0, 0, 1)


def segments(lengths):
    return [Segment(Document(id, length), 0, length) for id, length in enumerate(lengths)]


def lengths_of(micro_batches):
    return [[segment.length for segment in micro_batch] for micro_batch in micro_batches]


def time_of(micro_batches, workload, per_step):
    """The sum of the steps' largest works, micro-batches of like work together."""
    return sum(sorted(map(workload.costs, lengths_of(micro_batches)), reverse=True)[::per_step])


def best_time(lengths, num_sets, per_step, window, workload):
    """By trying every assignment within the window that leaves no micro-batch empty."""
    best = None
    for assignment in product(range(num_sets), repeat=len(lengths)):
        held: list[list[int]] = [[] for _ in range(num_sets)]
        for length, place in zip(lengths, assignment, strict=True):
            held[place].append(length)
        if all(held) and max(map(sum, held)) <= window:
            time = sum(sorted(map(workload.costs, held), reverse=True)[::per_step])
            best = time if best is None else min(best, time)
    return best


def test_the_drawn_example():
    linear = Workload(0, 1, 0)
    greedy, _ = FixedLength(2, 7, 1, linear).assign(segments([3, 3, 2, 2, 2]), 2)
    assert lengths_of(greedy) == [[3, 2, 2], [3, 2]]
    solver = Solver(2, 7, 1, linear)
    best, left_over = solver.assign(segments([3, 3, 2, 2, 2]), 2)
    assert sorted(lengths_of(best)) == [[2, 2, 2], [3, 3]] and not left_over
    assert solver.gap == 0


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=7),
    st.integers(1, 3),
    st.integers(20, 40),
    st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 3)),
)
def test_small_cases_are_as_good_as_brute_force(lengths, num_micro_batches, window, coefficients):
    workload = Workload(*coefficients)
    solver = Solver(num_micro_batches, window, 1, workload)
    best, left_over = solver.assign(segments(sorted(lengths, reverse=True)), num_micro_batches)
    placed = [length for held in lengths_of(best) for length in held]
    assert sorted([*placed, *(segment.length for segment in left_over)]) == sorted(lengths)
    assert max(map(sum, lengths_of(best))) <= window
    if len(placed) >= num_micro_batches:
        expected = best_time(placed, num_micro_batches, num_micro_batches, window, workload)
        assert time_of(best, workload, num_micro_batches) == expected
        assert solver.gap < 1e-6


@settings(max_examples=15)
@given(st.lists(st.integers(1, 20), min_size=4, max_size=7))
def test_over_two_global_batches_the_sum_of_the_steps_is_the_best(lengths):
    best, _ = Solver(2, 25, 2, SQUARE).assign(segments(sorted(lengths, reverse=True)), 4)
    placed = [length for held in lengths_of(best) for length in held]
    assert time_of(best, SQUARE, 2) == best_time(placed, 4, 2, 25, SQUARE)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 2), st.integers(0, 5))
def test_it_is_never_slower_than_greedy_and_packs_the_same_documents(lengths, num_micro_batches, window, max_nodes):
    ordered = segments(sorted(lengths, reverse=True))
    greedy, left_over = FixedLength(num_micro_batches, 100, window, SQUARE).assign(ordered, num_micro_batches * window)
    solver = Solver(num_micro_batches, 100, window, SQUARE, max_nodes=max_nodes)
    better, its_left_over = solver.assign(ordered, num_micro_batches * window)
    assert left_over == its_left_over
    documents, its_documents = (sorted(s.document.id for held in sets for s in held) for sets in (greedy, better))
    assert documents == its_documents
    assert time_of(better, SQUARE, num_micro_batches) <= time_of(greedy, SQUARE, num_micro_batches)
    assert max(map(sum, lengths_of(better))) <= 100
    assert 0 <= solver.gap < 1


def test_it_finds_the_same_every_time():
    lengths = sorted((1 + 7919 * id % 503 for id in range(40)), reverse=True)
    solutions = [Solver(4, 3000, 1, SQUARE).assign(segments(lengths), 4) for _ in range(3)]
    assert solutions[0] == solutions[1] == solutions[2]


def test_the_gap_is_known_without_a_search_where_one_document_is_the_largest_work():
    solution = solve([100, 10, 10, 5], [10, 3, 3, 2], 10, 2, [[0], [1, 2, 3]], max_nodes=0)
    assert (solution.time, solution.gap) == (100, 0)


def test_a_program_that_is_too_large_keeps_greedys_micro_batches_and_says_how_good_they_are(monkeypatch):
    monkeypatch.setattr("titan_wlb.planning.packing.solver.MAX_VARIABLES", 9)
    solution = solve([3, 3, 2, 2, 2], [3, 3, 2, 2, 2], 7, 2, [[0, 2, 4], [1, 3]])
    assert solution.sets == [[0, 2, 4], [1, 3]]
    assert (solution.time, solution.bound, solution.gap) == (7, 6, 1 / 7)


def test_without_highs_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(ValueError, match=r"needs HiGHS: pip install 'titan-wlb\[solver\]'$"):
        Solver(2, 7, 1, SQUARE)

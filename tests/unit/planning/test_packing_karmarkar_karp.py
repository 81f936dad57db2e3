from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.packing.karmarkar_karp import KarmarkarKarp, largest_differencing
from titan_wlb.planning.packing.packer import Waiting
from titan_wlb.planning.plan import Document
from titan_wlb.planning.workload import Workload

SQUARE, LINEAR = Workload(0, 0, 1), Workload(0, 1, 0)


def documents(*lengths, first=0):
    return [Document(first + place, length) for place, length in enumerate(lengths)]


def ids(packed):
    return [[segment.document.id for segment in micro_batch] for micro_batch in packed]


def sums(costs, sets):
    return [sum(costs[place] for place in members) for members in sets]


def test_the_drawn_example():
    costs = [8, 7, 6, 5, 4]
    sets = largest_differencing(costs, 2)
    assert sums(costs, sets) == [16, 14]
    assert [sorted(members) for members in sets] == [[1, 3, 4], [0, 2]]


def as_in_the_book(costs, num_sets):
    """Partitions as full lists, every merge a sort; ties by what came earlier."""
    numbers = count()
    partitions = [(next(numbers), [(0, 0, [])] * (num_sets - 1) + [(cost, 1, [i])]) for i, cost in enumerate(costs)]
    while len(partitions) > 1:
        partitions.sort(key=lambda entry: (entry[1][0][0] - entry[1][-1][0], entry[0]))
        (_, one), (_, other), *partitions = partitions
        if sum(size > 0 for _, size, _ in other) > sum(size > 0 for _, size, _ in one):
            one, other = other, one
        pairs = zip(one, reversed(other), strict=True)
        merged = [(a + b, m + n, held + more) for (a, m, held), (b, n, more) in pairs]
        partitions.append((next(numbers), sorted(merged, key=lambda entry: entry[:2])))
    return [members for _, _, members in reversed(partitions[0][1])]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 9))
def test_it_is_the_largest_differencing_method(costs, num_sets):
    sets = largest_differencing(costs, num_sets)
    assert sums(costs, sets) == sums(costs, as_in_the_book(costs, num_sets))
    assert sorted(place for members in sets for place in members) == list(range(len(costs)))
    assert sum(map(bool, sets)) == min(num_sets, len(costs))


def test_no_costs_are_no_partition():
    assert largest_differencing([], 3) == [[], [], []]


def test_it_balances_better_than_longest_first():
    # 8 7 6 5 4 longest first: 8 + 5 + 4 = 17 and 13.
    packed, waiting = KarmarkarKarp(2, 20, 20, LINEAR).pack_arrived(Waiting(), documents(8, 7, 6, 5, 4))
    assert [sum(segment.length for segment in micro_batch) for micro_batch in packed] == [16, 14]
    assert not list(waiting)


def test_what_exceeds_the_cap_goes_to_the_least_work_with_room():
    # Work 100 against 25: nine documents of 5 tokens would share a micro-batch, of which the cap lets in four.
    packed, waiting = KarmarkarKarp(2, 20, 20, SQUARE).pack_arrived(Waiting(), documents(15, *[5] * 5))
    assert [sorted(segment.length for segment in micro_batch) for micro_batch in packed] == [[5, 15], [5, 5, 5, 5]]
    assert not list(waiting)


def test_what_fits_nowhere_is_left_over_and_the_next_step_keeps_it():
    packer = KarmarkarKarp(1, 10, 10, SQUARE)
    packed, waiting = packer.pack_arrived(Waiting(), documents(6, 3, 2, 1))
    assert ids(packed) == [[0, 1, 3]], "the shortest leave until the cap holds, and return where they fit"
    assert ids([waiting.left_over]) == [[2]]
    packed, waiting = packer.pack_arrived(waiting, documents(1, 9, first=4))
    assert ids(packed) == [[2, 4]], "the new documents leave before what waited, although it is shorter"
    assert ids([waiting.left_over]) == [[5]]


@pytest.mark.parametrize("num_micro_batches", [1, 2, 7])
def test_documents_that_cost_nothing_still_leave_no_micro_batch_empty(num_micro_batches):
    packer = KarmarkarKarp(num_micro_batches, 12, 12, Workload(0, 0, 0))
    packed, _ = packer.pack_arrived(Waiting(), documents(*[1] * num_micro_batches))
    assert all(len(micro_batch) == 1 for micro_batch in packed)


def test_many_micro_batches_of_many_documents_are_balanced():
    lengths = [50 + 7919 * id % 4001 for id in range(6000)]
    packed, _ = KarmarkarKarp(256, 100_000, 200_000, SQUARE).pack_arrived(Waiting(), documents(*lengths))
    work = [SQUARE.costs(segment.length for segment in micro_batch) for micro_batch in packed]
    assert max(work) * 256 < 1.001 * sum(work)

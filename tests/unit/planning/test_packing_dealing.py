from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.packing.dealing import balanced, in_order


def sums(costs, dealt, dp):
    return [sum(cost for cost, rank in zip(costs, dealt, strict=True) if rank == wanted) for wanted in range(dp)]


def test_the_drawn_example():
    costs = [9, 8, 7, 4, 3, 1]
    assert in_order(6, 2) == (0, 0, 0, 1, 1, 1)
    assert sums(costs, in_order(6, 2), 2) == [24, 8]
    assert balanced(costs, 2) == (0, 1, 1, 0, 0, 1)
    assert sums(costs, balanced(costs, 2), 2) == [16, 16]


def test_a_swap_mends_what_longest_first_leaves():
    # Longest first gives 10 + 6 + 5 = 21 and 9 + 7 + 1 = 17; 10 against 9 is the best swap.
    costs = [10, 9, 7, 6, 5, 1]
    assert sorted(sums(costs, balanced(costs, 2), 2)) == [18, 20]


@given(st.integers(1, 8), st.integers(1, 8), st.randoms(use_true_random=False))
def test_every_rank_gets_as_many_micro_batches(dp, each, random):
    costs = [random.randrange(1000) for _ in range(dp * each)]
    for dealt in (balanced(costs, dp), in_order(dp * each, dp)):
        assert [dealt.count(rank) for rank in range(dp)] == [each] * dp
    assert list(in_order(dp * each, dp)) == sorted(in_order(dp * each, dp))


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=10).filter(lambda costs: len(costs) % 2 == 0))
def test_two_ranks_are_within_a_sixth_of_the_best_dealing(costs):
    everything = range(len(costs))
    best = min(
        max(total, sum(costs) - total)
        for half in combinations(everything, len(costs) // 2)
        for total in [sum(costs[place] for place in half)]
    )
    assert max(sums(costs, balanced(costs, 2), 2)) * 6 <= best * 7


def test_equal_costs_and_one_rank_need_no_search():
    assert balanced([5, 5, 5, 5], 4) == (0, 1, 2, 3)
    assert balanced([3, 1, 2], 1) == (0, 0, 0)

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.packing.dealing import balanced, deal, in_order
from titan_wlb.planning.plan import Document, MicroBatch, Segment


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


def test_the_drawn_example_of_tokens():
    costs, tokens = [5, 5, 5, 5], [9, 8, 2, 1]
    assert sums(tokens, balanced(costs, 2), 2) == [11, 9]
    assert sums(tokens, balanced(costs, 2, tokens), 2) == [10, 10]


def test_tokens_are_balanced_only_as_far_as_work_allows_unless_they_exceed_the_cap():
    costs, tokens = [6, 5, 4, 3], [9, 1, 1, 9]
    assert sums(costs, balanced(costs, 2, tokens), 2) == [9, 9]
    assert sums(tokens, balanced(costs, 2, tokens), 2) == [18, 2]
    capped = balanced(costs, 2, tokens, max_tokens=12)
    assert sums(tokens, capped, 2) == [10, 10]
    assert sorted(sums(costs, capped, 2)) == [8, 10], "the least work that is given up for it"


@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 3000), st.randoms(use_true_random=False))
def test_tokens_never_slow_a_rank_below_the_cap_and_never_grow(dp, each, cap, random):
    costs, tokens = ([random.randrange(1000) for _ in range(dp * each)] for _ in range(2))
    plain, dealt = balanced(costs, dp), balanced(costs, dp, tokens, cap)
    assert [dealt.count(rank) for rank in range(dp)] == [each] * dp
    assert max(sums(tokens, dealt, dp)) <= max(sums(tokens, plain, dp))
    if cap == 0 or max(sums(tokens, plain, dp)) <= cap:
        assert max(sums(costs, dealt, dp)) <= max(sums(costs, plain, dp))


def test_original_is_dealt_in_order_and_all_else_is_balanced():
    documents = [Segment(Document(id, length), 0, length) for id, length in enumerate((9, 8, 2, 1))]
    micro_batches = [MicroBatch((segment,), 5) for segment in documents]
    assert deal("original", micro_batches, 2) == (tuple(micro_batches), (0, 0, 1, 1))
    assert deal("karmarkar_karp", micro_batches, 2) == (tuple(micro_batches), balanced([5] * 4, 2, [9, 8, 2, 1]))


def test_a_schedule_decides_in_which_order_micro_batches_run():
    class LastFirst:
        def deal(self, works, tokens):
            assert works == [5, 6, 7, 8] and tokens == [1, 1, 1, 1]
            return (3, 0), (2, 1)

    micro_batches = [MicroBatch((Segment(Document(id, 1), 0, 1),), cost) for id, cost in enumerate((5, 6, 7, 8))]
    ordered, dp_ranks = deal("variable_length", micro_batches, 2, LastFirst())
    assert [micro_batch.cost for micro_batch in ordered] == [8, 5, 7, 6] and dp_ranks == (0, 0, 1, 1)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding import per_document, per_sequence
from titan_wlb.planning.sharding.hybrid import hybrid
from titan_wlb.planning.sharding.measures import measure, rank_works
from titan_wlb.planning.tiles import Tile, padded_work

ONE = Tile(1, 1)


def test_the_drawn_example():
    plan = ShardPlan("hybrid", (4, 2), ((Chunk(0, 0, 2), Chunk(1, 0, 2)), (Chunk(0, 2, 4),)))
    measures = measure(plan, ONE)
    assert rank_works(plan, ONE) == [6, 7]
    assert measures.makespan == 7 / 6.5 and measures.bound == 1 and measures.makespan_over_bound == 7 / 6.5
    assert measures.token_spread == 2
    assert (measures.kv_needed, measures.kv_busiest_sender, measures.kv_gathered) == (2 / 6, 2 / 3, 4 / 6)
    assert measures.segments_per_rank == 1.5


def test_one_rank_holds_everything_and_receives_nothing():
    measures = measure(per_document([300, 5], 1))
    assert measures.makespan == measures.bound and measures.token_spread == 0
    assert measures.kv_needed == measures.kv_busiest_sender == measures.kv_gathered == 0


def test_per_document_gathers_everything_and_needs_three_quarters_of_it():
    measures = measure(per_document([128_000], 8))
    assert measures.kv_gathered == 1 and measures.kv_needed == pytest.approx(0.75, abs=0.01)
    assert measures.token_spread == 0 and measures.segments_per_rank == 15 / 8


def scored_again(plan, tile):
    """The measures, row by row."""
    cp, owner = len(plan.ranks), {}
    for rank, chunks in enumerate(plan.ranks):
        for segment, start, stop in chunks:
            owner.update({(segment, row): rank for row in range(start, stop)})
    received, sent, gathered = [0] * cp, [0] * cp, 0
    for rank, chunks in enumerate(plan.ranks):
        needed = {(segment, row) for segment, _, stop in chunks for row in range(stop)}
        for row in needed:
            if owner[row] != rank:
                received[rank] += 1
                sent[owner[row]] += 1
    for segment, length in enumerate(plan.lengths):
        if len({owner[segment, row] for row in range(length)}) > 1:
            gathered += length * (cp - 1)
    works = [sum(int(padded_work(start, stop, tile)) for _, start, stop in chunks) for chunks in plan.ranks]
    exact = sum(length * (length + 1) // 2 for length in plan.lengths)
    lacked = max((cp - 1) * sum(plan.lengths), 1)
    return max(works) * cp / exact, sum(received) / lacked, max(sent) * cp / lacked, gathered / lacked


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=8),
    cp=st.integers(1, 5),
    planner=st.sampled_from([per_sequence, per_document, hybrid]),
)
def test_measures_are_those_of_the_rows_one_by_one(lengths, cp, planner):
    plan, tile = planner(lengths, cp), Tile(8, 16)
    found = measure(plan, tile)
    expected = scored_again(plan, tile)
    assert (found.makespan, found.kv_needed, found.kv_busiest_sender, found.kv_gathered) == pytest.approx(expected)

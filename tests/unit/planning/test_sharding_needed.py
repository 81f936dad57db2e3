"""What a rank lacks, against its definition row by row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding import shard
from titan_wlb.planning.sharding.needed import local_first, needed_rows, rows_sent

DRAWN = ShardPlan("hybrid", (8, 2), ((Chunk(1, 0, 2), Chunk(0, 0, 2), Chunk(0, 6, 8)), (Chunk(0, 2, 6),)))


@st.composite
def plans(draw):
    """Any plan at all: segments cut anywhere, chunks on any rank in any order, ranks without a row."""
    cp = draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    held = [{} for _ in range(cp)]
    for segment, length in enumerate(lengths):
        owner = draw(st.integers(0, cp - 1))
        for row in range(length):
            if draw(st.integers(0, 3)) == 0:
                owner = draw(st.integers(0, cp - 1))
            held[owner].setdefault(segment, []).append(row)
    ranks = []
    for rows in held:
        chunks = []
        for segment, of_segment in rows.items():
            starts = [row for row in of_segment if row - 1 not in of_segment]
            stops = [row + 1 for row in of_segment if row + 1 not in of_segment]
            chunks += [Chunk(segment, a, b) for a, b in zip(starts, stops, strict=True)]
        ranks.append(tuple(draw(st.permutations(chunks))))
    return ShardPlan("hybrid", tuple(lengths), tuple(ranks))


def held_rows(plan, rank):
    """(segment, row) in the order in which a rank holds them."""
    return [(chunk.segment, row) for chunk in plan.ranks[rank] for row in range(chunk.start, chunk.stop)]


def lacking(plan, rank):
    """(segment, row) that a rank's queries see and that it does not hold."""
    seen = {(chunk.segment, row) for chunk in plan.ranks[rank] for row in range(chunk.stop)}
    return seen - set(held_rows(plan, rank))


def test_the_drawn_example():
    assert rows_sent(DRAWN).tolist() == [[0, 2], [4, 0]]
    first, second = needed_rows(DRAWN, 0), needed_rows(DRAWN, 1)
    assert (first.send.tolist(), first.send_counts) == ([2, 3], (0, 2))
    assert (first.receive.tolist(), first.receive_counts) == ([2, 3, 4, 5], (0, 4))
    assert (second.send.tolist(), second.send_counts) == ([0, 1, 2, 3], (4, 0))
    assert (second.receive.tolist(), second.receive_counts) == ([0, 1], (2, 0))


@given(plan=plans())
def test_a_rank_receives_exactly_what_its_queries_see_and_it_lacks(plan):
    for rank in range(len(plan.ranks)):
        needed = needed_rows(plan, rank)
        offsets = plan.segment_offsets
        assert sorted(needed.receive.tolist()) == sorted(offsets[s] + row for s, row in lacking(plan, rank))


@given(plan=plans())
def test_what_one_rank_sends_is_what_the_other_one_receives_in_the_same_order(plan):
    cp = len(plan.ranks)
    offsets = plan.segment_offsets
    everybody = [needed_rows(plan, rank) for rank in range(cp)]
    for sender in range(cp):
        rows = np.array([offsets[s] + row for s, row in held_rows(plan, sender)], np.int64)
        sent = np.split(rows[everybody[sender].send], np.cumsum(everybody[sender].send_counts)[:-1])
        for receiver in range(cp):
            needed = everybody[receiver]
            arrived = np.split(needed.receive, np.cumsum(needed.receive_counts)[:-1])[sender]
            assert sent[receiver].tolist() == arrived.tolist()
            assert sent[receiver].tolist() == [row for row in rows.tolist() if row in set(arrived.tolist())]


@given(plan=plans())
def test_the_counts_are_those_of_the_row_lists(plan):
    sent = rows_sent(plan)
    assert sent.dtype == np.int64
    everybody = [needed_rows(plan, rank) for rank in range(len(plan.ranks))]
    assert sent.tolist() == [list(needed.send_counts) for needed in everybody]
    assert sent.T.tolist() == [list(needed.receive_counts) for needed in everybody]
    assert all(needed.send.dtype == needed.receive.dtype == np.int64 for needed in everybody)


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=12), cp=st.integers(1, 32))
def test_per_document_sends_each_row_once_per_rank_that_is_deeper(lengths, cp):
    plan = shard("per_document", lengths, cp)
    assert rows_sent(plan).sum() == sum(len(lacking(plan, rank)) for rank in range(cp))


def test_a_lone_document_over_ranks_travels_almost_whole():
    # rank i holds chunks i and 7 - i: everybody but the holder needs each row, up to its own depth
    plan = shard("per_document", [8], 4)
    assert rows_sent(plan).tolist() == [[0, 1, 1, 1], [2, 0, 1, 1], [2, 2, 0, 1], [2, 2, 2, 0]]


@pytest.mark.parametrize("cp", [1, 3])
def test_whole_documents_send_nothing(cp):
    plan = ShardPlan("hybrid", (4,) * cp, tuple((Chunk(rank, 0, 4),) for rank in range(cp)))
    assert not rows_sent(plan).any()
    for rank in range(cp):
        needed = needed_rows(plan, rank)
        assert (needed.send.size, needed.receive.size, needed.send_counts) == (0, 0, (0,) * cp)


def test_chunks_at_their_segment_s_beginning_come_first():
    chunks = (Chunk(0, 3, 9), Chunk(4, 0, 2), Chunk(1, 1, 2), Chunk(0, 0, 1))
    assert local_first(chunks) == (Chunk(4, 0, 2), Chunk(0, 0, 1), Chunk(0, 3, 9), Chunk(1, 1, 2))

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding import shard

STRATEGIES = ("per_sequence", "per_document")  # those of the paper

lengths_of_segments = st.lists(st.one_of(st.just(1), st.integers(1, 70), st.integers(1, 5000)), min_size=1, max_size=30)


def test_the_drawn_example_of_per_sequence():
    assert shard("per_sequence", [5, 4], 2) == ShardPlan(
        "per_sequence", (5, 4), ((Chunk(0, 0, 3), Chunk(1, 2, 4)), (Chunk(0, 3, 5), Chunk(1, 0, 2)))
    )


def test_the_drawn_example_of_per_document():
    assert shard("per_document", [9, 6, 1], 2) == ShardPlan(
        "per_document",
        (9, 6, 1),
        (
            (Chunk(0, 0, 3), Chunk(0, 7, 9), Chunk(1, 0, 2), Chunk(1, 5, 6)),
            (Chunk(0, 3, 7), Chunk(1, 2, 5), Chunk(2, 0, 1)),
        ),
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_rank_holds_whole_segments(strategy):
    assert shard(strategy, [5, 1, 8], 1).ranks == ((Chunk(0, 0, 5), Chunk(1, 0, 1), Chunk(2, 0, 8)),)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(lengths=lengths_of_segments, cp=st.integers(1, 32))
def test_every_row_is_held_once_and_no_chunk_is_empty(strategy, lengths, cp):
    plan = shard(strategy, lengths, cp)
    assert (plan.strategy, plan.lengths, len(plan.ranks)) == (strategy, tuple(lengths), cp)
    rows = [[0] * length for length in lengths]
    for rank in plan.ranks:
        for chunk in rank:
            assert chunk.length > 0
            for row in range(chunk.start, chunk.stop):
                rows[chunk.segment][row] += 1
    assert all(set(held) == {1} for held in rows)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(lengths=lengths_of_segments, cp=st.integers(1, 32))
def test_ranks_hold_equally_many_tokens_to_within_one(strategy, lengths, cp):
    tokens = shard(strategy, lengths, cp).tokens
    assert max(tokens) - min(tokens) <= 1


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cp", [1, 2, 3, 4, 8, 31, 32])
@pytest.mark.parametrize("count", [1, 2, 5, 63, 64, 65, 200])
def test_documents_of_one_token_are_dealt_evenly(strategy, cp, count):
    tokens = shard(strategy, [1] * count, cp).tokens
    assert sum(tokens) == count
    assert max(tokens) - min(tokens) <= 1


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(lengths=lengths_of_segments, cp=st.integers(1, 32))
def test_a_ranks_neighbouring_rows_are_one_chunk(strategy, lengths, cp):
    for rank in shard(strategy, lengths, cp).ranks:
        for before, after in pairwise(rank):
            assert (before.segment, before.stop) != (after.segment, after.start)


@given(lengths=lengths_of_segments, cp=st.integers(1, 32))
def test_per_document_gives_each_rank_a_head_and_its_mirrored_tail_of_every_segment(lengths, cp):
    plan = shard("per_document", lengths, cp)
    for place, length in enumerate(lengths):
        held = [[chunk for chunk in rank if chunk.segment == place] for rank in plan.ranks]
        assert all(len(chunks) <= 2 for chunks in held)
        tokens = [sum(chunk.length for chunk in chunks) for chunks in held]
        assert max(tokens) - min(tokens) <= 2, "each of a rank's two chunks differs from others by at most one"
        if length >= 2 * cp:
            heads = [chunks[0].start for chunks in held]
            tails = [chunks[-1].stop for chunks in held]
            assert heads == sorted(heads) and tails == sorted(tails, reverse=True)
            sizes = [chunk.length for chunks in held[:-1] for chunk in chunks]
            assert all(length // (2 * cp) <= size <= length // (2 * cp) + 1 for size in sizes)


@given(lengths=lengths_of_segments, cp=st.integers(1, 32))
def test_per_sequence_is_the_sequences_chunks_i_and_its_mirror(lengths, cp):
    plan = shard("per_sequence", lengths, cp)
    offsets = plan.segment_offsets
    rows = [
        [offsets[chunk.segment] + row for chunk in rank for row in range(chunk.start, chunk.stop)]
        for rank in plan.ranks
    ]
    base, extra = divmod(sum(lengths), 2 * cp)
    sizes = [base + (place < extra) for place in [*range(cp), *reversed(range(cp, 2 * cp))]]
    bounds = [sum(sizes[:place]) for place in range(2 * cp + 1)]
    for rank in range(cp):
        mirror = 2 * cp - 1 - rank
        head, tail = range(bounds[rank], bounds[rank + 1]), range(bounds[mirror], bounds[mirror + 1])
        assert rows[rank] == [*head, *tail]


@given(length=st.integers(1, 3000), cp=st.integers(1, 16))
def test_one_document_is_cut_alike_by_both(length, cp):
    per_sequence, per_document = (shard(strategy, [length], cp).ranks for strategy in STRATEGIES)
    assert per_sequence == per_document


@given(lengths=lengths_of_segments, cp=st.integers(1, 16))
def test_per_document_attention_work_differs_by_at_most_two_full_rows_of_each_segment(lengths, cp):
    # Causal pairs of rows [a, b): row r meets r + 1 keys.
    work = [
        sum((chunk.stop * (chunk.stop + 1) - chunk.start * (chunk.start + 1)) // 2 for chunk in rank)
        for rank in shard("per_document", lengths, cp).ranks
    ]
    assert max(work) - min(work) <= sum(2 * length for length in lengths)

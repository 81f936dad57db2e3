"""Tokens, labels and positions of one rank."""

import pytest
import torch
from data_cases import index_of, lengths_of, planner_of, random_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.data.local_batch import NO_LABEL, read_micro_batch, read_step
from titan_wlb.planning.kernel_file import default_kernel_profile
from titan_wlb.planning.plan import Chunk, Document, MicroBatch, Segment, ShardPlan
from titan_wlb.planning.sharding import STRATEGIES, LatencyModel, shard

BOS, EOS = 256, 257

LATENCY = LatencyModel.of_model(default_kernel_profile("cpu", 16), n_heads=4, n_kv_heads=2, head_dim=16)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    # "a" "b" "c" are 97, 98, 99; lengths 5, 3 and 42
    return index_of(["abc", "x", "".join(map(chr, range(65, 105)))], tmp_path_factory.mktemp("data") / "index")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return index_of(random_texts(60), tmp_path_factory.mktemp("data") / "index")


def read(index, segments, cp_rank=0, cp=1, tp=1, strategy="per_document", **kwargs):
    micro_batch = MicroBatch(tuple(segments), 0)
    plan = shard(strategy, micro_batch.lengths, cp, LATENCY)
    return read_micro_batch(0, micro_batch, plan, index, cp_rank, tp, **kwargs)


def segment_of(index, document, start=0, stop=None):
    length = lengths_of(index)[document]
    return Segment(Document(document, length), start, length if stop is None else stop)


def test_the_drawing(index):
    """The example of the module's docstring: a document of five tokens, its first three on two CP ranks."""
    micro_batch = MicroBatch((segment_of(index, 0, 0, 3),), 0)
    plan = ShardPlan("per_document", (3,), ((Chunk(0, 0, 1),), (Chunk(0, 1, 3),)))
    first, second = (read_micro_batch(0, micro_batch, plan, index, cp_rank, 1) for cp_rank in (0, 1))
    assert first.tokens.tolist() == [[BOS, 0]]
    assert first.labels.tolist() == [[97, NO_LABEL]]
    assert first.positions.tolist() == [[0, 0]]
    assert second.tokens.tolist() == [[97, 98]]
    assert second.labels.tolist() == [[98, 99]]
    assert second.positions.tolist() == [[1, 2]]
    assert (first.num_labels, second.num_labels) == (1, 2)


def test_labels_never_cross_a_document_boundary(index):
    batch = read(index, [segment_of(index, 0), segment_of(index, 1)])
    assert batch.tokens.tolist() == [[BOS, 97, 98, 99, EOS, BOS, 120, EOS]]
    assert batch.labels.tolist() == [[97, 98, 99, EOS, NO_LABEL, 120, EOS, NO_LABEL]]
    assert batch.num_labels == 6


def test_positions_restart_at_each_segment(index):
    batch = read(index, [segment_of(index, 0), segment_of(index, 1), segment_of(index, 2, 30, 34)])
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]]


def test_the_last_label_of_a_piece_is_the_documents_next_token(index):
    whole = read(index, [segment_of(index, 2)])
    pieces = read(index, [segment_of(index, 2, 0, 17), segment_of(index, 2, 17)])
    assert pieces.tokens.equal(whole.tokens)
    assert pieces.labels.equal(whole.labels)
    assert pieces.num_labels == whole.num_labels == 41


def test_padding_stands_at_the_end_without_labels(index):
    batch = read(index, [segment_of(index, 0)], tp=4)
    assert batch.padded_tokens == 8
    assert batch.tokens[0, 5:].tolist() == [0, 0, 0]
    assert batch.labels[0, 4:].tolist() == [NO_LABEL] * 4
    assert batch.positions[0, 5:].tolist() == [0, 0, 0]
    assert batch.tokens.dtype == batch.labels.dtype == batch.positions.dtype == torch.int64


def test_an_empty_micro_batch_is_padding(index):
    batch = read(index, [], cp=2, tp=2)
    assert batch.tokens.shape == (1, 2) and batch.num_labels == 0
    assert (batch.labels == NO_LABEL).all()


def test_metadata_is_made_of_the_plan_of_all_ranks(index):
    calls = []
    batch = read(index, [segment_of(index, 2)], 1, 2, 4, make_metadata=lambda *args: calls.append(args) or "made")
    assert batch.metadata == "made"
    assert calls == [(batch.shard, 1, 24)]


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 61), st.integers(1, 62)), min_size=1, max_size=8),
    strategy=st.sampled_from(STRATEGIES),
    cp=st.sampled_from([1, 2, 4]),
    tp=st.sampled_from([1, 2, 4]),
)
def test_the_cp_ranks_together_hold_the_micro_batch(many, cuts, strategy, cp, tp):
    segments = []
    for document, start, length in cuts:
        whole = lengths_of(many)[document]
        start = min(start, whole - 1)
        segments.append(segment_of(many, document, start, min(start + length, whole)))
    micro_batch = MicroBatch(tuple(segments), 0)
    ranks = [read(many, segments, cp_rank, cp, tp, strategy) for cp_rank in range(cp)]
    assert len({rank.padded_tokens for rank in ranks}) == 1 and ranks[0].padded_tokens % tp == 0
    assert sum(rank.num_labels for rank in ranks) == micro_batch.num_labels
    rows = {}
    for cp_rank, rank in enumerate(ranks):
        assert rank.num_labels == (rank.labels != NO_LABEL).sum()
        row = 0
        for chunk in rank.shard.ranks[cp_rank]:
            for place in range(chunk.start, chunk.stop):
                assert (chunk.segment, place) not in rows
                rows[chunk.segment, place] = [x[0, row].item() for x in (rank.tokens, rank.labels, rank.positions)]
                row += 1
        assert (rank.labels[0, row:] == NO_LABEL).all() and (rank.tokens[0, row:] == 0).all()
    expected = {}
    for number, segment in enumerate(segments):
        document = [*many.tokens(segment.document.id).tolist(), NO_LABEL]
        for place in range(segment.length):
            at = segment.start + place
            expected[number, place] = [document[at], document[at + 1], place]
    assert rows == expected


@pytest.mark.parametrize("packing", ["original", "variable_length"])
def test_the_ranks_of_a_step_read_its_micro_batches_once(many, packing):
    planner = planner_of(many, dp=2, cp=2, packing=packing)
    for _ in range(5):
        plan = planner.plan()
        batches = [read_step(plan, many, dp_rank=dp, cp_rank=cp, tp=2) for dp in (0, 1) for cp in (0, 1)]
        places = [[local.place for local in batch.micro_batches] for batch in batches]
        assert places[0] == places[1] and places[2] == places[3]
        assert sorted(places[0] + places[2]) == list(range(4))
        assert sum(local.num_labels for batch in batches for local in batch.micro_batches) == plan.num_labels

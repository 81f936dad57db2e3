import numpy as np
import pytest
import torch
from cp_cases import LENGTHS, rows_of

from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding import shard


def test_the_drawing_of_the_docstring():
    plan = ShardPlan(
        "per_document",
        (6, 2),
        ((Chunk(0, 0, 2), Chunk(0, 5, 6), Chunk(1, 0, 1)), (Chunk(0, 2, 5), Chunk(1, 1, 2))),
    )
    metadata = build_metadata(plan, 0, 4)
    assert metadata.gather_index.tolist() == [0, 1, 0, 1, 4, 5, 6, 2, 3]
    assert metadata.cu_seqlens_q.tolist() == [0, 2, 3, 4]
    assert metadata.cu_seqlens_k.tolist() == [0, 2, 8, 9]
    assert (metadata.max_q, metadata.max_k, metadata.num_tokens, metadata.padded_tokens) == (2, 6, 4, 4)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("strategy", ["per_sequence", "per_document"])
@pytest.mark.parametrize("cp", [1, 2, 4, 8])
def test_each_chunk_gets_its_document_s_first_keys_in_order(lengths, strategy, cp):
    plan = shard(strategy, lengths, cp)
    padded = plan.padded_tokens(4)
    buffer = np.full(cp * padded, -1)  # what the all-gather would bring: rows of the packed micro-batch
    for rank in range(cp):
        rows = rows_of(plan, rank)
        buffer[rank * padded : rank * padded + len(rows)] = rows
    for rank in range(cp):
        metadata = build_metadata(plan, rank, padded)
        index = metadata.gather_index
        keys = buffer[: metadata.num_tokens] if index is None else buffer[index.numpy()]
        k_offsets, q_offsets = metadata.cu_seqlens_k.tolist(), metadata.cu_seqlens_q.tolist()
        assert k_offsets[-1] == len(keys) and q_offsets[-1] == metadata.num_tokens == plan.tokens[rank]
        for i, chunk in enumerate(plan.ranks[rank]):
            first = plan.segment_offsets[chunk.segment]
            assert keys[k_offsets[i] : k_offsets[i + 1]].tolist() == list(range(first, first + chunk.stop))
            assert q_offsets[i + 1] - q_offsets[i] == chunk.length
        assert metadata.max_q == max((c.length for c in plan.ranks[rank]), default=0)
        assert metadata.max_k == max((c.stop for c in plan.ranks[rank]), default=0)


def test_dtypes_are_those_that_the_kernels_ask_for():
    metadata = build_metadata(shard("per_document", (9, 4), 2), 1, 8)
    assert metadata.cu_seqlens_q.dtype == metadata.cu_seqlens_k.dtype == torch.int32
    assert metadata.gather_index.dtype == torch.int64


def test_one_rank_with_whole_documents_gathers_nothing():
    assert build_metadata(shard("per_document", (9, 4), 1), 0, 16).gather_index is None


def test_one_rank_with_cut_documents_still_sees_their_beginnings():
    plan = ShardPlan("per_document", (5,), ((Chunk(0, 3, 5), Chunk(0, 0, 3)),))
    assert build_metadata(plan, 0, 5).gather_index.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]


def test_a_mesh_of_another_size_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"built for 2 CP ranks, but the cp mesh has 1$"):
        build_metadata(shard("per_document", (9,), 2), 0, 8).bind(None, "cpu")


def test_thousands_of_documents_take_no_python_loop_over_tokens():
    plan = shard("per_document", [131] * 1000, 8)
    metadata = build_metadata(plan, 3, plan.padded_tokens(8))
    assert len(metadata.gather_index) == sum(chunk.stop for chunk in plan.ranks[3])

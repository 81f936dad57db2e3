import numpy as np
import pytest
import torch
from cp_cases import LENGTHS, plan_of, rows_of

from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding import shard
from titan_wlb.planning.sharding.needed import needed_rows

STRATEGIES = ["per_sequence", "per_document", "hybrid"]


def test_the_first_drawing_of_the_docstring():
    plan = ShardPlan(
        "per_document",
        (6, 2),
        ((Chunk(0, 0, 2), Chunk(0, 5, 6), Chunk(1, 0, 1)), (Chunk(0, 2, 5), Chunk(1, 1, 2))),
    )
    metadata = build_metadata(plan, 0, 4)
    assert metadata.local is None and metadata.local_parts == () and metadata.needed is None
    call = metadata.cut
    assert call.key_index.tolist() == [0, 1, 0, 1, 4, 5, 6, 2, 3]
    assert call.cu_seqlens_q.tolist() == [0, 2, 3, 4]
    assert call.cu_seqlens_k.tolist() == [0, 2, 8, 9]
    assert (call.rows, call.max_q, call.max_k) == (slice(0, 4), 2, 6)
    assert (metadata.num_tokens, metadata.padded_tokens) == (4, 4)


def test_the_second_drawing_of_the_docstring():
    plan = ShardPlan("hybrid", (8, 2), ((Chunk(1, 0, 2), Chunk(0, 0, 2), Chunk(0, 6, 8)), (Chunk(0, 2, 6),)))
    metadata = build_metadata(plan, 0, 8)
    needed = metadata.needed
    assert needed.most == 4
    assert (needed.send.tolist(), needed.send_counts, needed.receive_counts) == ([2, 3], (0, 2), (0, 4))
    assert metadata.local.rows == slice(0, 4)
    assert metadata.local.cu_seqlens_q.tolist() == metadata.local.cu_seqlens_k.tolist() == [0, 2, 4]
    assert metadata.cut.rows == slice(4, 6)
    assert metadata.cut.key_index.tolist() == [2, 3, 6, 7, 8, 9, 4, 5]
    assert metadata.cut.cu_seqlens_k.tolist() == [0, 8]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cp", [1, 2, 3, 4, 8])
def test_each_chunk_gets_its_document_s_first_keys_in_order(lengths, strategy, cp):
    plan = plan_of(strategy, lengths, cp)
    padded = plan.padded_tokens(4)
    gathered = np.full(cp * padded, -1)  # what the all-gather would bring: rows of the packed micro-batch
    for rank in range(cp):
        rows = rows_of(plan, rank)
        gathered[rank * padded : rank * padded + len(rows)] = rows
    for rank in range(cp):
        metadata = build_metadata(plan, rank, padded)
        own = rows_of(plan, rank).numpy()
        table = gathered if metadata.needed is None else np.concatenate((own, needed_rows(plan, rank).receive))
        found = [*keys_of(metadata.local, own, table), *keys_of(metadata.cut, own, table)]
        expected = []
        for chunk in plan.ranks[rank]:
            first = plan.segment_offsets[chunk.segment]
            expected.append((chunk.length, list(range(first, first + chunk.stop))))
        assert found == expected
        assert metadata.num_tokens == plan.tokens[rank]


def keys_of(call, own, table):
    """(query rows, key rows of the packed micro-batch) of each segment of a call."""
    if call is None:
        return []
    keys = own[call.rows] if call.key_index is None else table[call.key_index.numpy()]
    q_offsets, k_offsets = call.cu_seqlens_q.tolist(), call.cu_seqlens_k.tolist()
    assert q_offsets[-1] == call.rows.stop - call.rows.start and k_offsets[-1] == len(keys)
    assert (call.max_q, call.max_k) == (max(np.diff(q_offsets)), max(np.diff(k_offsets)))
    return [
        (q_stop - q_start, keys[k_start:k_stop].tolist())
        for q_start, q_stop, k_start, k_stop in zip(q_offsets, q_offsets[1:], k_offsets, k_offsets[1:], strict=False)
    ]


@pytest.mark.parametrize("lengths", [(9, 4, 4, 4), (1,), (5, 5), (2, 3, 9)])
def test_what_is_local_is_halved_by_work_for_backward(lengths):
    start = Chunk(len(lengths), 0, 1)  # of a cut segment, so that rows travel
    ranks = ((*(Chunk(i, 0, length) for i, length in enumerate(lengths)), start), (Chunk(len(lengths), 1, 2),))
    metadata = build_metadata(ShardPlan("hybrid", (*lengths, 2), ranks), 0, sum(lengths) + 1)
    parts = metadata.local_parts
    assert parts[0].rows.start == 0 and parts[-1].rows.stop == metadata.local.rows.stop
    assert all(part.cu_seqlens_q[0] == 0 for part in parts)
    sizes = [np.diff(part.cu_seqlens_q.numpy()) for part in parts]
    assert np.concatenate(sizes).tolist() == [*lengths, 1]
    works = [(size * (size + 1)).sum() for size in sizes]
    assert works[0] >= sum(works) / 2 > works[0] - sizes[0][-1] * (sizes[0][-1] + 1)


def test_dtypes_are_those_that_the_kernels_ask_for():
    for strategy in STRATEGIES:
        metadata = build_metadata(plan_of(strategy, (9, 4), 2), 1, 13)
        for call in (metadata.local, metadata.cut, *metadata.local_parts):
            if call is not None:
                assert call.cu_seqlens_q.dtype == call.cu_seqlens_k.dtype == torch.int32
                assert call.key_index is None or call.key_index.dtype == torch.int64
        assert metadata.needed is None or metadata.needed.send.dtype == torch.int64


def test_one_rank_with_whole_documents_picks_and_sends_nothing():
    metadata = build_metadata(shard("per_document", (9, 4), 1), 0, 16)
    assert metadata.is_local and metadata.cut is None and len(metadata.local_parts) == 1


def test_one_rank_with_cut_documents_still_sees_their_beginnings():
    plan = ShardPlan("per_document", (5,), ((Chunk(0, 3, 5), Chunk(0, 0, 3)),))
    metadata = build_metadata(plan, 0, 5)
    assert metadata.local is None
    assert metadata.cut.key_index.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]


def test_moving_to_a_device_keeps_own_keys_apart_from_picked_ones():
    metadata = build_metadata(plan_of("hybrid", (37, 5, 22), 2), 0, 64)
    assert metadata.to("cpu") is metadata
    assert metadata.local.cu_seqlens_k is metadata.local.cu_seqlens_q and metadata.local.key_index is None
    moved = metadata.to("meta")
    tensors = [moved.needed.send, moved.cut.key_index]
    for call in (moved.local, moved.cut, *moved.local_parts):
        tensors += [call.cu_seqlens_q, call.cu_seqlens_k]
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_a_mesh_of_another_size_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"built for 2 CP ranks, but the cp mesh has 1$"):
        build_metadata(shard("per_document", (9,), 2), 0, 8).bind(None, "cpu")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_thousands_of_documents_take_no_python_loop_over_tokens(strategy):
    plan = plan_of(strategy, (131,) * 1000, 8)
    metadata = build_metadata(plan, 3, plan.padded_tokens(8))
    keys = sum(len(call.key_index) for call in (metadata.cut,) if call is not None)
    local = 0 if metadata.local is None else metadata.local.rows.stop
    assert keys + local == sum(chunk.stop for chunk in plan.ranks[3])

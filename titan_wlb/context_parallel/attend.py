"""Attention of one CP rank's rows, forward and backward, computing while rows travel.

Two things can be computed before all rows are there: what is local (see ``metadata``), and the heads whose keys and
values have come. Where needed rows travel, and many of them, they do so in slices of K/V heads, each with its query
heads; slices start one behind the other, and each is waited for when its turn comes (ours, ``benchmarks/exchange.md``):

    two slices      rows     K/V of slice 1 | K/V of slice 2 |
    forward         kernel   local          | cut, slice 1   | cut, slice 2

                    rows     K/V of slice 1 | K/V of slice 2 | dK/dV of slice 1 | dK/dV of slice 2
    backward        kernel   half of local  | cut, slice 1   | cut, slice 2     | the other half of local

Shape legend: T padded rows of this rank, K packed key rows, H query heads, Hkv key/value heads, D head dim.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

from titan_wlb.context_parallel.kernels import document_attention, document_attention_backward
from titan_wlb.context_parallel.keys import fetch, give_back
from titan_wlb.context_parallel.metadata import AttentionMetadata, KernelCall

__all__ = ["backward", "forward", "head_slices"]

Part = tuple[slice, slice, torch.Tensor]  # places along the first and the second dim of a tensor, and what stands there

_ALL = slice(None)
# Query heads that a slice keeps at least: few of them leave a GPU's multiprocessors idle behind the deepest tile.
_LEAST_HEADS = {"cpu": 1, "flash_attn": 16, "torch_varlen": 16}
# Bytes that the busiest rank moves in a slice at least: below, a collective's own time is as long as its transfer.
_LEAST_BYTES = 2**21
_MOST_SLICES = 2


def forward(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, metadata: AttentionMetadata, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [T, H, D], lse [H, T] in at least float32) of this rank's rows; zero on padding."""
    assert q_THD.shape[0] == metadata.padded_tokens, (q_THD.shape, metadata.padded_tokens)

    def attend(call: KernelCall, heads: slice, k: torch.Tensor, v: torch.Tensor) -> None:
        q = q_THD[call.rows, heads]
        found = document_attention(q, k, v, *_segments_of(call), scale, backend=metadata.backend)
        outs.append((call.rows, heads, found[0]))
        lses.append((heads, call.rows, found[1]))

    outs: list[Part] = []
    lses: list[Part] = []
    slices = head_slices(q_THD, k_THD, metadata)
    waits = [fetch(k_THD[:, kv], v_THD[:, kv], metadata) for _, kv in slices]
    if metadata.local is not None:
        rows = metadata.local.rows
        attend(metadata.local, _ALL, k_THD[rows], v_THD[rows])
    for heads, _ in slices:
        table = waits.pop(0)()  # also where this rank only sends: what it sends must live as long
        if metadata.cut is not None:
            keys = _pick(table, metadata.cut)
            del table  # before the kernel runs, as in backward: it is as large as what was picked
            attend(metadata.cut, heads, *keys)
    lse_dtype = torch.promote_types(q_THD.dtype, torch.float32)
    return _assemble(outs, q_THD.shape, q_THD), _assemble(lses, q_THD.shape[1::-1], q_THD, lse_dtype)


def backward(
    dout_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    out_THD: torch.Tensor,
    lse_HT: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq [T, H, D], dk [T, Hkv, D], dv [T, Hkv, D]) of this rank's rows, dk and dv summed over the group."""

    def differentiate(
        call: KernelCall, heads: slice, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = call.rows
        inputs = (dout_THD[rows, heads], q_THD[rows, heads], k, v, out_THD[rows, heads])
        lse = lse_HT[heads, rows].contiguous()
        dq, dk, dv = document_attention_backward(*inputs, lse, *_segments_of(call), scale, backend=metadata.backend)
        dqs.append((rows, heads, dq))
        return dk, dv

    def differentiate_local(calls: tuple[KernelCall, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [differentiate(call, _ALL, k_THD[call.rows], v_THD[call.rows]) for call in calls]

    dqs: list[Part] = []
    slices = head_slices(q_THD, k_THD, metadata)
    waits = [fetch(k_THD[:, kv], v_THD[:, kv], metadata) for _, kv in slices]
    local = differentiate_local(metadata.local_parts[:1])
    returns = []
    for heads, _ in slices:
        table = waits.pop(0)()
        shape, of_keys = table.shape, None
        if metadata.cut is not None:
            keys = _pick(table, metadata.cut)
            del table
            of_keys = differentiate(metadata.cut, heads, *keys)
        gradients = k_THD.new_zeros(shape)
        if of_keys is not None:
            # As a rule two chunks of a rank share their prefix: two terms meet, and round once in any dtype.
            for rows, gradient in zip(gradients.unbind(1), of_keys, strict=True):
                rows.index_add_(0, metadata.cut.key_index, gradient)
        returns.append(give_back(gradients, metadata))
    local += differentiate_local(metadata.local_parts[1:])

    parts: tuple[list[Part], list[Part]] = ([], [])  # of dk and of dv
    for _, kv_heads in slices:
        own = returns.pop(0)()
        for part, rows in enumerate(own.unbind(1)):
            for call, gradients_of_call in zip(metadata.local_parts, local, strict=True):
                rows[call.rows] += gradients_of_call[part][:, kv_heads]
            parts[part].append((slice(0, len(own)), kv_heads, rows))
    if metadata.is_local and metadata.local is not None:
        parts = tuple([(metadata.local.rows, _ALL, gradient)] for gradient in local[0])
    dk_THD, dv_THD = (_assemble(part, k_THD.shape, k_THD) for part in parts)
    return _assemble(dqs, q_THD.shape, q_THD), dk_THD, dv_THD


def head_slices(q_THD: torch.Tensor, k_THD: torch.Tensor, metadata: AttentionMetadata) -> list[tuple[slice, slice]]:
    """(query heads, their K/V heads) of each exchange, none where all is local.

    Alike on all ranks of the group, for all know the plan and have as many heads.
    """
    if metadata.is_local:
        return []
    number = 1
    if metadata.needed is not None:
        most = min(
            _MOST_SLICES,
            q_THD.shape[1] // _LEAST_HEADS[metadata.backend],
            2 * metadata.needed.most * k_THD[:1].nbytes // _LEAST_BYTES,
        )
        number = max((n for n in range(1, most + 1) if k_THD.shape[1] % n == 0), default=1)
    num_heads, num_kv_heads = q_THD.shape[1], k_THD.shape[1]
    bounds = [(i * num_heads // number, i * num_kv_heads // number) for i in range(number + 1)]
    return [(slice(h, h_stop), slice(kv, kv_stop)) for (h, kv), (h_stop, kv_stop) in pairwise(bounds)]


def _pick(table: torch.Tensor, call: KernelCall) -> tuple[torch.Tensor, ...]:
    """(K, V) of a table's rows: the packed key prefixes of a call's segments, [K, Hkv, D] each."""
    return table.index_select(0, call.key_index).unbind(1)


def _assemble(
    parts: list[Part], shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A tensor of its own memory, the parts at their places and zeros elsewhere. A part that is all of it is it."""
    dtype = dtype or like.dtype
    if len(parts) == 1:
        (*_, part) = parts[0]
        owns_memory = part.is_contiguous() and part.untyped_storage().nbytes() == part.nbytes
        if part.shape == shape and part.dtype == dtype and owns_memory:
            return part
    whole = like.new_zeros(shape, dtype=dtype)
    for first, second, part in parts:
        whole[first, second] = part
    return whole


def _segments_of(call: KernelCall) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    return call.cu_seqlens_q, call.cu_seqlens_k, call.max_q, call.max_k

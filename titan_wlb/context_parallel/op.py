"""Context-parallel attention as one opaque custom op with its own backward.

    forward    all-gather K/V -> pack the prefixes (one index_select) -> attention kernel -> out, lse
    backward   all-gather K/V again -> pack -> the kernel's backward -> unpack (index_add) -> reduce-scatter dK/dV

Exchange buffers and packed layouts live inside the op, so that their sizes never reach torch.compile and are never
saved: what stays between forward and backward is q, k, v, out and lse of this rank's own rows. ``lse`` travels as a
second output. The backward is an opaque op too, or AOTAutograd would trace the CPU kernel's loops into the graph.

Shape legend: T padded rows of this rank, K packed key rows, H query heads, Hkv key/value heads, D head dim.
"""

from typing import Any

import torch

from titan_wlb.compat import opaque
from titan_wlb.context_parallel.kernels import document_attention, document_attention_backward
from titan_wlb.context_parallel.metadata import AttentionMetadata

__all__ = ["attention", "define_ops", "ops_to_save"]


def attention(
    q_BTHD: torch.Tensor, k_BTHD: torch.Tensor, v_BTHD: torch.Tensor, metadata: Any, scale: float
) -> torch.Tensor:
    """Causal attention inside each document of a micro-batch that is sharded over the CP group.

    Every rank of the group must call it for every micro-batch, with or without real rows of its own.

    Args:
        q_BTHD: [1, T, H, D] with positions already rotated in.
        k_BTHD, v_BTHD: [1, T, Hkv, D]; Hkv divides H.
        metadata: ``AttentionMetadata`` of this micro-batch, bound, or its ``argument`` (under torch.compile where torch
            lacks opaque objects); T is its ``padded_tokens``.
        scale: factor on the scores, as a rule 1 / sqrt(D).

    Returns:
        [1, T, H, D]; rows of padding are zero and get zero gradients.
    """
    if not opaque.SUPPORTED and isinstance(metadata, AttentionMetadata):
        metadata = metadata.argument
    out_THD, _ = _forward(q_BTHD.squeeze(0), k_BTHD.squeeze(0), v_BTHD.squeeze(0), metadata, scale)
    return out_THD.unsqueeze(0)


def ops_to_save() -> list[Any]:
    """Ops whose results selective activation checkpointing should keep: else the exchange runs once more."""
    return [torch.ops.titan_wlb.attention.default]


def define_ops(name: str, metadata_type: type) -> Any:
    """Define ``titan_wlb::<name>`` and ``titan_wlb::<name>_backward``; returns the forward op.

    Args:
        metadata_type: ``AttentionMetadata``, or ``int`` for handles (see compat/opaque.py).
    """
    resolve = opaque.object_of if metadata_type is int else lambda metadata: metadata

    @torch.library.custom_op(f"titan_wlb::{name}", mutates_args=())
    def forward(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: metadata_type, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _run_forward(q, k, v, resolve(metadata), scale)

    @torch.library.custom_op(f"titan_wlb::{name}_backward", mutates_args=())
    def backward(
        dout: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        metadata: metadata_type,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _run_backward(dout, q, k, v, out, lse, resolve(metadata), scale)

    @forward.register_fake
    def _(q, k, v, metadata, scale):
        return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=_lse_dtype(q.dtype))

    @backward.register_fake
    def _(dout, q, k, v, out, lse, metadata, scale):
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)

    def setup_context(ctx, inputs, output):
        q, k, v, ctx.attention_metadata, ctx.scale = inputs
        ctx.save_for_backward(q, k, v, *output)

    def differentiate(ctx, dout, dlse):
        return *backward(dout, *ctx.saved_tensors, ctx.attention_metadata, ctx.scale), None, None

    forward.register_autograd(differentiate, setup_context=setup_context)
    return forward


def _run_forward(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, metadata: AttentionMetadata, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [T, H, D], lse [H, T]) of this rank's rows."""
    assert q_THD.shape[0] == metadata.padded_tokens, (q_THD.shape, metadata.padded_tokens)
    k_KHD, v_KHD = _pack_keys(k_THD, v_THD, metadata)
    rows = metadata.num_tokens
    if rows == 0:
        return q_THD.new_zeros(q_THD.shape), q_THD.new_zeros(q_THD.shape[1::-1], dtype=_lse_dtype(q_THD.dtype))
    out, lse = document_attention(q_THD[:rows], k_KHD, v_KHD, *_segments_of(metadata), scale, backend=metadata.backend)
    return _pad_rows(out, metadata.padded_tokens), _pad_columns(lse, metadata.padded_tokens)


def _run_backward(
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
    k_KHD, v_KHD = _pack_keys(k_THD, v_THD, metadata)
    rows = metadata.num_tokens
    if rows == 0:
        dq, dk, dv = q_THD.new_zeros(q_THD.shape), torch.zeros_like(k_KHD), torch.zeros_like(v_KHD)
    else:
        dq, dk, dv = document_attention_backward(
            dout_THD[:rows],
            q_THD[:rows],
            k_KHD,
            v_KHD,
            out_THD[:rows],
            lse_HT[:, :rows].contiguous(),
            *_segments_of(metadata),
            scale,
            backend=metadata.backend,
        )
    return _pad_rows(dq, metadata.padded_tokens), *_unpack_key_gradients(dk, dv, metadata)


def _pack_keys(
    k_THD: torch.Tensor, v_THD: torch.Tensor, metadata: AttentionMetadata
) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's K and V rows -> the packed key prefixes of its segments, [K, Hkv, D] each."""
    if metadata.gather_index is None:
        return k_THD[: metadata.num_tokens], v_THD[: metadata.num_tokens]
    assert metadata.exchange is not None or metadata.cp == 1, "attention metadata was not bound to its cp mesh"
    rows = torch.stack((k_THD, v_THD), dim=1)
    if metadata.exchange is not None:
        rows = metadata.exchange.all_gather(rows)
    return rows.index_select(0, metadata.gather_index).unbind(1)


def _unpack_key_gradients(
    dk_KHD: torch.Tensor, dv_KHD: torch.Tensor, metadata: AttentionMetadata
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the packed keys -> those of this rank's own rows, [T, Hkv, D] each."""
    if metadata.gather_index is None:
        return _pad_rows(dk_KHD, metadata.padded_tokens), _pad_rows(dv_KHD, metadata.padded_tokens)
    packed = torch.stack((dk_KHD, dv_KHD), dim=1)
    rows = packed.new_zeros(metadata.cp * metadata.padded_tokens, *packed.shape[1:])
    # A rank's two chunks of a document share their prefix: at most two terms meet, which round once in any dtype.
    rows.index_add_(0, metadata.gather_index, packed)
    if metadata.exchange is not None:
        rows = metadata.exchange.reduce_scatter(rows)
    dk_THD, dv_THD = rows.unbind(1)
    return dk_THD.clone(memory_format=torch.contiguous_format), dv_THD.clone(memory_format=torch.contiguous_format)


def _pad_rows(x: torch.Tensor, rows: int) -> torch.Tensor:
    """``x`` with zero rows at its end, contiguous; itself where nothing is missing."""
    if x.shape[0] == rows:
        return x.contiguous()
    padded = x.new_zeros(rows, *x.shape[1:])
    padded[: x.shape[0]] = x
    return padded


def _pad_columns(x: torch.Tensor, columns: int) -> torch.Tensor:
    """Like ``_pad_rows``, of a matrix's columns."""
    return x.contiguous() if x.shape[1] == columns else torch.nn.functional.pad(x, (0, columns - x.shape[1]))


def _segments_of(metadata: AttentionMetadata) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    return metadata.cu_seqlens_q, metadata.cu_seqlens_k, metadata.max_q, metadata.max_k


def _lse_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


_forward = define_ops("attention", AttentionMetadata if opaque.SUPPORTED else int)

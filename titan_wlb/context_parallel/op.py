"""Context-parallel attention as one opaque custom op with its own backward.

    forward    K/V of other ranks -> pack the prefixes (one index_select) -> attention kernel -> out, lse
    backward   K/V again -> pack -> the kernel's backward -> unpack (index_add) -> dK/dV to the ranks that own the rows

What travels is the plan's business (``metadata``, ``keys``), and what is computed meanwhile ``attend``'s.
Exchange buffers and packed layouts live inside the op, so that their sizes never reach torch.compile and are never
saved: what stays between forward and backward is q, k, v, out and lse of this rank's own rows. ``lse`` travels as a
second output. The backward is an opaque op too, or AOTAutograd would trace the CPU kernel's loops into the graph.

Shape legend: T padded rows of this rank, H query heads, Hkv key/value heads, D head dim.
"""

from typing import Any

import torch

from titan_wlb.compat import opaque
from titan_wlb.context_parallel import attend
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
        return attend.forward(q, k, v, resolve(metadata), scale)

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
        return attend.backward(dout, q, k, v, out, lse, resolve(metadata), scale)

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


def _lse_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


_forward = define_ops("attention", AttentionMetadata if opaque.SUPPORTED else int)

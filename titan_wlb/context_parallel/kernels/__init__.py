"""Attention kernels over packed documents, one interface for all.

``document_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale) -> (out, lse)``: segment i has query
rows [cu_seqlens_q[i], cu_seqlens_q[i + 1]) and key rows [cu_seqlens_k[i], cu_seqlens_k[i + 1]), at least as many keys
as queries; the causal mask is aligned bottom-right, so that the last query sees every key:

    2 queries, 5 keys    first query   x x x x .
                         last query    x x x x x

Shape legend: T query rows, K packed key rows, H query heads, Hkv key/value heads (H a multiple of it), D head dim.
"""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from titan_wlb.context_parallel.kernels.choice import BACKENDS, pick_backend

__all__ = ["BACKENDS", "document_attention", "document_attention_backward", "pick_backend"]


def document_attention(
    q_THD: torch.Tensor,
    k_KHD: torch.Tensor,
    v_KHD: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    *,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of every segment to its own keys.

    Args:
        q_THD: [T, H, D], T at least 1.
        k_KHD, v_KHD: [K, Hkv, D]; rows may be strided, the head dim not.
        cu_seqlens_q, cu_seqlens_k: int32 [segments + 1] on the tensors' device.
        max_q, max_k: longest segment and longest key prefix, in rows.
        scale: factor on the scores.
        backend: one of ``BACKENDS``, from ``pick_backend``.

    Returns:
        out [T, H, D] in q's dtype and its log-sum-exp [H, T] in float32 (float64 for float64 inputs).
    """
    return _kernel(backend).forward(q_THD, k_KHD, v_KHD, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale)


def document_attention_backward(
    dout_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_KHD: torch.Tensor,
    v_KHD: torch.Tensor,
    out_THD: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    *,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients (dq [T, H, D], dk [K, Hkv, D], dv [K, Hkv, D]) of ``document_attention``, given its results."""
    return _kernel(backend).backward(
        dout_THD, q_THD, k_KHD, v_KHD, out_THD, lse_HT, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale
    )


@cache
def _kernel(backend: str) -> ModuleType:
    """A backend's module; imported when used, since it may need a package that is not installed."""
    assert backend in BACKENDS, backend
    return import_module(f"{__name__}.{backend}")

"""Compares a kernel with dense attention on a tiny case: kernels differ between machines, versions and generations."""

import torch

__all__ = ["check_kernel", "dense_attention"]

# Query and key rows of the segments: a document, the tail of one, a single query, a single token.
_QUERIES = (70, 33, 1, 1)
_KEYS = (70, 150, 90, 1)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def check_kernel(
    backend: str, device: torch.device | str, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128
) -> None:
    """Run forward and backward of a few segments with two query heads per key head.

    Raises:
        RuntimeError: a result differs from the dense reference; in one line.
    """
    from titan_wlb.context_parallel.kernels import document_attention, document_attention_backward

    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, heads: int) -> torch.Tensor:
        return torch.randn(rows, heads, head_dim, generator=generator).to(device, dtype)

    q, dout = normal(sum(_QUERIES), 4), normal(sum(_QUERIES), 4)
    k, v = normal(sum(_KEYS), 2), normal(sum(_KEYS), 2)
    offsets = [_offsets(lengths, device) for lengths in (_QUERIES, _KEYS)]
    segments, scale = (*offsets, max(_QUERIES), max(_KEYS)), head_dim**-0.5
    out, lse = document_attention(q, k, v, *segments, scale, backend=backend)
    gradients = document_attention_backward(dout, q, k, v, out, lse, *segments, scale, backend=backend)

    exact = [x.double().requires_grad_() for x in (q, k, v)]
    expected_out, expected_lse = dense_attention(*exact, _QUERIES, _KEYS, scale)
    expected_out.backward(dout.double())
    pairs = zip(
        ("out", "lse", "dq", "dk", "dv"),
        (out, lse, *gradients),
        (expected_out, expected_lse, *(x.grad for x in exact)),
        strict=True,
    )
    for name, found, expected in pairs:
        error = ((found.double() - expected).norm() / expected.norm()).item()
        if found.shape != expected.shape or not error <= _TOLERANCE[dtype]:
            raise RuntimeError(f"{backend} attention is off by {error:.1e} in {name} on a case of {sum(_QUERIES)} rows")


def dense_attention(
    q_THD: torch.Tensor, k_KHD: torch.Tensor, v_KHD: torch.Tensor, queries: tuple, keys: tuple, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, by masked matrices: (out [T, H, D], lse [H, T]). For comparison alone: O(T x K) memory."""
    rows = torch.arange(len(queries), device=q_THD.device)
    row_segment = torch.repeat_interleave(rows, torch.tensor(queries, device=q_THD.device))
    key_segment = torch.repeat_interleave(rows, torch.tensor(keys, device=q_THD.device))
    # places counted from each segment's end, since the mask is aligned bottom-right
    row_place = torch.cat([torch.arange(1 - n, 1, device=q_THD.device) for n in queries])
    key_place = torch.cat([torch.arange(1 - n, 1, device=q_THD.device) for n in keys])
    visible = (row_segment[:, None] == key_segment) & (row_place[:, None] >= key_place)
    group = q_THD.shape[1] // k_KHD.shape[1]
    k_KHD, v_KHD = k_KHD.repeat_interleave(group, 1), v_KHD.repeat_interleave(group, 1)
    scores = torch.einsum("thd,khd->htk", q_THD, k_KHD) * scale
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.einsum("htk,khd->thd", scores.softmax(-1), v_KHD), scores.logsumexp(-1)


def _offsets(lengths: tuple, device: torch.device | str) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)

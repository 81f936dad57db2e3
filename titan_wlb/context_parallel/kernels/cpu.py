"""Attention over packed documents on the CPU: exact, in O(tokens) memory.

torch's blocked CPU kernel has a causal mask for squares alone. A query range [a, b) of a document is therefore two
calls, merged by their log-sum-exp (ours):

                0             a         b   keys
            a   +-------------+---------+
    queries     |    full     | \\causal |
            b   +-------------+---------+

The backward calls the kernel's backward on both parts with the merged output and log-sum-exp. K/V heads are never
repeated for grouped queries: the kernel reads each for its group.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch

from titan_wlb.compat.attention import cpu_backward, cpu_forward

__all__ = ["backward", "forward"]


def forward(
    q_THD: torch.Tensor,
    k_KHD: torch.Tensor,
    v_KHD: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``document_attention``."""
    outs, lses = [], []
    for queries, parts in _segments(cu_seqlens_q, cu_seqlens_k):
        q = _heads_first(q_THD[queries])
        results = [
            cpu_forward(q, _heads_first(k_KHD[keys]), _heads_first(v_KHD[keys]), causal, scale)
            for keys, causal in parts
        ]
        out, lse = _merge(*results) if len(results) == 2 else results[0]
        outs.append(_tokens_first(out))
        lses.append(lse[0])
    return _joined(outs), _joined(lses, dim=1)


def backward(
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``document_attention_backward``."""
    dqs, dks, dvs = [], [], []
    for queries, parts in _segments(cu_seqlens_q, cu_seqlens_k):
        dout, q, out = (_heads_first(x[queries]) for x in (dout_THD, q_THD, out_THD))
        lse = lse_HT[:, queries].unsqueeze(0)
        results = [
            cpu_backward(dout, q, _heads_first(k_KHD[keys]), _heads_first(v_KHD[keys]), out, lse, causal, scale)
            for keys, causal in parts
        ]
        dqs.append(_tokens_first(results[0][0] if len(results) == 1 else results[0][0] + results[1][0]))
        dks += [_tokens_first(dk) for _, dk, _ in results]
        dvs += [_tokens_first(dv) for _, _, dv in results]
    return _joined(dqs), _joined(dks), _joined(dvs)


def _segments(
    cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor
) -> Iterator[tuple[slice, list[tuple[slice, bool]]]]:
    """Per segment the slice of its query rows, and one or two (slice of keys, whether causal) that make it up."""
    bounds = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
    for (q_start, q_stop), (k_start, k_stop) in bounds:
        first = k_stop - (q_stop - q_start)  # the key beside the first query
        if q_stop - q_start == 1:
            parts = [(slice(k_start, k_stop), False)]
        elif first == k_start:
            parts = [(slice(k_start, k_stop), True)]
        else:
            parts = [(slice(k_start, first), False), (slice(first, k_stop), True)]
        yield slice(q_start, q_stop), parts


def _merge(
    before: tuple[torch.Tensor, torch.Tensor], beside: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [1, H, T, D], lse [1, H, T]) of attention to two disjoint sets of keys -> those of attention to both."""
    (out_a, lse_a), (out_b, lse_b) = before, beside
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a, weight_b = (lse_a - lse).exp().unsqueeze(-1), (lse_b - lse).exp().unsqueeze(-1)
    return (out_a * weight_a + out_b * weight_b).to(out_a.dtype), lse


def _joined(parts: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """One tensor, contiguous. The kernel's results lie token after token: a document alone is not copied."""
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim)


def _tokens_first(x_BHTD: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] -> [T, H, D], a view."""
    return x_BHTD[0].transpose(0, 1)


def _heads_first(x_THD: torch.Tensor) -> torch.Tensor:
    """[T, H, D] -> [1, H, T, D], a view."""
    return x_THD.transpose(0, 1).unsqueeze(0)

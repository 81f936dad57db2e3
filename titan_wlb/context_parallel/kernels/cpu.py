"""Attention over packed documents on the CPU: exact, in O(tokens) memory.

torch's blocked CPU kernel has a causal mask for squares alone. A query range [a, b) of a document is therefore two
calls, merged by their log-sum-exp:

    keys      0 ........ a ... b
    queries a |  full    |\\    |
            . |  prefix  |  \\  |  diagonal
            b |          |    \\|
"""

import torch

from titan_wlb.compat.attention import cpu_backward, cpu_forward

__all__ = ["backward", "forward"]


def forward(q_THD, k_KHD, v_KHD, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale):
    """See ``document_attention``."""
    out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    lse_HT = q_THD.new_empty(q_THD.shape[1], q_THD.shape[0], dtype=_accumulated(q_THD.dtype))
    for queries, prefix, diagonal in _segments(cu_seqlens_q, cu_seqlens_k):
        q = _heads_first(q_THD[queries])
        out, lse = cpu_forward(q, _heads_first(k_KHD[diagonal]), _heads_first(v_KHD[diagonal]), True, scale)
        if prefix.stop > prefix.start:
            before = cpu_forward(q, _heads_first(k_KHD[prefix]), _heads_first(v_KHD[prefix]), False, scale)
            out, lse = _merge(out, lse, *before)
        out_THD[queries] = out[0].transpose(0, 1)
        lse_HT[:, queries] = lse[0]
    return out_THD, lse_HT


def backward(dout_THD, q_THD, k_KHD, v_KHD, out_THD, lse_HT, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale):
    """See ``document_attention_backward``."""
    dq_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    dk_KHD = torch.empty_like(k_KHD, memory_format=torch.contiguous_format)
    dv_KHD = torch.empty_like(v_KHD, memory_format=torch.contiguous_format)
    for queries, prefix, diagonal in _segments(cu_seqlens_q, cu_seqlens_k):
        dout, q, out = (_heads_first(x[queries]) for x in (dout_THD, q_THD, out_THD))
        lse = lse_HT[:, queries].unsqueeze(0)
        dq = None
        for keys, causal in ((diagonal, True), (prefix, False)):
            if keys.stop == keys.start:
                continue
            k, v = _heads_first(k_KHD[keys]), _heads_first(v_KHD[keys])
            part, dk, dv = cpu_backward(dout, q, k, v, out, lse, causal, scale)
            dq = part if dq is None else dq + part
            dk_KHD[keys] = dk[0].transpose(0, 1)
            dv_KHD[keys] = dv[0].transpose(0, 1)
        dq_THD[queries] = dq[0].transpose(0, 1)
    return dq_THD, dk_KHD, dv_KHD


def _segments(cu_seqlens_q, cu_seqlens_k):
    """Per segment the slices of its query rows, its keys before the first query, and its keys beside the queries."""
    q_offsets, k_offsets = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for q_start, q_stop, k_start, k_stop in zip(q_offsets, q_offsets[1:], k_offsets, k_offsets[1:]):
        first = k_stop - (q_stop - q_start)
        yield slice(q_start, q_stop), slice(k_start, first), slice(first, k_stop)


def _merge(out_a, lse_a, out_b, lse_b):
    """Attention to two disjoint sets of keys -> attention to both. out [1, H, T, D], lse [1, H, T]."""
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a, weight_b = (lse_a - lse).exp().unsqueeze(-1), (lse_b - lse).exp().unsqueeze(-1)
    return (out_a * weight_a + out_b * weight_b).to(out_a.dtype), lse


def _heads_first(x_THD):
    return x_THD.transpose(0, 1).unsqueeze(0)


def _accumulated(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32

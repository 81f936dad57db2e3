"""The private aten ops behind the attention kernels. Read in torch 2.11 to 2.13.

``torch.nn.attention.varlen.varlen_attn`` is the public face of the flash ops, but it gives no way to call the
backward with an output and log-sum-exp of one's own, which an opaque op must.
"""

import torch

__all__ = ["cpu_backward", "cpu_forward", "varlen_backward", "varlen_forward"]


def cpu_forward(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocked attention on the CPU: (output like q, log-sum-exp [B, H, T]). K/V heads may be fewer (GQA)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHTD, k_BHTD, v_BHTD, 0.0, causal, scale=scale)


def cpu_backward(
    dout_BHTD: torch.Tensor,
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    out_BHTD: torch.Tensor,
    lse_BHT: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v; ``out`` and ``lse`` may come from a merge over more keys than these."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        dout_BHTD, q_BHTD, k_BHTD, v_BHTD, out_BHTD, lse_BHT, 0.0, causal, scale=scale
    )


def varlen_forward(
    q_THD: torch.Tensor,
    k_KHD: torch.Tensor,
    v_KHD: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flash attention over packed segments on CUDA, causal bottom-right: (out [T, H, D], lse [H, T] float32)."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q_THD,
        k_KHD,
        v_KHD,
        cu_seqlens_q,
        cu_seqlens_k,
        max_q,
        max_k,
        0.0,
        True,
        return_debug_mask=False,
        scale=scale,
        window_size_left=-1,
        window_size_right=0,
    )
    return out, lse


def varlen_backward(
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
    """Gradients of q, k, v. The state of the random numbers is a stand-in, as in torch's own: there is no dropout."""
    return torch.ops.aten._flash_attention_backward(
        dout_THD,
        q_THD,
        k_KHD,
        v_KHD,
        out_THD,
        lse_HT,
        cu_seqlens_q,
        cu_seqlens_k,
        max_q,
        max_k,
        0.0,
        True,
        torch.zeros((2,), dtype=torch.uint64, device=q_THD.device),
        torch.empty(0, device=q_THD.device),
        scale=scale,
        window_size_left=-1,
        window_size_right=0,
    )

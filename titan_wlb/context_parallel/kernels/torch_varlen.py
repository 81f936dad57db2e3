"""The flash kernels behind ``torch.nn.attention.varlen.varlen_attn``: FlashAttention 2, or 3 or 4 where offered.

torch's public function keeps its backward to itself; the aten ops that it calls take our out and lse, and
``activate_flash_attention_impl`` replaces exactly those.
"""

import logging

import torch

from titan_wlb.compat.attention import varlen_backward, varlen_forward
from titan_wlb.context_parallel.kernels.check import check_kernel
from titan_wlb.context_parallel.kernels.precision import to_half

__all__ = ["activate", "backward", "forward"]

# By major compute capability; FA4 runs on Hopper too, where FA3 is the mature one.
_GENERATIONS = {9: ("FA3", "FA4"), 10: ("FA4",)}

logger = logging.getLogger(__name__)


def activate(device: torch.device) -> str | None:
    """Switch on the newest FlashAttention that works on this CUDA device, for the whole process.

    Returns:
        "FA3" or "FA4"; None where torch's own FlashAttention 2 stays in force.
    """
    try:
        from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl
    except ImportError:  # torch 2.10 and before
        return None
    for generation in _GENERATIONS.get(torch.cuda.get_device_capability(device)[0], ()):
        try:
            activate_flash_attention_impl(generation)
        except Exception as error:  # not installed, mostly; a broken installation raises whatever it likes
            logger.debug(f"{generation} is not offered: {error}")
            continue
        try:
            check_kernel("torch_varlen", device)
            return generation
        except Exception as error:
            logger.warning(f"{generation} is installed but does not work here, going on without it: {error}")
            restore_flash_attention_impl()
    return None


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
    q, k, v = to_half(q_THD, k_KHD, v_KHD)
    out, lse = varlen_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale)
    return out.to(q_THD.dtype), lse


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
    dout, q, k, v, out = to_half(dout_THD, q_THD, k_KHD, v_KHD, out_THD)
    dq, dk, dv = varlen_backward(dout, q, k, v, out, lse_HT, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale)
    return dq.to(q_THD.dtype), dk.to(k_KHD.dtype), dv.to(v_KHD.dtype)

"""Flash kernels take bfloat16 and float16 alone.

Mixed precision comes from FSDP; layouts without it (TP or PP alone) bring float32, which is rounded to bfloat16 here
and nowhere else. The output is a bfloat16 number then, so that rounding it again for backward loses nothing.
"""

import torch

__all__ = ["to_half"]


def to_half(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors as a flash kernel can read them: half precision, head dim contiguous."""
    return tuple(_readable(x) for x in tensors)


def _readable(x: torch.Tensor) -> torch.Tensor:
    x = x if x.dtype in (torch.bfloat16, torch.float16) else x.bfloat16()
    return x if x.stride(-1) == 1 else x.contiguous()

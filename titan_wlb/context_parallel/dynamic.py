"""Lets each transformer block compile once for micro-batches of every length."""

from typing import Any

import torch
from torch import nn

from titan_wlb.compat.opaque import mark_dynamic

__all__ = ["mark_dynamic_hook"]


def mark_dynamic_hook(block: nn.Module) -> None:
    """Before every forward of a block, mark dim 1 (tokens) of its input and of its positions as dynamic.

    Call it on each compiled block *after* ``fully_shard``: marks that are set before FSDP's own hook are lost.
    Without it the second length compiles a second graph. A size of 0 or 1 stays unmarked: torch.compile always
    specialises those, so one local token costs one more graph.

    Args:
        block: a TransformerBlock with ``forward(x [1, T, dim], freqs_cis, metadata, positions [1, T])``.
    """
    block.register_forward_pre_hook(_mark, with_kwargs=True)


def _mark(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tensors = (args[0] if args else kwargs["x"], args[3] if len(args) > 3 else kwargs.get("positions"))
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[1] > 1:
            mark_dynamic(tensor, 1)

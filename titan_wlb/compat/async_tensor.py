"""Tensors whose collective is still under way. Read in torch 2.11 to 2.13."""

import torch
from torch.distributed import _functional_collectives as functional


def wait_for(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, its collective done. Unlike ``AsyncCollectiveTensor.wait`` it keeps the autograd graph."""
    if isinstance(tensor, functional.AsyncCollectiveTensor):
        return functional.wait_tensor(tensor)
    return tensor

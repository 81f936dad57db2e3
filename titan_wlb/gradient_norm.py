"""Clipping of the gradient norm over the whole job, with its waits on the clock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from titan_wlb.clocks import StepClock
from titan_wlb.compat.fsdp_waits import local_norms


@torch.no_grad()
def clip_grad_norm_(
    parameters: Iterable[torch.Tensor],
    max_norm: float,
    clock: StepClock,
    pp_mesh: DeviceMesh | None = None,
    *,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Scale all gradients so that their norm over every rank is at most ``max_norm``.

    What TorchTitan's ``clip_grad_norm_`` computes (0.2.2; without expert parallelism), in three separate parts: the
    norms of local shards are compute, their reduction over FSDP's ranks is "fsdp", over stages "pipeline". Marks the
    clock's phases "norm" and, behind it, "tail".

    Args:
        parameters: of all model parts of this rank; tensors or DTensors.
        max_norm: of all gradients as one vector.
        pp_mesh: one-dimensional, over the pipeline's stages; None without a pipeline.
        norm_type: 2.0, another p, or infinity.

    Returns:
        The norm before clipping: a scalar tensor, the same on every rank.

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite``.
    """
    clock.phase("norm")
    parameters = list(parameters)
    total_norm = _norm([p.grad for p in parameters if p.grad is not None], norm_type, clock)
    if pp_mesh is not None:
        total_norm = _over_stages(total_norm, norm_type, pp_mesh, clock)
    if error_if_nonfinite and not torch.isfinite(total_norm):
        raise RuntimeError(f"the gradients' norm is {total_norm.item()}")
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total_norm, foreach)
    clock.phase("tail")
    return total_norm


def _norm(grads: list[torch.Tensor], norm_type: float, clock: StepClock) -> torch.Tensor:
    """Norm over all ranks but the pipeline's."""
    if not grads:
        return torch.tensor(0.0)
    norms = local_norms(grads, norm_type)
    if not isinstance(norms[0], DTensor):
        return torch.linalg.vector_norm(torch.stack(norms), norm_type)
    # The reduction happens while partial norms are put into one vector, if not when that vector becomes a plain tensor.
    # Over TP ranks alone it counts as compute, as all of TP's collectives do.
    is_tp_alone = norms[0].device_mesh.mesh_dim_names == ("tp",)
    with nullcontext() if is_tp_alone else clock.wait("fsdp", collective=True):
        total_norm = torch.linalg.vector_norm(torch.stack(norms), norm_type)
        assert isinstance(total_norm, DTensor)
        return total_norm.full_tensor()


def _over_stages(norm: torch.Tensor, norm_type: float, pp_mesh: DeviceMesh, clock: StepClock) -> torch.Tensor:
    is_max = math.isinf(norm_type)
    value = norm if is_max else norm**norm_type
    with clock.wait("pipeline"):
        dist.all_reduce(value, dist.ReduceOp.MAX if is_max else dist.ReduceOp.SUM, group=pp_mesh.get_group())
    return value if is_max else value ** (1.0 / norm_type)

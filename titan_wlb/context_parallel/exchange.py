"""Moves K/V rows between the ranks of a CP group, and does nothing else.

The collectives are DTensor redistributions on the ``cp`` axis: Shard(0) -> Replicate is the all-gather, Partial ->
Shard(0) the reduce-scatter (paper, section 3: K and V are all-gathered, their gradients reduce-scattered).
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

__all__ = ["Exchange"]


class Exchange:
    """All-gather and reduce-scatter over one CP group, their waits timed.

    Args:
        mesh: one-dimensional DeviceMesh of the group.
        clock: has ``wait("cp", collective=True)``, a context manager; None measures nothing.
    """

    def __init__(self, mesh: DeviceMesh, clock: Any = None) -> None:
        self.mesh = mesh
        self.clock = clock

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        """[T, ...] of this rank -> [cp * T, ...], rank after rank."""
        return self._redistribute(rows, Shard(0), Replicate())

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """[cp * T, ...] of every rank -> [T, ...], this rank's rows summed over the ranks."""
        return self._redistribute(rows, Partial(), Shard(0))

    def _redistribute(self, rows: torch.Tensor, source: Placement, target: Placement) -> torch.Tensor:
        tensor = DTensor.from_local(rows, self.mesh, [source], run_check=False)
        # Issuing is timed too, for torch 2.13 already waits in it, async_op or not, where the result has more than 256
        # rows: ``Shard._maybe_unpad_tensor`` compares sizes by identity, and touches the result where they differ.
        with nullcontext() if self.clock is None else self.clock.wait("cp", collective=True):
            return tensor.redistribute(placements=[target]).to_local()

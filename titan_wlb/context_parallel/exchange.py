"""Moves K/V rows between the ranks of a CP group, and does nothing else.

every rank needs everything   all-gather, reduce-scatter: DTensor redistributions on the ``cp`` axis, Shard(0) ->
                              Replicate and Partial -> Shard(0) (paper, section 3)
a rank needs some rows        one all-to-all with a size for each pair of ranks, under way while others compute (ours)
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

__all__ = ["Exchange", "InFlight"]


class InFlight:
    """Rows on their way between ranks.

    It holds what is sent and where it arrives: neither may be freed or used again before ``wait``.
    """

    def __init__(self, work: dist.Work, sent: torch.Tensor, arriving: torch.Tensor, waiting: Any) -> None:
        self._work, self._sent, self._arriving, self._waiting = work, sent, arriving, waiting

    def wait(self) -> torch.Tensor:
        """What has arrived. On CUDA the current stream waits, not the host."""
        with self._waiting:
            self._work.wait()
        return self._arriving


class Exchange:
    """Collectives over one CP group, their waits timed.

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

    def all_to_all(
        self, rows: torch.Tensor, counts: Sequence[int], arriving: torch.Tensor, arriving_counts: Sequence[int]
    ) -> InFlight:
        """Send each rank its rows. Every rank of the group must call it, with or without rows to send or to receive.

        Args:
            rows: [sum of counts, ...], contiguous: those for CP rank 0, those for CP rank 1, ...
            counts: rows for each rank.
            arriving: [sum of arriving_counts, ...], contiguous; is written rank after rank.
            arriving_counts: rows from each rank.
        """
        group = self.mesh.get_group()
        work = dist.all_to_all_single(arriving, rows, list(arriving_counts), list(counts), group, async_op=True)
        return InFlight(work, rows, arriving, self._wait())

    def _redistribute(self, rows: torch.Tensor, source: Placement, target: Placement) -> torch.Tensor:
        tensor = DTensor.from_local(rows, self.mesh, [source], run_check=False)
        # Issuing is timed too, for torch 2.13 already waits in it, async_op or not, where the result has more than 256
        # rows: ``Shard._maybe_unpad_tensor`` compares sizes by identity, and touches the result where they differ.
        with self._wait():
            return tensor.redistribute(placements=[target]).to_local()

    def _wait(self) -> AbstractContextManager[None]:
        return nullcontext() if self.clock is None else self.clock.wait("cp", collective=True)

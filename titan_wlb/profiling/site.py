"""The devices that a profile is measured on: this process's, or the TP x CP ranks that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.tools.utils import device_type

from titan_wlb.context_parallel.kernels import pick_backend
from titan_wlb.job_config import JobConfig
from titan_wlb.planning.sharding.latency import LatencyModel

__all__ = ["Site", "open_site"]


@dataclass(frozen=True)
class Site:
    """Where micro-batches run.

    Args:
        device: of this rank.
        dtype: of parameters and activations.
        backend: the attention kernel.
        tp_mesh, cp_mesh: one-dimensional; None for one rank.
        latency: of attention, for a sharding that asks for it.
    """

    device: torch.device
    dtype: torch.dtype
    backend: str
    tp_mesh: DeviceMesh | None = None
    cp_mesh: DeviceMesh | None = None
    latency: LatencyModel | None = None

    @property
    def tp(self) -> int:
        """Ranks in tensor parallelism."""
        return 1 if self.tp_mesh is None else self.tp_mesh.size()

    @property
    def cp(self) -> int:
        """Ranks in context parallelism."""
        return 1 if self.cp_mesh is None else self.cp_mesh.size()

    @property
    def cp_rank(self) -> int:
        """This rank's place among them."""
        return 0 if self.cp_mesh is None else self.cp_mesh.get_local_rank()

    @property
    def tp_enabled(self) -> bool:
        """As TorchTitan's ``ParallelDims``, which this stands in for where the model is parallelized."""
        return self.tp_mesh is not None

    @property
    def fsdp_enabled(self) -> bool:
        """No: a profile is of compute, and parameters are gathered while others compute."""
        return False

    def get_mesh(self, name: str) -> DeviceMesh:
        """As ``ParallelDims``; only "tp" is asked for."""
        assert name == "tp" and self.tp_mesh is not None, name
        return self.tp_mesh

    def slowest(self, times: list[int]) -> list[int]:
        """Per entry the largest over the ranks."""
        if not dist.is_initialized():
            return times
        largest = torch.tensor(times, dtype=torch.int64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()


def open_site(config: JobConfig) -> Site:
    """The device, its kernel and, under torchrun, the meshes.

    One process measures one device, whatever degrees the configuration has. Ranks of torchrun have to be as many as
    ``tensor_parallel_degree`` x ``context_parallel_degree``.

    Raises:
        ValueError: other numbers of ranks, or a kernel that does not run here; one line.
    """
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    tp, cp = config.parallelism.tensor_parallel_degree, config.parallelism.context_parallel_degree
    if world not in (1, tp * cp):
        raise ValueError(
            f"torchrun started {world} ranks, parallelism.tensor_parallel_degree {tp} x context_parallel_degree {cp} "
            f"needs {tp * cp}; start that many, or the tool without torchrun for one device"
        )
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)  # as CPU ranks train, and so that one thread's CPU time is all there is
    dtype = TORCH_DTYPE_MAP[config.training.mixed_precision_param]
    backend = pick_backend(config.wlb.attention_backend, device)
    if world == 1:
        return Site(device, dtype, backend)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    mesh = init_device_mesh(device.type, (cp, tp), mesh_dim_names=("cp", "tp"))
    return Site(device, dtype, backend, mesh["tp"] if tp > 1 else None, mesh["cp"] if cp > 1 else None)

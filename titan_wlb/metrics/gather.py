"""One step's times of every rank, brought to the rank that logs, by collectives in which every rank waits for all.

For tests, and for jobs whose store has no queues; a run's records travel by ``mailbox.py``, where nobody waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from titan_wlb.records import COLLECTIVE_GROUPS, Layout, StepRecord, StepTimes, pack, packed_size, unpack


@dataclass(frozen=True)
class Groups:
    """Process groups over which collectives run; None for an axis of one rank, and for the default group as world."""

    world: dist.ProcessGroup | None = None
    cp: dist.ProcessGroup | None = None
    fsdp: dist.ProcessGroup | None = None
    dp_replicate: dist.ProcessGroup | None = None


def groups_of(parallel_dims: Any) -> Groups:
    """The groups of TorchTitan's ``ParallelDims``."""
    meshes = {name: parallel_dims.get_optional_mesh(name) for name in COLLECTIVE_GROUPS}
    return Groups(**{name: None if mesh is None else mesh.get_group() for name, mesh in meshes.items()})


def layout_of(parallel_dims: Any) -> Layout:
    """The layout of TorchTitan's ``ParallelDims``."""
    dims = parallel_dims
    return Layout(pp=dims.pp, dp=dims.dp_replicate * dims.dp_shard, cp=dims.cp, tp=dims.tp)


def gather_records(
    times: StepTimes, groups: Groups, *, metrics_rank: int, device: torch.device | str = "cpu"
) -> list[StepRecord]:
    """All ranks' records of one step, in the order of their ranks.

    Three kinds of collectives: one MAX over the job (how long the rows are), one MIN per axis (what each of its
    collectives cost at least), one gather.

    Args:
        times: this rank's, of the same step on all ranks.
        metrics_rank: the global rank that logs (TorchTitan: the first rank of the last stage, else rank 0).
        device: where the groups' backend wants its tensors.

    Returns:
        The records on ``metrics_rank``, an empty list elsewhere.
    """
    if not dist.is_initialized():
        own = {name: sum(times.collectives_ms.get(name, ())) for name in COLLECTIVE_GROUPS}
        return [_record(0, times, own)]
    counts = [len(times.collectives_ms.get(name, ())) for name in COLLECTIVE_GROUPS]
    largest = torch.tensor([len(times.sections), *counts], dtype=torch.int64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=groups.world)
    num_sections, *num_collectives = largest.tolist()

    transfer_ms = {}
    for name, size in zip(COLLECTIVE_GROUPS, num_collectives, strict=True):
        own_ms = times.collectives_ms.get(name, ())
        transfer_ms[name] = _least_ms(own_ms, size, getattr(groups, name), device)

    rank = dist.get_rank()
    row = pack(_record(rank, times, transfer_ms))
    row += [0.0] * (packed_size(num_sections) - len(row))
    sent = torch.tensor(row, dtype=torch.float64, device=device)
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size())] if rank == metrics_rank else None
    dist.gather(sent, received, dst=metrics_rank, group=groups.world)
    return [unpack(tensor.tolist()) for tensor in received or []]


def _least_ms(
    own_ms: tuple[float, ...], size: int, group: dist.ProcessGroup | None, device: torch.device | str
) -> float:
    """Sum over collectives of the least time that a rank of the group was exposed to each; never above our own sum.

    Collectives are matched by their order. Where ranks of a group counted differently (none does, unless one of them
    recomputes what the others keep), those behind the shortest count are taken for waiting.
    """
    if group is None or size == 0:
        return sum(own_ms)
    vector = torch.zeros(size, dtype=torch.float64, device=device)
    vector[: len(own_ms)] = torch.tensor(own_ms, dtype=torch.float64)
    dist.all_reduce(vector, dist.ReduceOp.MIN, group=group)
    return float(vector.sum())


def _record(rank: int, times: StepTimes, transfer_ms: dict[str, float]) -> StepRecord:
    return StepRecord(rank, times, transfer_ms["cp"], transfer_ms["fsdp"] + transfer_ms["dp_replicate"])

"""Measures what the collectives of a CP group cost: a constant, and a rate."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from titan_wlb.planning.kernel_profile import Link
from titan_wlb.profiling.site import Site

__all__ = ["measure_collectives"]

_SMALL, _LARGE = 1 << 12, 1 << 24  # bytes that a rank receives
_LEAST_REPEATS = 10


def measure_collectives(site: Site, repeats: int) -> dict[str, Link]:
    """By name, as the slowest rank has it; empty where there is one rank. All ranks of the group must call it.

    Args:
        repeats: of each size, after one to warm up and no fewer than ten; the least counts.
    """
    if site.cp_mesh is None:
        return {}
    links = {}
    for name, call in _calls(site).items():
        small, large = site.slowest([_least(site, call, size, repeats) for size in (_SMALL, _LARGE)])
        links[name] = Link(
            latency=small, bytes_per_second=max((_LARGE - _SMALL) * 1_000_000_000 // max(large - small, 1), 1)
        )
    return links


def _calls(site: Site) -> dict[str, Callable[[torch.Tensor, torch.Tensor], None]]:
    """Collectives of (bytes of this rank, bytes of all ranks)."""
    assert site.cp_mesh is not None
    group = site.cp_mesh.get_group()
    return {
        "all_gather": lambda own, every: dist.all_gather_into_tensor(every, own, group=group),
        "reduce_scatter": lambda own, every: dist.reduce_scatter_tensor(own, every, group=group),
        "all_to_all": lambda own, every: dist.all_to_all_single(torch.empty_like(every), every, group=group),
    }


def _least(site: Site, call: Callable[[torch.Tensor, torch.Tensor], None], size: int, repeats: int) -> int:
    """ns by the wall, since a CPU rank that waits computes nothing; ``size`` bytes reach this rank from the others."""
    elements = size // 4 // (site.cp - 1)
    own = torch.zeros(elements, device=site.device)
    every = torch.zeros(elements * site.cp, device=site.device)
    times = []
    for _ in range(max(repeats, _LEAST_REPEATS) + 1):
        _wait(site)
        dist.barrier(group=site.cp_mesh.get_group())  # type: ignore[union-attr]
        _wait(site)
        start = time.perf_counter_ns()
        call(own, every)
        _wait(site)
        times.append(time.perf_counter_ns() - start)
    return max(min(times[1:]), 1)


def _wait(site: Site) -> None:
    if site.device.type == "cuda":
        torch.cuda.synchronize()

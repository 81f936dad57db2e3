"""Replayed step times against torch's own schedules over gloo: python benchmarks/replay_against_torch.py [--unit 50]

Four processes run torch's schedules on stages that sleep instead of computing, so that two cores are enough and every
duration is known. Prints the second table of schedule_shapes.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from titan_wlb.planning.timeline import build_schedule, step_time, target_works

PP = 4
REPEATS = 4  # the first of them is not counted
SCHEDULES = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B, "Interleaved1F1B": ScheduleInterleaved1F1B}


def cases() -> list[tuple[str, tuple[float, ...]]]:
    """(schedule, works of its micro-batches, mean 1)."""
    random = np.random.default_rng(1)
    uneven = [np.exp(0.6 * random.standard_normal(num)) for num in (6, 6, 4)]
    uneven = [tuple((works / works.mean()).tolist()) for works in uneven]
    return [
        ("1F1B", (1.0,) * 4),
        ("1F1B", target_works("1F1B", PP, 4)),
        ("1F1B", (1.0,) * 8),
        ("1F1B", target_works("1F1B", PP, 8)),
        ("1F1B", uneven[0]),
        ("1F1B", uneven[1]),
        ("GPipe", (1.0,) * 4),
        ("Interleaved1F1B", (1.0,) * 4),
        ("Interleaved1F1B", uneven[2]),
    ]


class Sleeping(torch.autograd.Function):
    """Takes ``seconds`` forward and twice that backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x * weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        time.sleep(2 * ctx.seconds)
        return grad, grad.sum().reshape(1), None


class Stage(nn.Module):
    """Sleeps as long as each of its micro-batches takes, one after the other."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self._seconds, self._place = seconds, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._place += 1
        return Sleeping.apply(x, self.weight, self._seconds[(self._place - 1) % len(self._seconds)])


def run(rank: int, unit: float, store: str, results: str) -> None:
    """One of ``PP`` processes; the first writes the median step times of all cases."""
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PP)
    measured = [_step_seconds(rank, name, [work * unit for work in works]) for name, works in cases()]
    if rank == 0:
        torch.save(measured, results)
    dist.destroy_process_group()


def _step_seconds(rank: int, name: str, seconds: list[float]) -> float:
    virtual_stages = build_schedule(name, PP, len(seconds)).virtual_stages
    x = torch.ones(1, 8)
    stages = [
        PipelineStage(
            Stage(seconds),
            virtual * PP + rank,
            PP * virtual_stages,
            torch.device("cpu"),
            input_args=(x.clone().requires_grad_(virtual * PP + rank > 0),),
            output_args=(x.clone().requires_grad_(),),
        )
        for virtual in range(virtual_stages)
    ]
    schedule = SCHEDULES[name](
        stages if virtual_stages > 1 else stages[0], len(seconds), loss_fn=lambda output, _: output.sum()
    )
    times = []
    for _ in range(REPEATS):
        whole = torch.ones(len(seconds), 8)
        target = {"target": whole} if rank == PP - 1 else {}
        dist.barrier()
        start = time.perf_counter()
        schedule.step(*([whole] if rank == 0 else []), **target)
        slowest = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        times.append(slowest.item())
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unit", type=float, default=50.0, help="milliseconds of a mean micro-batch's forward")
    unit = parser.parse_args().unit / 1000
    with tempfile.TemporaryDirectory() as folder:
        results = str(Path(folder) / "results")
        torch.multiprocessing.spawn(run, (unit, str(Path(folder) / "store"), results), nprocs=PP)
        measured = torch.load(results)
    print("| schedule, PP 4 | works | torch over gloo, ms | replay, ms | torch / replay |")
    print("|---|---|---|---|---|")
    for (name, works), seconds in zip(cases(), measured, strict=True):
        schedule = build_schedule(name, PP, len(works))
        forward = [[work * unit for work in works]] * schedule.num_stages
        replayed = step_time(schedule, forward, [[2 * seconds for seconds in stage] for stage in forward])
        shown = " ".join(f"{work:.2f}" for work in works)
        print(f"| {name} | {shown} | {1000 * seconds:.0f} | {1000 * replayed:.0f} | {seconds / replayed:.3f} |")


if __name__ == "__main__":
    main()

"""Two processes that train a few steps over gloo while one of them is made late; what their clocks saw, as JSON.

Run by ``test_planted_delays``. Every scenario runs ``STEPS`` steps; in the odd ones the late rank sleeps for
``DELAY_S`` in its own work, so that each has its own baseline in the even ones, whatever else the machine does.
"""

import json
import sys
import time
from contextlib import suppress
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from titan_wlb.clocks import CpuClock
from titan_wlb.compat.fsdp_waits import install_fsdp_waits, remove_fsdp_waits
from titan_wlb.compat.pipeline_waits import install_pipeline_waits, remove_pipeline_waits
from titan_wlb.gradient_norm import clip_grad_norm_
from titan_wlb.metrics.gather import Groups, gather_records
from titan_wlb.records import StepTimes, pack

DELAY_S = 0.1
STEPS = 12
LATE_RANK = 1
WIDTH, ROWS, MICRO_BATCHES = 64, 128, 4


class Block(nn.Module):
    """A residual layer that may sleep in forward or in backward."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.sleep_in = ""

    def forward(self, x):
        if self.sleep_in == "forward":
            self.nap()
        y = x + torch.tanh(self.linear(x))
        if self.sleep_in == "backward" and y.requires_grad:
            y.register_hook(lambda _: self.nap())
        return y

    def nap(self):
        self.sleep_in = ""  # once a step
        start = time.perf_counter_ns()
        time.sleep(DELAY_S)
        Block.naps.append((start, time.perf_counter_ns()))

    naps: ClassVar[list[tuple[int, int]]] = []


class MarkedStage(PipelineStage):
    clock = None

    def forward_one_chunk(self, i, *args, **kwargs):
        self.clock.mark("F", self.stage_index, i)
        return super().forward_one_chunk(i, *args, **kwargs)

    def backward_one_chunk(self, i, *args, **kwargs):
        self.clock.mark("B", self.stage_index, i)
        return super().backward_one_chunk(i, *args, **kwargs)

    def perform_reduce_grad(self, scale):
        self.clock.mark("R", self.stage_index)
        return super().perform_reduce_grad(scale)


def main(rank: int, port: int, path: str) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    planted = {
        f"{name}, {place}": scenario(rank, place)
        for name, scenario, places in (
            ("FSDP", _fsdp, ("forward", "backward", "norm")),
            ("FSDP gathering ahead", _fsdp_ahead, ("head",)),
            ("HSDP", _hsdp, ("backward",)),
            ("1F1B", _pp_1f1b, ("forward", "backward", "norm")),
            ("Interleaved1F1B", _pp_interleaved, ("forward",)),
        )
        for place in places
    }
    with open(f"{path}.{rank}", "w") as file:
        json.dump({"planted": planted, "transfer": _transfer(rank), "norms": _norms(rank)}, file)
    dist.barrier()
    with suppress(Exception):
        dist.destroy_process_group()


def _transfer(rank):
    """Two collectives, each with another late rank: transfer is 1 + 2 ms, not min(11, 12)."""
    times = StepTimes(5, (), {"cp": (1.0, 10.0) if rank else (10.0, 2.0), "fsdp": (4.0,) * (rank + 1)})
    records = gather_records(times, Groups(cp=dist.group.WORLD, fsdp=dist.group.WORLD), metrics_rank=1)
    return [(r.rank, r.times.step, r.cp_transfer_ms, r.fsdp_transfer_ms) for r in records]


def _norms(rank):
    """Gradient norms of a sharded model over two ranks: ours, torch's; and how far the clipped gradients differ."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(Block(), Block(), nn.Linear(WIDTH, 3))
        fully_shard(model, mesh=mesh)
        _sum_reductions(model)
        torch.manual_seed(rank)
        model(torch.randn(1, ROWS, WIDTH)).square().sum().backward()
        models.append(model)
    ours = clip_grad_norm_(models[0].parameters(), 1.0, CpuClock())
    theirs = torch.nn.utils.clip_grad_norm_(models[1].parameters(), 1.0).full_tensor()
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    difference = max((a.grad.to_local() - b.grad.to_local()).abs().max().item() for a, b in pairs)
    return ours.item(), theirs.item(), difference


def _steps(rank, clock, blocks, place, step, groups=None):
    """Runs ``step`` under the clock; what each step measured, and where the nap lay in the timeline."""
    dist.barrier()
    seen = []
    for number in range(1, STEPS + 1):
        Block.naps.clear()
        if rank == LATE_RANK and number % 2:
            blocks[0].sleep_in = place
        clock.begin(number)
        step()
        clock.end()
        times = clock.read()
        (record,) = (r for r in _gather_everywhere(times, groups or Groups()) if r.rank == rank)
        seen.append(
            {
                "record": pack(record),
                "late": bool(number % 2),
                "wall": (clock.intervals()[-1][1] - clock.intervals()[0][0]) / 1e6,
                "nap_in_compute": _overlap(Block.naps, clock.intervals(), "compute"),
                "nap": sum(stop - start for start, stop in Block.naps),
            }
        )
    return seen


def _gather_everywhere(times, groups):
    """``gather_records`` to either rank in turn, so that each process can report its own."""
    records = [gather_records(times, groups, metrics_rank=rank) for rank in range(2)]
    return records[dist.get_rank()]


def _overlap(naps, intervals, category):
    return sum(
        max(min(stop, until) - max(start, begin), 0)
        for start, stop in naps
        for begin, until, name in intervals
        if name == category
    )


def _fsdp(rank, place, mesh=None, gathers_ahead=False):
    mesh = mesh or init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(4)))
    blocks = list(model)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _sum_reductions(model)
    clock = CpuClock()
    install_fsdp_waits([model], clock)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(1, ROWS, WIDTH)

    def step():
        with clock.wait("data"):
            time.sleep(0.001)
        if blocks[0].sleep_in == "head":
            blocks[0].nap()
        for micro_batch in range(2):
            clock.mark("F", 0, micro_batch)
            if gathers_ahead:
                for block in blocks:
                    block.unshard(async_op=True)
            loss = model(x).square().mean()
            clock.mark("B", 0, micro_batch)
            loss.backward()
        if blocks[0].sleep_in == "norm":
            clock.mark("R", 0)
            blocks[0].nap()
        clip_grad_norm_(model.parameters(), 1.0, clock)
        optimizer.step()
        optimizer.zero_grad()

    groups = {name: mesh.get_group(name) for name in mesh.mesh_dim_names}
    seen = _steps(rank, clock, blocks, place, step, Groups(**groups))
    remove_fsdp_waits()
    return seen


def _fsdp_ahead(rank, place):
    """All gathers of a forward are issued before it, asynchronously, as the pipeline's UNSHARD actions do."""
    return _fsdp(rank, place, gathers_ahead=True)


def _hsdp(rank, place):
    """Two replicas of one shard: the only exposed reduction is the all-reduce over the replicas."""
    return _fsdp(rank, place, init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp_replicate", "fsdp")))


def _pp_1f1b(rank, place):
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("pp",))
    torch.manual_seed(0)
    blocks = [Block(), Block()]
    parts = [nn.Sequential(*blocks)]
    return _pipeline(rank, place, mesh, blocks, parts, Schedule1F1B)


def _pp_interleaved(rank, place):
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("pp",))
    torch.manual_seed(0)
    blocks = [Block(), Block()]
    return _pipeline(rank, place, mesh, blocks, [nn.Sequential(block) for block in blocks], ScheduleInterleaved1F1B)


def _pipeline(rank, place, mesh, blocks, parts, schedule_class):
    clock = CpuClock()
    install_pipeline_waits(clock)
    example = torch.randn(1, ROWS, WIDTH, requires_grad=True)
    stages = [
        MarkedStage(
            part,
            rank + 2 * i,
            2 * len(parts),
            torch.device("cpu"),
            input_args=example if rank + i else example.detach(),
            output_args=example,
            group=mesh.get_group(),
        )
        for i, part in enumerate(parts)
    ]
    for stage in stages:
        stage.clock = clock
    loss_fn = lambda output, target: (output - target).square().mean()  # noqa: E731
    schedule = schedule_class(
        stages if schedule_class is ScheduleInterleaved1F1B else stages[0], MICRO_BATCHES, loss_fn
    )
    parameters = [parameter for part in parts for parameter in part.parameters()]
    x = torch.randn(MICRO_BATCHES, ROWS, WIDTH)

    def step():
        if rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=torch.zeros_like(x), losses=[])
        if blocks[0].sleep_in == "norm":
            blocks[0].nap()
        clip_grad_norm_(parameters, 1.0, clock, mesh)
        for parameter in parameters:
            parameter.grad = None

    seen = _steps(rank, clock, blocks, place, step)
    remove_pipeline_waits()
    return seen


def _sum_reductions(model):
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)


if __name__ == "__main__":
    mp.spawn(main, args=(int(sys.argv[1]), sys.argv[2]), nprocs=2)

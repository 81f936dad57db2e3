"""How much of the K/V exchange hides behind attention: one layer, forward and backward, on CPU ranks over gloo.

    python benchmarks/exchange.py --cp 2 --link-gbit 0 4            real kernel; gloo as it is, and a link of 4 Gbit/s
    python benchmarks/exchange.py --cp 8 --link-gbit 8 --gflops 20  the kernel, too, is a sleep: ranks than need no core

A *link* is a sleep: what a rank sends or receives, whichever is more, over its bandwidth, one transfer after the other,
and none before its collective is done. ``--gflops`` puts sleeps in place of the kernel. Ways, over the same chunks:

    all-gather      every row to every rank, as per_document does it
    needed          needed rows, waited for at once
    + local         needed rows, local segments while they travel
    + 2 slices      and in two slices of K/V heads
"""

import argparse
import os
import tempfile
import time
from contextlib import contextmanager, nullcontext
from statistics import mean, median
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from titan_wlb.context_parallel import attend
from titan_wlb.context_parallel.exchange import Exchange
from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.context_parallel.op import attention
from titan_wlb.planning.length_families import LENGTH_FAMILIES, lengths_of_family
from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.hybrid import hybrid
from titan_wlb.planning.sharding.needed import local_first, rows_sent
from titan_wlb.planning.tiles import Tile

WAYS = ("all-gather", "needed", "+ local", "+ 2 slices")


class Link(Exchange):
    """An exchange over a link of so many bytes per second; 0 is gloo as it is."""

    def __init__(self, mesh, clock, bytes_per_second: float, at_once: bool) -> None:
        super().__init__(mesh, clock)
        self.bytes_per_second, self.at_once, self.free = bytes_per_second, at_once, 0.0

    def reserve(self, size: int) -> float:
        """When a transfer that is started now is over."""
        if not self.bytes_per_second:
            return 0.0
        self.free = max(self.free, time.perf_counter()) + size / self.bytes_per_second
        return self.free

    def all_to_all(self, rows, counts, arriving, arriving_counts):
        under_way = super().all_to_all(rows, counts, arriving, arriving_counts)
        under_way._work = Travelling(under_way._work, self.reserve(max(rows.nbytes, arriving.nbytes)))
        if self.at_once:
            under_way.wait()
            under_way._waiting = nullcontext()
        return under_way

    def _redistribute(self, rows, source, target):
        done = self.reserve(rows.nbytes * (self.mesh.size() - 1) // (1 if source.is_shard() else self.mesh.size()))
        with self._wait():
            result = super()._redistribute(rows, source, target)
            sleep_until(done)
        return result


class Travelling:
    def __init__(self, work, done: float) -> None:
        self.work, self.done = work, done

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None
            sleep_until(self.done)


class Clock:
    """Seconds waited since the last ``take``; nested waits count once."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    @contextmanager
    def wait(self, category: str, *, collective: bool = False):
        begun, self.depth = time.perf_counter(), self.depth + 1
        yield
        self.depth -= 1
        if not self.depth:
            self.seconds += time.perf_counter() - begun

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def sleep_until(moment: float) -> None:
    time.sleep(max(moment - time.perf_counter(), 0.0))


def slept_kernel(flops_per_second: float):
    """(forward, backward) that take as long as their exact causal work and return zeros."""

    def cells(cu_q, cu_k, heads) -> float:
        q, k = cu_q.diff().double(), cu_k.diff().double()
        return heads * (q * (k - (q - 1) / 2)).sum().item()

    def forward(q, k, v, cu_q, cu_k, max_q, max_k, scale, *, backend):
        time.sleep(4 * q.shape[2] * cells(cu_q, cu_k, q.shape[1]) / flops_per_second)
        return torch.zeros_like(q), q.new_zeros(q.shape[1], q.shape[0])

    def backward(dout, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, scale, *, backend):
        time.sleep(10 * q.shape[2] * cells(cu_q, cu_k, q.shape[1]) / flops_per_second)
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

    return forward, backward


def sequences(family: str, tokens: int, number: int, seed: int) -> list[tuple[int, ...]]:
    """Sequences of so many tokens, filled in arrival order, the document at the end cut."""
    found: list[tuple[int, ...]] = []
    room, held = tokens, []
    for length in lengths_of_family(family, num_tokens=tokens * number, seed=seed, context_window=tokens).tolist():
        while length and len(found) < number:
            held.append(min(length, room))
            length, room = length - held[-1], room - held[-1]
            if not room:
                found.append(tuple(held))
                room, held = tokens, []
    return found


def measure(rank: int, options: argparse.Namespace, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=options.cp)
    mesh, clock = init_device_mesh("cpu", (options.cp,), mesh_dim_names=("cp",)), Clock()
    if options.gflops:
        attend.document_attention, attend.document_attention_backward = slept_kernel(options.gflops * 1e9)
    for family in LENGTH_FAMILIES:
        for gbit in options.link_gbit:
            # [sequence][way] -> (seconds of the slowest rank, seconds that a rank waits, on the mean)
            times = [
                of_sequence(lengths, gbit, mesh, clock, options)
                for lengths in sequences(family, options.tokens, options.sequences, options.seed)
            ]
            if rank == 0:
                report(family, gbit, times)
    dist.barrier()
    dist.destroy_process_group()


def of_sequence(lengths, gbit, mesh, clock, options):
    rank, cp = mesh.get_local_rank(), mesh.size()
    plan = hybrid(lengths, cp, Tile(options.tile, options.tile))
    plan = ShardPlan("hybrid", plan.lengths, tuple(map(local_first, plan.ranks)))
    everything = ShardPlan("per_document", plan.lengths, plan.ranks)
    padded = plan.padded_tokens(1)
    generator = torch.Generator().manual_seed(rank)
    q, k, v, dout = (
        torch.randn(1, padded, heads, options.head_dim, generator=generator, requires_grad=True)
        for heads in (options.heads, options.kv_heads, options.kv_heads, options.heads)
    )
    runs = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            metadata = build_metadata(everything if way == "all-gather" else plan, rank, padded).bind(mesh, "cpu")
            metadata.exchange = Link(mesh, clock, gbit * 1e9 / 8, at_once=way == "needed")
            with patch.multiple(attend, _MOST_SLICES=2 if way == "+ 2 slices" else 1, _LEAST_BYTES=1):
                dist.barrier()
                clock.take()
                begun = time.perf_counter()
                attention(q, k, v, metadata.argument, 0.1).backward(dout)
                spent = time.perf_counter() - begun
            everybody = [None] * cp
            dist.all_gather_object(everybody, (spent, clock.take()))
            runs[way].append((max(t for t, _ in everybody), mean(w for _, w in everybody)))
    sent = rows_sent(plan).sum() / max((cp - 1) * sum(lengths), 1)
    return sent, {way: tuple(median(column) for column in zip(*run, strict=True)) for way, run in runs.items()}


def report(family, gbit, times) -> None:
    link = f"{gbit:g} Gbit/s" if gbit else "gloo"
    needed = mean(sent for sent, _ in times)
    for way in WAYS:
        total, waited = (1e3 * mean(of[way][i] for _, of in times) for i in (0, 1))
        print(
            f"{family:13s} {link:12s} needed {needed:.2f}  {way:12s} {total:9.1f} ms {waited:9.1f} ms waited",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cp", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192, help="of a sequence")
    parser.add_argument("--tile", type=int, default=8, help="rows and keys; 128 for 131,072 tokens is 8 for 8,192")
    parser.add_argument("--sequences", type=int, default=3, help="of each family")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--link-gbit", type=float, nargs="+", default=[0.0], help="0 is gloo as it is")
    parser.add_argument("--gflops", type=float, default=0.0, help="of a kernel that only sleeps; 0 is the real one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (options, os.path.join(folder, "store")), options.cp)


if __name__ == "__main__":
    main()

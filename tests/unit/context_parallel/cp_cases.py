"""What the context-parallel tests share: cases, the dense reference, and CP ranks as threads of one process."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from titan_wlb.context_parallel.kernels.check import dense_attention
from titan_wlb.context_parallel.metadata import AttentionMetadata, build_metadata
from titan_wlb.context_parallel.op import attention
from titan_wlb.planning.plan import ShardPlan

SCALE = 0.3
HEAD_DIM = 8

LENGTHS = {
    "mixed": (37, 5, 22, 3, 13),
    "shorter than 2 x CP": (3, 7, 1, 2, 5, 15, 4),
    "single tokens": (1, 1, 1, 1, 1),
    "fills the window": (96,),
    "one token, most ranks empty": (1,),
}
HEADS = {"multi-head": (4, 4), "grouped": (6, 2), "multi-query": (4, 1)}


@dataclass
class Case:
    """Global tensors [tokens, heads, D] of a micro-batch, and what comes of them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor

    def results(self, lengths: tuple[int, ...]) -> list[torch.Tensor]:
        """[out, dq, dk, dv] by dense float64 attention."""
        q, k, v = (x.detach().double().requires_grad_() for x in (self.q, self.k, self.v))
        out, _ = dense_attention(q, k, v, lengths, lengths, SCALE)
        out.backward(self.dout.double())
        return [out.detach(), q.grad, k.grad, v.grad]


def random_case(tokens: int, heads: tuple[int, int], dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    return Case(
        *(
            torch.randn(tokens, n, HEAD_DIM, generator=generator, dtype=torch.float64).to(dtype)
            for n in (num_heads, num_kv_heads, num_kv_heads, num_heads)
        )
    )


def rows_of(shard: ShardPlan, cp_rank: int) -> torch.Tensor:
    """Rows of the packed micro-batch that a rank holds, in the order in which it holds them."""
    offsets = shard.segment_offsets
    rows = [offsets[c.segment] + row for c in shard.ranks[cp_rank] for row in range(c.start, c.stop)]
    return torch.tensor(rows, dtype=torch.int64)


def run_rank(
    case: Case, shard: ShardPlan, metadata: AttentionMetadata, cp_rank: int, attend: Callable = attention
) -> list[torch.Tensor]:
    """[out, dq, dk, dv] of one rank, padding included; what it is given as padding is NaN."""
    rows = rows_of(shard, cp_rank)

    def local(x: torch.Tensor) -> torch.Tensor:
        padded = x.new_full((1, metadata.padded_tokens, *x.shape[1:]), float("nan"))
        padded[0, : len(rows)] = x[rows]
        return padded

    q, k, v = (local(x).requires_grad_() for x in (case.q, case.k, case.v))
    out = attend(q, k, v, metadata.argument, SCALE)
    out.backward(local(case.dout))
    return [x.detach()[0] for x in (out, q.grad, k.grad, v.grad)]


def emulate(case: Case, shard: ShardPlan, padded_tokens: int) -> list[torch.Tensor]:
    """[out, dq, dk, dv] of the whole micro-batch, from one thread per CP rank. Padding must come out as zero."""
    cp = len(shard.ranks)
    meeting = Meeting(cp)

    def rank(cp_rank: int) -> list[torch.Tensor]:
        metadata = build_metadata(shard, cp_rank, padded_tokens).bind(None, "cpu") if cp == 1 else None
        if metadata is None:
            metadata = build_metadata(shard, cp_rank, padded_tokens)
            metadata.exchange = ThreadExchange(meeting, cp_rank)
        return run_rank(case, shard, metadata, cp_rank)

    return assemble(case, shard, run_threads(rank, cp, meeting))


def assemble(case: Case, shard: ShardPlan, locals_: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Ranks' padded results -> rows of the packed micro-batch."""
    whole = [torch.full_like(x, float("nan")) for x in (case.q, case.q, case.k, case.v)]
    for cp_rank, results in enumerate(locals_):
        rows = rows_of(shard, cp_rank)
        for target, local in zip(whole, results, strict=True):
            target[rows] = local[: len(rows)]
            assert not local[len(rows) :].any(), "padding must be zero"
    return whole


class Meeting:
    """Where threads hand tensors to each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size

    def swap(self, cp_rank: int, value: torch.Tensor) -> list[torch.Tensor]:
        self.slots[cp_rank] = value
        self.barrier.wait(timeout=60)
        values = list(self.slots)
        self.barrier.wait(timeout=60)
        return values


class ThreadExchange:
    """The exchange of a rank that is a thread."""

    def __init__(self, meeting: Meeting, cp_rank: int) -> None:
        self.meeting, self.cp_rank = meeting, cp_rank

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.meeting.swap(self.cp_rank, rows))

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        return sum(x.chunk(len(self.meeting.slots))[self.cp_rank] for x in self.meeting.swap(self.cp_rank, rows))


class LoopbackExchange:
    """The exchange of one of two ranks whose peer holds the same rows; counts what passes."""

    def __init__(self) -> None:
        self.gathers = self.scatters = 0

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        self.gathers += 1
        return torch.cat((rows, rows))

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        self.scatters += 1
        first, second = rows.chunk(2)
        return first + second


def run_threads(rank: Callable[[int], Any], size: int, meeting: Meeting) -> list[Any]:
    """``rank(0)`` ... ``rank(size - 1)``, all at once; the first exception ends all."""
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(cp_rank: int) -> None:
        try:
            results[cp_rank] = rank(cp_rank)
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(cp_rank,)) for cp_rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()

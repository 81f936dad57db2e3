"""What the context-parallel tests share: cases, the dense reference, and CP ranks as threads of one process."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from titan_wlb.context_parallel.kernels.check import dense_attention
from titan_wlb.context_parallel.metadata import AttentionMetadata, build_metadata
from titan_wlb.context_parallel.op import attention
from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding import shard
from titan_wlb.planning.sharding.needed import local_first

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


def hybrid_like(lengths: tuple[int, ...], cp: int, seed: int = 0) -> ShardPlan:
    """A plan of ``hybrid``'s kind, in no way balanced: whole segments, and two-ended cuts of some over some ranks.

    Local chunks come first on most ranks; the last rank, from two on, holds its chunks in any order.
    """
    random = Random(f"{lengths} {cp} {seed}")
    ranks: list[list[Chunk]] = [[] for _ in range(cp)]
    for segment, length in enumerate(lengths):
        owners = random.sample(range(cp), random.choice((1, random.randint(1, cp))))
        start, stop = 0, length
        for owner in owners[:-1]:
            front, back = random.randint(0, stop - start), 0
            back = random.randint(0, stop - start - front)
            ranks[owner] += [Chunk(segment, start, start + front), Chunk(segment, stop - back, stop)]
            start, stop = start + front, stop - back
        ranks[owners[-1]].append(Chunk(segment, start, stop))
    held = [[chunk for chunk in rank if chunk.length] for rank in ranks]
    if cp > 1:
        random.shuffle(held[-1])
    return ShardPlan(
        "hybrid",
        lengths,
        tuple(local_first(rank) for rank in held[: max(cp - 1, 1)]) + tuple(map(tuple, held[max(cp - 1, 1) :])),
    )


def half_cut(lengths: tuple[int, ...]) -> ShardPlan:
    """Two ranks: the first segment cut in three, its ends on rank 1; the others whole, in turn."""
    cut, *whole = lengths
    ranks: list[list[Chunk]] = [[], []]
    for segment, length in enumerate(whole, start=1):
        ranks[segment % 2].append(Chunk(segment, 0, length))
    ranks[0].append(Chunk(0, cut // 4, cut - cut // 3))
    ranks[1] += [Chunk(0, 0, cut // 4), Chunk(0, cut - cut // 3, cut)]
    return ShardPlan("hybrid", lengths, tuple(map(tuple, ranks)))


def plan_of(strategy: str, lengths: tuple[int, ...], cp: int) -> ShardPlan:
    """The product's plan, or one of the hand-made kind for "hybrid"."""
    return hybrid_like(lengths, cp) if strategy == "hybrid" else shard(strategy, lengths, cp)


def rows_of(plan: ShardPlan, cp_rank: int) -> torch.Tensor:
    """Rows of the packed micro-batch that a rank holds, in the order in which it holds them."""
    offsets = plan.segment_offsets
    rows = [offsets[c.segment] + row for c in plan.ranks[cp_rank] for row in range(c.start, c.stop)]
    return torch.tensor(rows, dtype=torch.int64)


def run_rank(
    case: Case, plan: ShardPlan, metadata: AttentionMetadata, cp_rank: int, attend: Callable = attention
) -> list[torch.Tensor]:
    """[out, dq, dk, dv] of one rank, padding included; what it is given as padding is NaN."""
    return begin_rank(case, plan, metadata, cp_rank, attend)()


def begin_rank(
    case: Case, plan: ShardPlan, metadata: AttentionMetadata, cp_rank: int, attend: Callable = attention
) -> Callable[[], list[torch.Tensor]]:
    """The forward of one rank; what it returns runs the backward, with the results of ``run_rank``."""
    rows = rows_of(plan, cp_rank)

    def local(x: torch.Tensor) -> torch.Tensor:
        padded = x.new_full((1, metadata.padded_tokens, *x.shape[1:]), float("nan"))
        padded[0, : len(rows)] = x[rows]
        return padded

    q, k, v = (local(x).requires_grad_() for x in (case.q, case.k, case.v))
    out = attend(q, k, v, metadata.argument, SCALE)

    def finish() -> list[torch.Tensor]:
        out.backward(local(case.dout))
        return [x.detach()[0] for x in (out, q.grad, k.grad, v.grad)]

    return finish


def emulate(case: Case, plan: ShardPlan, padded_tokens: int) -> list[torch.Tensor]:
    """[out, dq, dk, dv] of the whole micro-batch, from one thread per CP rank. Padding must come out as zero."""
    cp = len(plan.ranks)
    meeting = Meeting(cp)

    def rank(cp_rank: int) -> list[torch.Tensor]:
        metadata = build_metadata(plan, cp_rank, padded_tokens).bind(None, "cpu") if cp == 1 else None
        if metadata is None:
            metadata = build_metadata(plan, cp_rank, padded_tokens)
            metadata.exchange = ThreadExchange(meeting, cp_rank)
        return run_rank(case, plan, metadata, cp_rank)

    return assemble(case, plan, run_threads(rank, cp, meeting))


def assemble(case: Case, plan: ShardPlan, locals_: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Ranks' padded results -> rows of the packed micro-batch."""
    whole = [torch.full_like(x, float("nan")) for x in (case.q, case.q, case.k, case.v)]
    for cp_rank, results in enumerate(locals_):
        rows = rows_of(plan, cp_rank)
        for target, local in zip(whole, results, strict=True):
            target[rows] = local[: len(rows)]
            assert not local[len(rows) :].any(), "padding must be zero"
    return whole


class Meeting:
    """Where threads hand tensors to each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size

    def swap(self, cp_rank: int, value: Any) -> list[Any]:
        self.slots[cp_rank] = value
        self.barrier.wait(timeout=60)
        values = list(self.slots)
        self.barrier.wait(timeout=60)
        return values


class Arriving:
    """Rows that are NaN until they are waited for, as those of a slow link."""

    def __init__(self, arriving: torch.Tensor, sent: list[torch.Tensor]) -> None:
        self.arriving, self.sent = arriving.fill_(float("nan")), sent

    def wait(self) -> torch.Tensor:
        return self.arriving.copy_(torch.cat(self.sent))


class ThreadExchange:
    """The exchange of a rank that is a thread."""

    def __init__(self, meeting: Meeting, cp_rank: int) -> None:
        self.meeting, self.cp_rank = meeting, cp_rank

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.meeting.swap(self.cp_rank, rows))

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        return sum(x.chunk(len(self.meeting.slots))[self.cp_rank] for x in self.meeting.swap(self.cp_rank, rows))

    def all_to_all(self, rows, counts, arriving, arriving_counts) -> Arriving:
        sent = [parts[self.cp_rank] for parts in self.meeting.swap(self.cp_rank, rows.split(counts))]
        assert tuple(len(part) for part in sent) == tuple(arriving_counts)
        return Arriving(arriving, sent)


class LoopbackExchange:
    """The exchange of one of two ranks whose peer holds the same rows; counts what passes."""

    def __init__(self) -> None:
        self.gathers = self.scatters = 0
        self.sent: list[tuple[int, ...]] = []

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        self.gathers += 1
        return torch.cat((rows, rows))

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        self.scatters += 1
        first, second = rows.chunk(2)
        return first + second

    def all_to_all(self, rows, counts, arriving, arriving_counts) -> Arriving:
        self.sent.append(tuple(counts))
        assert rows.is_contiguous() and arriving.is_contiguous()
        some = rows if len(rows) else rows.new_ones(1, *rows.shape[1:])
        return Arriving(arriving, [some[torch.arange(len(arriving)) % len(some)]])


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

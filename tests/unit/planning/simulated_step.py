"""A step of every rank of a job, simulated op by op, with delays where a test wants them: the records it would leave.

    CP rank 0    F: work 5 | K/V exchange ~~~~~~ | work 5         ~ waits, in the records' cp
    CP rank 1    F: work 5 + plant 6 ---- | K/V exchange | work 5

Written apart from the replay: ranks run torch's posts and waits (``program``), meet in every layer's exchange, in
FSDP's gathers and reductions, and in the norm. TP ranks do not meet here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from titan_wlb.planning.timeline.program import Post, Wait, program
from titan_wlb.planning.timeline.schedule import Action, Schedule, build_schedule
from titan_wlb.records import COMPUTE, CP, DATA, FSDP, PIPELINE, TIMES, Layout, Section, StepRecord, StepTimes

LAYERS = 2  # of a stage


@dataclass(frozen=True)
class Job:
    """What the ranks do.

    Args:
        schedule: name of the pipeline's; unused with PP 1.
        micro_batches: of a DP rank.
        work: (dp_rank, micro_batch, cp_rank) -> ms of a stage's forward; a backward takes twice that.
        gathers_again: FSDP frees parameters behind every micro-batch's forward and backward.
        exchange_ms: of a K/V exchange, a gather or a reduction, when nobody is late.
    """

    layout: Layout
    schedule: str = "1F1B"
    micro_batches: int = 4
    virtual_stages: int = 1
    work: Callable[[int, int, int], float] = lambda dp_rank, micro_batch, cp_rank: 10.0
    gathers_again: bool = False
    exchange_ms: float = 0.5

    @property
    def pipeline(self) -> Schedule | None:
        """What its pipelines run."""
        if self.layout.pp == 1:
            return None
        return build_schedule(self.schedule, self.layout.pp, self.micro_batches, self.virtual_stages)


# (rank, place): ms; a place is "head", "data", "norm", "tail" (of the step before, too), "R" or an Action
Plants = Mapping[tuple[int, str | Action], float]


@dataclass
class _Rank:
    ops: Iterator[tuple]
    now: float
    started: float
    sections: list[tuple[str, int, int, float, list[float]]] = field(default_factory=list)
    op: tuple | None = None
    done: bool = False

    def spend(self, column: int, until: float) -> None:
        self.sections[-1][4][column] += until - self.now
        self.now = until


def simulate(job: Job, plants: Plants | None = None) -> list[StepRecord]:
    """The records of a step in which all ranks began as the optimizers of the step before let them."""
    plants = plants or {}
    layout = job.layout
    ranks = [
        _Rank(_ops(job, rank, plants), now=(late := plants.get((rank, "tail"), 0.0)), started=late)
        for rank in range(layout.size)
    ]
    arrived: dict[tuple, dict[int, float]] = {}  # at meetings and posts
    while not all(rank.done for rank in ranks):
        moved = False
        for number, rank in enumerate(ranks):
            while not rank.done and _advance(number, rank, arrived):
                moved = True
        assert moved, "ranks wait for one another"
    return [
        StepRecord(
            number,
            StepTimes(
                7,
                tuple(
                    Section(kind, stage, micro_batch, start - rank.started, tuple(times))
                    for kind, stage, micro_batch, start, times in rank.sections
                ),
            ),
        )
        for number, rank in enumerate(ranks)
    ]


def _advance(number: int, rank: _Rank, arrived: dict[tuple, dict[int, float]]) -> bool:
    """Runs an op of a rank, if it can."""
    if rank.op is None:
        rank.op = next(rank.ops, None)
        if rank.op is None:
            rank.done = True
            return True
    name, *values = rank.op
    if name == "mark":
        rank.sections.append((*values, rank.now, [0.0] * len(TIMES)))
    elif name == "work":
        column, ms = values
        rank.spend(column, rank.now + ms)
    elif name == "post":
        for transfer in values[0]:
            arrived.setdefault(transfer, {})[number] = rank.now
    elif name == "wait":
        if any(len(arrived.get(transfer, ())) < 2 for transfer in values[0]):
            return False
        ready = max((max(arrived[transfer].values()) for transfer in values[0]), default=rank.now)
        rank.spend(PIPELINE, max(rank.now, ready))
    else:
        column, key, size, transfer_ms = values
        there = arrived.setdefault(key, {})
        there.setdefault(number, rank.now)
        if len(there) < size:
            return False
        rank.spend(column, max(there.values()) + transfer_ms)
    rank.op = None
    return True


def _ops(job: Job, rank: int, plants: Plants) -> Iterator[tuple]:
    layout, schedule = job.layout, job.pipeline
    pp_rank, dp_rank, cp_rank, tp_rank = layout.coordinates(rank)
    sharded = layout.dp * layout.cp

    def planted(place: str | Action) -> float:
        return plants.get((rank, place), 0.0)

    def work(ms: float) -> tuple:
        return "work", COMPUTE, ms

    def meet(column: int, *key: object) -> Iterator[tuple]:
        size = {CP: layout.cp, FSDP: sharded, PIPELINE: layout.pp}[column]
        group = {CP: (pp_rank, dp_rank), FSDP: (pp_rank,), PIPELINE: (dp_rank, cp_rank)}[column]
        if size > 1:
            yield "meet", column, (column, tp_rank, group, *key), size, job.exchange_ms

    def action(done: Action) -> Iterator[tuple]:
        kind, stage, micro_batch = done
        yield "mark", kind, stage, micro_batch
        ms = job.work(dp_rank, micro_batch, cp_rank) * (1 if kind == "F" else 2) / LAYERS / 2
        is_last = micro_batch == job.micro_batches - 1
        for layer in range(LAYERS):
            if (kind == "F" and micro_batch == 0) or job.gathers_again:
                yield from meet(FSDP, done, layer, "gather")
            yield work(ms + (planted(done) if layer == 0 else 0.0))
            yield from meet(CP, done, layer)
            yield work(ms)
            if kind == "B" and is_last and layout.pp == 1:
                yield from meet(FSDP, done, layer, "reduce")

    yield "mark", "head", -1, -1
    yield work(1.0 + planted("head"))
    yield "work", DATA, 0.25 + planted("data")
    if schedule is None:
        for micro_batch in range(job.micro_batches):
            yield from action(Action("F", 0, micro_batch))
            yield from action(Action("B", 0, micro_batch))
    else:
        posts: list[list[tuple]] = []
        stages = range(pp_rank, schedule.num_stages, layout.pp)
        for step in program(schedule)[pp_rank]:
            if isinstance(step, Wait):
                yield "wait", posts[step.post]
            elif isinstance(step, Post):
                posts.append([(output, dp_rank, cp_rank, tp_rank) for output in step.outputs])
                yield "post", posts[-1]
            else:
                yield from action(step)
        for stage in stages:
            yield "mark", "R", stage, 0
            yield work(0.5 + planted("R") / len(stages))
            yield from meet(FSDP, "R", stage)
    yield "mark", "norm", -1, -1
    yield work(0.5 + planted("norm"))
    yield from meet(FSDP, "norm")
    yield from meet(PIPELINE, "norm")
    yield "mark", "tail", -1, -1
    yield work(2.0 + planted("tail"))

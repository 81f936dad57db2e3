"""Packers side by side on one list of lengths: the same packers, intake, dealing and measures as in training.

job = Job(lengths=(5, 4, 2, 9, ...), num_micro_batches=4, context_window=8, ...)
for step in run(job, config):
    step.plan, step.drawn, step.seconds
score(job, steps)
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.config import PlannerConfig
from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import InOrder
from titan_wlb.planning.packing import Waiting, build_packer
from titan_wlb.planning.packing.dealing import deal
from titan_wlb.planning.packing.measures import PackingMeasures
from titan_wlb.planning.packing.packer import pieces
from titan_wlb.planning.packing.shape import Shape
from titan_wlb.planning.packing.solver import Solver
from titan_wlb.planning.plan import Document, MicroBatch, Segment, StepPlan
from titan_wlb.planning.planner import Pipeline
from titan_wlb.planning.timeline import step_time_over_balanced
from titan_wlb.planning.timeline.schedule import build_schedule
from titan_wlb.planning.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What is packed, whatever packs it.

    Args:
        lengths: tokens of each document in arrival order; a document's id is its place.
        context_window: W, tokens.
        num_micro_batches: N, of a global batch.
        global_batches: steps that are planned, fewer where the documents end before.
        warmup: of them, the first ones that are not scored and that tuning may look at.
        workload: what a document costs.
        max_tokens: default hard cap of a micro-batch.
        dp: data-parallel ranks that micro-batches are dealt to.
        pp: pipeline ranks.
        schedule: of the pipelines, for step times and for the shape of micro-batches; "": none.

    Raises:
        ValueError: a value is not valid; one line.
    """

    lengths: npt.NDArray[np.int64]
    context_window: int
    num_micro_batches: int
    global_batches: int
    warmup: int
    workload: Workload
    max_tokens: int
    dp: int = 1
    pp: int = 1
    schedule: str = ""

    def __post_init__(self) -> None:
        if self.dp < 1 or self.num_micro_batches % self.dp:
            raise ValueError(f"--micro-batches {self.num_micro_batches} must be a multiple of --dp {self.dp}")
        if not 0 <= self.warmup < self.global_batches:
            raise ValueError(f"--warmup {self.warmup} must be below --global-batches {self.global_batches}, and >= 0")
        self.pipeline()

    def pipeline(self) -> Pipeline:
        """What runs the micro-batches."""
        if not self.schedule:
            return Pipeline()
        runs = build_schedule(self.schedule, self.pp, self.num_micro_batches // self.dp)
        return Pipeline(self.schedule, self.pp, runs.virtual_stages)

    def lengths_of(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """The documents that make up the global batches [first, stop), in arrival order."""
        ends = np.cumsum(self.lengths)
        step = self.num_micro_batches * self.context_window
        low, high = (int(np.searchsorted(ends, number * step)) + (number > 0) for number in (first, stop))
        return self.lengths[low:high]


@dataclass(frozen=True, slots=True)
class Step:
    """One planned step.

    Args:
        plan: without shards, digest and state.
        drawn: documents that the intake has drawn up to and including this step.
        seconds: CPU time of the packer.
        gap: of the solver; 0 for any other.
    """

    plan: StepPlan
    drawn: int
    seconds: float
    gap: float

    def to_json(self, spec: str) -> dict[str, Any]:
        """A line that lets anybody score the step again."""
        return {
            "packer": spec,
            "step": self.plan.step,
            "drawn": self.drawn,
            "micro_batches": [list(map(_entry, micro_batch.segments)) for micro_batch in self.plan.micro_batches],
            "dealt": list(self.plan.dp_ranks),
        }


def run(job: Job, config: PlannerConfig) -> Iterator[Step]:
    """Every step of a job; the last one where everything is trained."""
    shape = job.pipeline().shape(config, job.dp)
    packer = build_packer(config, shape.targets if shape is not None else ())
    intake = Intake(InOrder(KnownLengths(job.lengths)))
    waiting = packer.empty()
    for step in range(1, job.global_batches + 1):
        intake.step = step
        if intake.exhausted and not list(waiting):
            return
        before = intake.num_drawn
        gc.freeze()  # all steps are kept for scoring; a training run keeps none, and its collector visits none
        start = time.process_time()
        packed, waiting = packer.pack(waiting, intake)
        seconds = time.process_time() - start
        gc.unfreeze()
        plan = _plan(job, config, shape, packed, waiting, intake, before)
        yield Step(plan, intake.num_drawn, seconds, packer.gap if isinstance(packer, Solver) else 0.0)


def score(job: Job, spec: str, config: PlannerConfig, steps: Sequence[Step]) -> dict[str, Any]:
    """The measures of a run, of the steps behind the warm-up; documents and the cap are counted over all steps.

    Raises:
        ValueError: the documents end before a step is scored.
    """
    scored = steps[job.warmup :]
    if not scored:
        raise ValueError(
            f"the lengths make up {len(steps)} global batches of {job.num_micro_batches} x {job.context_window} "
            f"tokens, of which --warmup {job.warmup} leaves none to score"
        )
    measures = PackingMeasures(job.context_window // 2, job.pp if job.schedule == "1F1B" else 0)
    for step in scored:
        measures.add(step.plan)
    last, milliseconds = steps[-1], [1000 * step.seconds for step in scored]
    whole = _work_per_token(job.lengths_of(job.warmup, job.global_batches), job)
    values = {
        "name": spec,
        "imbalance_degree_mean": measures.imbalance_degree_mean,
        "imbalance_degree_p95": measures.imbalance_degree_p95,
        "imbalance_time_weighted": measures.imbalance_time_weighted,
        "time_over_whole_documents": measures.time_per_token / whole if whole else 1.0,
        "delay_iterations_mean": measures.delay_iterations_mean,
        "delay_trained_mean": measures.delay_trained_mean,
        "oldest_waiting": measures.oldest_waiting,
        "plan_ms_mean": mean(milliseconds),
        "plan_ms_median": median(milliseconds),
        "plan_ms_max": max(milliseconds),
        "documents_in": last.drawn,
        "documents_trained": last.drawn - last.plan.waiting_documents,
        "documents_waiting": last.plan.waiting_documents,
        "max_tokens_over_window": max(_largest(step.plan) for step in steps) / job.context_window,
        "tokens_per_step": measures.tokens_per_step,
        "tokens_per_step_cv": measures.tokens_per_step_cv,
        "tokens_per_step_max": measures.tokens_per_step_max,
        "in_flight_tokens_max": measures.in_flight_tokens_max,
        "long_share_autocorrelation": measures.long_share_autocorrelation,
        "steps_scored": measures.num_steps,
        "config": config.to_json(),
    }
    if config.packing == "solver":
        values["solver_gap_mean"] = mean(step.gap for step in scored)
    if job.schedule:
        values["step_time_over_balanced_mean"] = mean(_step_time(step.plan, job) for step in scored)
    return values


def _plan(
    job: Job,
    config: PlannerConfig,
    shape: Shape | None,
    packed: Sequence[tuple[Segment, ...]],
    waiting: Waiting,
    intake: Intake,
    drawn_before: int,
) -> StepPlan:
    micro_batches = tuple(
        MicroBatch(segments, config.workload.costs(segment.length for segment in segments)) for segments in packed
    )
    micro_batches, dp_ranks = deal(config.packing, micro_batches, job.dp, shape, config.max_rank_tokens)
    trained, left = [segment for segments in packed for segment in segments], list(waiting)
    return StepPlan(
        step=intake.step,
        epoch=0,
        micro_batches=micro_batches,
        dp_ranks=dp_ranks,
        shards=(),
        num_labels=sum(segment.num_labels for segment in trained),
        arrived=intake.num_drawn - drawn_before,
        waiting_documents=len({segment.document for segment in left}),
        waiting_tokens=sum(segment.length for segment in left),
        delay_trained=sum(segment.length * (intake.step - segment.document.arrival) for segment in trained),
        oldest_waiting=max(intake.step - segment.document.arrival for segment in trained + left),
        digest="",
        state=b"",
    )


def _step_time(plan: StepPlan, job: Job) -> float:
    """Over that of the same work in equal micro-batches."""
    costs = [micro_batch.cost for micro_batch in plan.micro_batches]
    dealt = [[costs[place] for place in plan.of_dp_rank(rank)] for rank in range(job.dp)]
    return step_time_over_balanced(dealt, job.schedule, job.pp)


def _entry(segment: Segment) -> int | list[int]:
    document = segment.document
    return document.id if segment.length == document.length else [document.id, segment.start, segment.stop]


def _largest(plan: StepPlan) -> int:
    return max(micro_batch.tokens for micro_batch in plan.micro_batches)


def _work_per_token(lengths: npt.NDArray[np.int64], job: Job) -> float:
    """Of documents that nothing cuts but the context window."""
    documents = (Document(id, length) for id, length in enumerate(lengths.tolist()))
    work = job.workload.costs(segment.length for segment in pieces(documents, job.context_window))
    return work / max(int(lengths.sum()), 1)

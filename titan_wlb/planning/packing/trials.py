"""Trials of a packer with one knob after another on a sample of the run's own lengths, and which of them is best.

    knob (outlier thresholds)    imbalance   delay        limit 0.5
    (65536,)                     1.029       0.41
    (32768, 65536)               1.004       0.49         picked: the best balance within the limit
    (16384, 32768, 65536)        1.001       0.76         on the frontier, but beyond the limit

Balance is ``imbalance_time_weighted``, what a run pays; delay is ``delay_iterations_mean``. Both come from running the
packer over the sample, drawn again and again in new orders, as epochs are. Nothing here looks at a clock or depends on
the order of a hash, and the numbers that decide are sums and quotients of integers: every rank picks the same.

Source: the paper tunes its thresholds on a sample (section 4); how is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import EpochOrder
from titan_wlb.planning.packing.measures import imbalance_degree, imbalance_time_weighted
from titan_wlb.planning.packing.packer import Packer
from titan_wlb.planning.workload import Workload

WARM_UP_STEPS = 20  # until queues are as full as they get
MARGIN = 0.95  # of the limit: a run's documents are others than the sample's
MAX_LONG_TRIALS, LONG_ROUNDS = 12, 4
STEPS_SCORED = (40, 200)  # at least, at most

Knob = TypeVar("Knob")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What packers are tried on.

    Args:
        lengths: of documents as the run has them, tokens; their order does not matter.
        num_micro_batches: N.
        context_window: W, tokens.
        workload: what a document costs.
        documents_per_trial: how many a packer is to pack in a trial, about.

    Raises:
        ValueError: there is no document.
    """

    lengths: npt.NDArray[np.int64]
    num_micro_batches: int
    context_window: int
    workload: Workload
    documents_per_trial: int = 20_000

    def __post_init__(self) -> None:
        if not len(self.lengths):
            raise ValueError("tuning needs the lengths of some documents, there are none")

    @property
    def num_steps(self) -> int:
        """Steps that are scored: fewer where each has many documents."""
        documents = self.num_micro_batches * self.context_window * len(self.lengths) / int(self.lengths.sum())
        least, most = STEPS_SCORED
        return min(max(int(self.documents_per_trial / max(documents, 1)), least), most)

    @property
    def longest_trial_tokens(self) -> int:
        """Tokens that a long trial draws."""
        return (WARM_UP_STEPS + LONG_ROUNDS * self.num_steps) * self.num_micro_batches * self.context_window


@dataclass(frozen=True, slots=True)
class Tried(Generic[Knob]):
    """How a packer with a knob did.

    Args:
        knob: what it was made with.
        imbalance: ``imbalance_time_weighted``, 1 is perfect.
        imbalance_p95: the degree that 95 % of the steps do not exceed.
        delay: ``delay_iterations_mean``, in steps.
        steps: that were scored; the more, the less luck.
    """

    knob: Knob
    imbalance: float
    imbalance_p95: float
    delay: float
    steps: int


@dataclass(frozen=True, slots=True)
class Tuned(Generic[Knob]):
    """What a search found.

    Args:
        best: the best balance among what stays within the limit; where nothing does, the least delay.
        tried: everything, in the order in which it was tried.
        max_delay_iterations: the limit.
    """

    best: Tried[Knob]
    tried: tuple[Tried[Knob], ...]
    max_delay_iterations: float

    @property
    def within_limit(self) -> bool:
        """Whether the limit can be met at all, as far as the search knows."""
        return self.best.delay <= self.max_delay_iterations

    def frontier(self) -> list[Tried[Knob]]:
        """What nothing else beats in both balance and delay, by rising delay."""
        best: list[Tried[Knob]] = []
        for tried in sorted(self.tried, key=lambda tried: (tried.delay, tried.imbalance)):
            if not best or tried.imbalance < best[-1].imbalance:
                best.append(tried)
        return best


def try_packer(packer: Packer, sample: Sample, knob: Knob, *, seed: int = 0, rounds: int = 1) -> Tried[Knob]:
    """Runs a packer over the sample.

    Args:
        seed: of the orders in which it is drawn.
        rounds: times the sample's steps that are scored.
    """
    intake = Intake(EpochOrder(KnownLengths(sample.lengths), seed))
    waiting = packer.empty()
    costs: list[tuple[int, ...]] = []
    waited = trained = 0
    for step in range(1, WARM_UP_STEPS + rounds * sample.num_steps + 1):
        intake.step = step
        micro_batches, waiting = packer.pack(waiting, intake)
        if step > WARM_UP_STEPS:
            lengths = [[segment.length for segment in segments] for segments in micro_batches]
            costs.append(tuple(map(sample.workload.costs, lengths)))
            trained += sum(map(sum, lengths))
            waited += sum(segment.length for segment in waiting)
    degrees = sorted(map(imbalance_degree, costs))
    p95 = degrees[-(-len(degrees) * 95 // 100) - 1]
    return Tried(knob, imbalance_time_weighted(costs), p95, waited / trained, len(costs))


def tune(
    sample: Sample,
    make: Callable[[Knob], Packer],
    search: Callable[[Callable[[Knob], Tried[Knob]], Callable[[Tried[Knob]], tuple[float, ...]]], None],
    max_delay_iterations: float,
    on_try: Callable[[Tried[Knob]], None] | None = None,
) -> Tuned[Knob]:
    """Tries knobs one after the other, and then the best one longer and in other orders, until it still is the best.

    Args:
        make: a packer from a knob.
        search: asks for knobs to be tried; is told how, and by which key a smaller one is better.
        max_delay_iterations: the limit, in steps.
        on_try: hears of every trial, for a progress bar.
    """
    tried: dict[Knob, Tried[Knob]] = {}

    def attempt(knob: Knob) -> Tried[Knob]:
        if knob not in tried:
            tried[knob] = try_packer(make(knob), sample, knob)
            if on_try is not None:
                on_try(tried[knob])
        return tried[knob]

    def rank(one: Tried[Knob]) -> tuple[float, ...]:
        # a ten-thousandth of balance is worth no delay
        return max(one.delay - MARGIN * max_delay_iterations, 0.0), round(one.imbalance, 4), one.delay

    search(attempt, rank)
    sure: dict[Knob, Tried[Knob]] = {}  # the first trials are short, and the best of them were lucky
    while (knob := min(tried.values(), key=rank).knob) not in sure and len(sure) < MAX_LONG_TRIALS:
        sure[knob] = tried[knob] = try_packer(make(knob), sample, knob, seed=1, rounds=LONG_ROUNDS)
        if on_try is not None:
            on_try(tried[knob])
    best = min(sure.values(), key=rank)
    return Tuned(best, tuple(tried.values()), max_delay_iterations)

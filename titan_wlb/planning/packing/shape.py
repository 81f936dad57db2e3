"""What the micro-batches of a step are to weigh under a pipeline schedule, and which pipeline runs which of them when.

    1F1B, 2 pipeline ranks, 2 DP ranks, N = 4

    targets of each pipeline     1.2 0.8, so that the packer's are 1.2 1.2 0.8 0.8
    works packed                 13 11 8 7, which are 10.8 9.2 10 8.75 of their targets' unit
    DP rank 0                    13, then 7    each has one of the two heaviest and one of the two lightest,
    DP rank 1                    11, then 8    which makes 20 and 19

A packer that knows the targets balances work / target in place of work: the step's longest document goes to the largest
target, and the others need less work to keep up with it. Of any other, ``Shaped`` packs the step's documents again.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from titan_wlb.planning.packing.dealing import balanced
from titan_wlb.planning.timeline.optimum import target_works
from titan_wlb.planning.timeline.schedule import Schedule, build_schedule
from titan_wlb.planning.timeline.works import order_for_schedule, step_times_of_works

MICRO_BATCH_SHAPES = ("equal", "schedule")

_ALIKE = 1.001  # works within this factor count as the same
_CLOSE = 1.002  # a step time within this factor of its bound is not worth a search
_MAX_ORDERED = 8  # pipelines whose order is searched for; the others are quicker than these, or as quick as they get


@dataclass(frozen=True, slots=True)
class Shape:
    """The target works of a step's micro-batches, the same in every DP rank. ``build_shape`` makes it.

    Args:
        schedule: that the pipeline of each DP rank runs.
        dp: data-parallel ranks.
        of_pipeline: targets of a pipeline's micro-batches in the order in which they run, with mean 1.
    """

    schedule: Schedule
    dp: int
    of_pipeline: tuple[float, ...]

    @property
    def targets(self) -> tuple[float, ...]:
        """Of all N micro-batches as a packer makes them, largest first."""
        return tuple(sorted(self.of_pipeline * self.dp, reverse=True))

    @property
    def _equal(self) -> bool:
        return max(self.of_pipeline) == 1.0

    def deal(self, works: Sequence[int], tokens: Sequence[int] | None = None) -> tuple[tuple[int, ...], ...]:
        """Per DP rank its micro-batches, as places in ``works``, in the order in which it runs them.

        Equal micro-batches are dealt by ``balanced``. Of others the dp heaviest run where the target is largest, one in
        each rank, and so on down; the heavier go to the ranks that have got less so far. Then the slowest pipeline's
        order is searched for, and the next one's, as long as the step gets shorter and is not about as short as it can
        be. Ties go to what came earlier and to the rank of lower number.

        Args:
            works: of the N micro-batches, in any order.
            tokens: of the same: micro-batches that differ by a thousandth of their work are told apart by these.
        """
        assert len(works) == self.dp * len(self.of_pipeline), "N micro-batches"
        runs = self._balanced(works, tokens) if self._equal else self._by_target(works, tokens)
        return self._in_quick_order(runs, works)

    def _balanced(self, works: Sequence[int], tokens: Sequence[int] | None) -> list[tuple[int, ...]]:
        ranks = balanced(works, self.dp, tokens)
        return [tuple(place for place, of in enumerate(ranks) if of == rank) for rank in range(self.dp)]

    def _by_target(self, works: Sequence[int], tokens: Sequence[int] | None) -> list[tuple[int, ...]]:
        heaviest_first = sorted(range(len(works)), key=lambda place: -works[place])
        turns = sorted(range(len(self.of_pipeline)), key=lambda turn: -self.of_pipeline[turn])
        runs = [[-1] * len(turns) for _ in range(self.dp)]
        for level, turn in enumerate(turns):
            places = heaviest_first[level * self.dp : (level + 1) * self.dp]
            alike = works[places[0]] <= works[places[-1]] * _ALIKE
            sizes = tokens if tokens is not None and alike else works
            got = [sum(sizes[place] for place in run if place >= 0) for run in runs]
            least_first = sorted(range(self.dp), key=got.__getitem__)
            for rank, place in zip(least_first, sorted(places, key=lambda place: -sizes[place]), strict=True):
                runs[rank][turn] = place
        return list(map(tuple, runs))

    def _in_quick_order(self, runs: list[tuple[int, ...]], works: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        schedule = self.schedule
        if schedule.pp == 1:
            return tuple(runs)
        candidates = np.array([self.of_pipeline, *([works[place] for place in run] for run in runs)], np.float64)
        of_targets, *times = step_times_of_works(schedule, candidates).tolist()
        for _ in range(min(self.dp, _MAX_ORDERED)):
            slowest = max(range(self.dp), key=times.__getitem__)
            run = runs[slowest]
            if times[slowest] <= of_targets * self._unit([works[place] for place in run]) * _CLOSE:
                break
            order = order_for_schedule(
                [works[place] for place in run], schedule.name, schedule.pp, virtual_stages=schedule.virtual_stages
            )
            quick = tuple(run[place] for place in order)
            time = float(step_times_of_works(schedule, np.array([[works[place] for place in quick]], np.float64))[0])
            if time >= times[slowest]:
                break
            runs[slowest], times[slowest] = quick, time
        return tuple(runs)

    def _unit(self, works: Sequence[int]) -> float:
        """A work that makes the targets' step time a bound of what any order of the works can reach."""
        return float(min(works)) if self._equal else sum(works) / len(works)


def build_shape(
    micro_batch_shape: str, schedule: str, pp: int, dp: int, num_micro_batches: int, virtual_stages: int | None = None
) -> Shape:
    """The shape that a run asks for.

    Args:
        micro_batch_shape: one of ``MICRO_BATCH_SHAPES``.
        schedule: one of ``SCHEDULES``; without a pipeline any, since all micro-batches are equal then.
        pp: pipeline ranks.
        dp: data-parallel ranks; divides N.
        num_micro_batches: N, of all DP ranks together.
        virtual_stages: stages of each pipeline rank; by default 2 for Interleaved1F1B, else 1.

    Raises:
        ValueError: torch cannot run this schedule with so many ranks and micro-batches.
    """
    assert micro_batch_shape in MICRO_BATCH_SHAPES, micro_batch_shape
    runs = build_schedule(schedule, pp, num_micro_batches // dp, virtual_stages)
    if micro_batch_shape == "equal" or pp == 1:
        return Shape(runs, dp, (1.0,) * runs.num_micro_batches)
    targets = target_works(schedule, pp, runs.num_micro_batches, virtual_stages=runs.virtual_stages)
    return Shape(runs, dp, targets)

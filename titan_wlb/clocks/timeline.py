"""The timeline of this rank's step: what it computed, and what it waited for.

    begin ──── F 0 ────── F 1 ─────────── B 0 ────────── norm ── tail ── end       marks cut the step into sections
      [data]       [cp] [pipeline]  [fsdp]    [cp][cp]      [fsdp]                 waits lie inside; the rest is compute

A clock only notes where the step was cut; differences are taken after the step. Waits may nest: time belongs to the
innermost. Marks and waits outside of a step are ignored, so that validation and checkpoints may run the same code.
The definition stands in ``titan_wlb.records`` (ours).

CPU ranks read host clocks on the main thread, where backward runs too. CUDA ranks record events on the compute stream
and read them after the step: nothing synchronises within one.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

from titan_wlb.records import BLOCKED, COLLECTIVE_GROUPS, COMPUTE, STARVED, TIMES, WAITS, Section, StepTimes, Totals

_WARMUP_STEPS = 2
_NO_WAIT: AbstractContextManager[None] = nullcontext()


class _Wait:
    """A context manager: what happens inside is a wait. Its identity tells collectives apart."""

    __slots__ = ("category", "clock", "column", "group", "timed")

    def __init__(self, clock: StepClock, category: str, group: str | None):
        self.clock, self.category, self.group, self.timed = clock, category, group, False
        self.column = TIMES.index(category)

    def __enter__(self) -> None:
        self.timed = self.clock._is_timing()
        if self.timed:
            self.clock._waits.append(self)
            self.clock._cut()

    def __exit__(self, *exception: object) -> None:
        if self.timed and self in self.clock._waits:  # not, if the step was left by an exception meanwhile
            self.clock._waits.remove(self)
            self.clock._cut()


class StepClock:
    """Marks and waits of a step. Subclasses say how a moment is noted, and what lies between two."""

    device_type = ""

    def __init__(self) -> None:
        self._timing = False
        self._step = 0
        self._waits: list[_Wait] = []  # open now, the innermost last
        self._sections: list[tuple[str, int, int]] = []
        self._cuts: list[tuple[Any, _Wait | None, int]] = []  # (moment, wait and section from here on)
        self._ended: deque[tuple[int, list[Any], list[Any]]] = deque()  # steps that are not measured yet
        self._last: StepTimes | None = None
        self._totals = Totals()
        self._num_measured = 0

    def begin(self, step: int) -> None:
        """The step starts, in its section "head". A step that was not ended (an exception) is dropped."""
        self._step, self._timing = step, True
        self._waits, self._cuts, self._sections = [], [], [("head", -1, -1)]
        self._start()
        self._cut()

    def mark(self, kind: str, stage: int, micro_batch: int = -1) -> None:
        """From here to the next mark the rank works on this action of the pipeline (also where there is no pipeline).

        Args:
            kind: "F", "B", "W" (weight part of backward) or "R" (gradient reduction).
            stage: pipeline stage, 0 without a pipeline.
            micro_batch: place in the order in which this DP rank runs its micro-batches.
        """
        if self._is_timing():
            self._sections.append((kind, stage, micro_batch))
            self._cut()

    def phase(self, name: str) -> None:
        """From here to the next mark the rank is in "head", "norm" or "tail", parts of no micro-batch."""
        self.mark(name, -1)

    def wait(
        self, category: str, *, collective: bool = False, group: str | None = None
    ) -> AbstractContextManager[None]:
        """A context manager around a wait.

        Args:
            category: one of "pipeline", "cp", "fsdp", "data" and "other".
            collective: all ranks of a group pass here equally often, in the same order: the least exposed time over
                the group is then transfer, the rest waiting.
            group: of the collective: "cp", "fsdp" or "dp_replicate"; by default the category's own.
        """
        assert category in WAITS, category
        group = (group or category) if collective else None
        assert group is None or group in COLLECTIVE_GROUPS, group
        return _Wait(self, category, group)

    def end(self) -> None:
        """The step is over."""
        assert self._timing, "end() without begin()"
        self._cut()
        self._timing, self._waits = False, []
        self._ended.append((self._step, self._sections, self._cuts))
        self._measure_ended()

    def read(self) -> StepTimes:
        """Times of the step that ended last. On CUDA this waits for the step's end: call it at logged steps only.

        Its ``totals`` sum up all steps since the previous call.
        """
        if self._ended:
            self._finish(self._ended[-1][2])
            self._measure_ended()
        assert self._last is not None, "read() before the first end()"
        totals, self._totals = self._totals, Totals()
        return StepTimes(self._last.step, self._last.sections, self._last.collectives_ms, totals)

    def _cut(self) -> None:
        wait = self._waits[-1] if self._waits else None
        self._cuts.append((self._now(), wait, len(self._sections) - 1))

    def _measure_ended(self) -> None:
        while self._ended and self._is_done(self._ended[0][2]):
            self._last = self._measure(*self._ended.popleft())
            self._num_measured += 1
            if self._num_measured > _WARMUP_STEPS:
                self._totals += Totals(1, self._last.times_ms)

    def _measure(self, step: int, marks: list[tuple[str, int, int]], cuts: list[Any]) -> StepTimes:
        times = [[0.0] * len(TIMES) for _ in marks]
        starts: list[float] = []
        exposed: dict[_Wait, float] = {}
        elapsed = 0.0
        for (moment, wait, section), (until, _, _) in pairwise(cuts):
            if section == len(starts):
                starts.append(elapsed)
            wall, starved, blocked = self._between(moment, until, wait is not None)
            elapsed += wall
            row = times[section]
            row[wait.column if wait else COMPUTE] += wall - starved
            row[STARVED] += starved
            row[BLOCKED] += blocked
            if wait is not None and wait.group:
                exposed[wait] = exposed.get(wait, 0.0) + wall - starved
        starts += [elapsed] * (len(marks) - len(starts))
        collectives = {
            group: tuple(max(ms, 0.0) for wait, ms in exposed.items() if wait.group == group)
            for group in COLLECTIVE_GROUPS
        }
        self._release(cuts)
        sections = (Section(*mark, start, tuple(row)) for mark, start, row in zip(marks, starts, times, strict=True))
        return StepTimes(step, tuple(sections), collectives)

    def _is_timing(self) -> bool:
        return self._timing

    def _start(self) -> None:
        """Called when a step begins, on the thread that trains."""

    def _now(self) -> Any:
        """Note this moment."""
        raise NotImplementedError

    def _between(self, moment: Any, until: Any, waiting: bool) -> tuple[float, float, float]:
        """(wall, starved, blocked) between two moments in ms; starved lies inside wall, blocked beside starved."""
        raise NotImplementedError

    def _is_done(self, cuts: list[Any]) -> bool:
        return True

    def _finish(self, cuts: list[Any]) -> None:
        """Wait until the step can be measured."""

    def _release(self, cuts: list[Any]) -> None:
        """The moments are needed no longer."""


class NullClock(StepClock):
    """Measures nothing; for code that runs without a trainer."""

    def begin(self, step: int) -> None:
        self._step = step

    def end(self) -> None:
        self._last = StepTimes(self._step, ())

    def wait(
        self, category: str, *, collective: bool = False, group: str | None = None
    ) -> AbstractContextManager[None]:
        return _NO_WAIT

"""Plans and reads steps ahead, hands them out in order, and remembers where training is.

background   plan 1, read 1 | plan 2, read 2 | plan 3, read 3 | (full: waits)
training                    next() -> step 1 ............ next() -> step 2
state_dict() between the two: the planner's state after step 1, though 2 and 3 are planned already
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
from torchtitan.components.dataloader import BaseDataLoader

from titan_wlb.data.index import Index
from titan_wlb.data.local_batch import MakeMetadata, StepBatch, read_step
from titan_wlb.planning.plan import StepPlan
from titan_wlb.planning.planner import Planner, PlannerConfig, differences

_SECONDS_TO_STOP = 10.0

logger = logging.getLogger(__name__)


class ResumeError(ValueError):
    """A checkpoint that this run cannot go on from; the text is one line for the person who started it."""


class BalancedDataLoader(BaseDataLoader):
    """This rank's micro-batches, one ``StepBatch`` per step, without end.

    Every rank runs the same planner and reads its own tokens only. A background thread plans and reads ahead; what goes
    wrong there is raised by ``next``.

    Args:
        planner: belongs to the loader from now on.
        index: what the planner's lengths come from.
        dp_rank: of dp_replicate x dp_shard.
        cp_rank: of the ``cp`` mesh.
        tp: rows of a rank are padded to a multiple of it.
        make_metadata: called in the background with (shard plan, cp_rank, padded tokens) per micro-batch.
        agree: called in the background with each plan before it is used; raises where ranks planned differently.
        last_step: nothing is planned behind it; None plans without end.
        read_ahead: steps that lie ready at most.

    Attributes:
        planner: as given; it runs ahead of training, only its ``config`` means something to others.
    """

    def __init__(
        self,
        planner: Planner,
        index: Index,
        *,
        dp_rank: int,
        cp_rank: int,
        tp: int = 1,
        make_metadata: MakeMetadata | None = None,
        agree: Callable[[StepPlan], None] | None = None,
        last_step: int | None = None,
        read_ahead: int = 2,
    ) -> None:
        self.planner = planner
        self._agree, self._last_step = agree, last_step
        self._index = index
        self._dp_rank, self._cp_rank, self._tp = dp_rank, cp_rank, tp
        self._make_metadata = make_metadata
        self._capacity = read_ahead
        self._beginning = planner.state
        self._state = b""
        self._ahead: _Ahead | None = None

    def __iter__(self) -> BalancedDataLoader:
        return self

    def __next__(self) -> StepBatch:
        batch = self._start().take()
        self._state = batch.plan.state
        return batch

    def peek(self) -> StepBatch:
        """The step that ``next`` will hand out, without handing it out."""
        return self._start().look()

    def state_dict(self) -> dict[str, Any]:
        """Where training is: after the step last handed out, whatever was read ahead; the same on every rank.

        One bytes value, for DCP flattens containers and refuses tensors whose size changed. Empty before the first
        step: a seed checkpoint holds no position and no packing.
        """
        return {"planner": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on behind the step whose state this is, on whatever layout; drops what was read ahead.

        With ``agree``, which waits for other ranks that may not have read ahead as far, before the first ``next`` only.

        Raises:
            ResumeError: the state is of another index, or this run was built for other shapes.
        """
        state = state_dict.get("planner", b"")
        if not state:
            return
        self.close()
        assert self._ahead is None, "the loader still waits for other ranks to agree on a plan"
        configured = self.planner.config
        try:
            notes = differences(state, configured)
            self.planner.restore(state)
        except ValueError as error:
            raise ResumeError(f"cannot resume: {error}") from None
        _check_shapes(self.planner.config, configured)
        for note in notes:
            logger.warning(note)
        self._state = state

    def close(self) -> None:
        """Stops the background thread; drops what was read ahead, which a later ``next`` plans again."""
        if self._ahead is not None and self._ahead.stop():
            self._ahead = None

    def _start(self) -> _Ahead:
        if self._ahead is None:
            position = self._state or self._beginning
            if self.planner.state != position:  # it had planned ahead before a close
                self.planner.restore(position)
            left = None if self._last_step is None else max(self._last_step - self.planner.step, 0)
            self._ahead = _Ahead(self._next_step, self._capacity, left)
        return self._ahead

    def _next_step(self) -> StepBatch:
        plan = self.planner.plan()
        if self._agree is not None:
            self._agree(plan)
        return read_step(
            plan,
            self._index,
            dp_rank=self._dp_rank,
            cp_rank=self._cp_rank,
            tp=self._tp,
            make_metadata=self._make_metadata,
        )


def _check_shapes(in_force: PlannerConfig, configured: PlannerConfig) -> None:
    """Raises where a checkpoint's packing does not fit the schedule and the RoPE table that this run has built."""
    saved, current = in_force.num_micro_batches, configured.num_micro_batches
    if saved != current:
        raise ResumeError(
            f"training.global_batch_size = {current} cannot replace the checkpoint's {saved} on resume; use {saved}, "
            "or start a new run from the model alone (checkpoint.initial_load_path)"
        )
    saved, current = in_force.context_window, configured.context_window
    if saved > current:
        raise ResumeError(
            f"training.seq_len = {current} is below the checkpoint's context window of {saved}, which stays in force "
            f"on resume; use {saved}, or start a new run from the model alone (checkpoint.initial_load_path)"
        )


class _Ahead:
    """A thread that keeps up to ``capacity`` results of ``produce`` ready, in order, ``count`` of them in all."""

    def __init__(self, produce: Callable[[], StepBatch], capacity: int, count: int | None = None) -> None:
        assert capacity >= 1
        self._left = count
        self._produce = produce
        self._capacity = capacity
        self._ready: deque[StepBatch] = deque()
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="titan_wlb data")
        self._thread.start()

    def take(self) -> StepBatch:
        with self._changed:
            batch = self._wait()
            self._ready.popleft()
            self._changed.notify_all()
            return batch

    def look(self) -> StepBatch:
        with self._changed:
            return self._wait()

    def stop(self) -> bool:
        """Whether the thread has ended: it may be inside an agreement whose other ranks are gone."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(_SECONDS_TO_STOP)
        return not self._thread.is_alive()

    def _wait(self) -> StepBatch:
        """The first one; what went wrong comes behind the steps that went well, and stays."""
        assert not self._stopped
        self._changed.wait_for(lambda: self._ready or self._error is not None)
        if not self._ready:
            assert self._error is not None
            raise self._error
        return self._ready[0]

    def _run(self) -> None:
        try:
            while self._left != 0:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._capacity)
                    if self._stopped:
                        return
                batch = self._produce()
                if self._left is not None:
                    self._left -= 1
                with self._changed:
                    self._ready.append(batch)
                    self._changed.notify_all()
            raise StopIteration
        except BaseException as error:  # handed over, not swallowed
            with self._changed:
                self._error = error
                self._changed.notify_all()

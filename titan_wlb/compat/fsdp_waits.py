"""Timed waits of FSDP2: exposed parameter gathers and gradient reductions. Read in torch 2.11 and 2.13.

gloo      the gather blocks inside unshard, the reductions inside post_backward: custom communications time them
gloo      gathers ahead (the pipeline's UNSHARD actions) run asynchronously: their wait, at copy-out, is timed
CUDA      gathers, reduce-scatters and all-reduces run on streams of their own; what is timed is where the compute
          stream waits for them: before copy-out, before an input buffer is reused, at the end of backward. The
          clock waits itself, between its two events; FSDP's own wait behind it is then free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param_group
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from titan_wlb.clocks import StepClock

_copy_out = _fsdp_param_group.foreach_all_gather_copy_out
_post_backward = FSDPParamGroup.post_backward
_finalize_backward = FSDPParamGroup.finalize_backward
_dist = _fsdp_collectives.dist


def install_fsdp_waits(model_parts: Iterable[torch.nn.Module], clock: StepClock) -> None:
    """From now on FSDP's waits in this process go to ``clock`` as "fsdp". Call it after ``fully_shard``.

    Model parts without FSDP are left alone; calling it again replaces the clock.
    """
    _fsdp_param_group.foreach_all_gather_copy_out = _timed_copy_out(clock)
    if clock.device_type == "cuda":
        FSDPParamGroup.post_backward = _timed_post_backward(clock)
        FSDPParamGroup.finalize_backward = _timed_finalize_backward(clock)
        return
    _fsdp_collectives.dist = _TimedAllReduce(clock)
    for part in model_parts:
        for module in part.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(_TimedAllGather(clock))
                module.set_custom_reduce_scatter(_TimedReduceScatter(clock))


def remove_fsdp_waits() -> None:
    """Undo ``install_fsdp_waits``, but for the communications of modules that have theirs already."""
    _fsdp_param_group.foreach_all_gather_copy_out = _copy_out
    FSDPParamGroup.post_backward = _post_backward
    FSDPParamGroup.finalize_backward = _finalize_backward
    _fsdp_collectives.dist = _dist


def local_norms(tensors: list[torch.Tensor], norm_type: float) -> list[torch.Tensor]:
    """The norm of each tensor; of a DTensor without any communication: partial over the axes that shard it."""
    return list(torch._foreach_norm(tensors, norm_type))


class _TimedAllGather(DefaultAllGather):
    def __init__(self, clock: StepClock):
        self._clock = clock

    def __call__(self, *args: Any, async_op: bool = False, **kwargs: Any) -> dist.Work | None:
        if async_op:  # the wait comes at copy-out
            return super().__call__(*args, async_op=True, **kwargs)
        with self._clock.wait("fsdp", collective=True):
            return super().__call__(*args, async_op=False, **kwargs)


class _TimedReduceScatter(DefaultReduceScatter):
    def __init__(self, clock: StepClock):
        self._clock = clock

    def __call__(self, *args: Any, **kwargs: Any) -> dist.Work:
        with self._clock.wait("fsdp", collective=True):
            return super().__call__(*args, **kwargs)


class _TimedAllReduce:
    """``torch.distributed`` as FSDP's collectives see it, with HSDP's all-reduce over the replicas timed."""

    def __init__(self, clock: StepClock):
        self._clock = clock

    def all_reduce(self, *args: Any, **kwargs: Any) -> dist.Work | None:
        with self._clock.wait("fsdp", collective=True, group="dp_replicate"):
            return _dist.all_reduce(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(_dist, name)


def _timed_copy_out(clock: StepClock) -> Callable[..., None]:
    def copy_out(all_gather_result: Any, *args: Any, **kwargs: Any) -> None:
        event, work = all_gather_result.all_gather_event, all_gather_result.all_gather_work
        on_cuda = clock.device_type == "cuda"
        if (on_cuda and event is not None) or work is not None:
            with clock.wait("fsdp", collective=True):
                if on_cuda and event is not None:
                    torch.cuda.current_stream().wait_event(event)
                if work is not None:
                    work.wait()
        _copy_out(all_gather_result, *args, **kwargs)

    return copy_out


def _timed_post_backward(clock: StepClock) -> Callable[..., None]:
    """Before FSDP reuses a reduce-scatter's input it waits for the oldest one: wait for it first, between events."""

    def post_backward(self: Any, *args: Any) -> None:
        states, limit = _reduce_scatter_states(self.comm_ctx)
        is_last = getattr(self, "_param_group_index", 0) == getattr(self, "_num_param_groups", 1) - 1
        if self.reduce_grads and is_last and len(states) >= limit:
            event = states[len(states) - limit].event
            with clock.wait("fsdp", collective=True):
                if event is not None:
                    torch.cuda.current_stream().wait_event(event)
        _post_backward(self, *args)

    return post_backward


def _timed_finalize_backward(clock: StepClock) -> Callable[..., None]:
    """The end of backward waits for the last reductions (in torch 2.13 all of them in the first group's turn)."""

    def finalize_backward(self: Any) -> None:
        if getattr(self.comm_ctx, "_last_post_reduce_events", self._post_reduce_event is not None):
            with clock.wait("fsdp", collective=True):
                _finalize_backward(self)
        else:
            _finalize_backward(self)

    return finalize_backward


def _reduce_scatter_states(comm_ctx: Any) -> tuple[list[Any], int]:
    """(states whose input buffers are in use, how many may be); torch 2.11 keeps one."""
    if hasattr(comm_ctx, "reduce_scatter_states"):
        return comm_ctx.reduce_scatter_states, comm_ctx.reduce_scatter_max_input_buffers
    return [state for state in (comm_ctx.reduce_scatter_state,) if state is not None], 1

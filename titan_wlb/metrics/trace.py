"""A step of every rank as a Chrome trace, for https://ui.perfetto.dev or chrome://tracing.

    process "pp0 dp1"       ranks that share a pipeline stage and a DP rank
      thread "rank 4 cp0"   |F0      |F1      |pipeline     |B0            |...
                            |fs|     |cp|                     |cp|

Each rank's step starts at 0: its clock counts from its own beginning. An action's slice lasts until the next action,
but for the wait for other stages behind it, which is a slice of its own. Other waits lie inside the action: how long
they took was measured, where in the action they lay was not, and they are drawn one after another (what is gathered
before a forward first, what is reduced after a backward last). Source: ours; the format is Google's "Trace Event
Format".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from titan_wlb.records import COMPUTE, TIMES, Layout, Section, StepRecord
from titan_wlb.records.per_rank import AXES

NAMES = {
    "head": "before the first action",
    "F": "forward",
    "B": "backward",
    "W": "backward of weights",
    "R": "gradient reduction",
    "norm": "gradient norm",
    "tail": "optimizer",
}
_BEFORE = {"head": ("data", "other"), "F": ("fsdp", "cp")}  # drawn in front of the compute; the rest comes behind it
_INSIDE = ("data", "cp", "starved", "other", "fsdp")


@dataclass(frozen=True)
class TracedStep:
    """What is drawn: a step of a run.

    Args:
        name: of the run, in front of its processes; "" where there is only one.
        step: its number.
        layout: of the job.
        records: of all ranks, in order.
    """

    name: str
    step: int
    layout: Layout
    records: Sequence[StepRecord]


def chrome_trace(steps: Sequence[TracedStep]) -> dict[str, Any]:
    """The trace as JSON values; several steps stand below one another, each from 0."""
    events: list[dict[str, Any]] = []
    first_pid = 1
    for traced in steps:
        for record in traced.records:
            events += _of_rank(traced, record, first_pid)
        first_pid += traced.layout.pp * traced.layout.dp
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {f"step{f' of {traced.name}' if traced.name else ''}": traced.step for traced in steps},
    }


def spans(section: Section) -> Iterator[tuple[str, float, float]]:
    """(name of ``TIMES``, start, duration) in ms, gapless: a section's compute and waits in the order of drawing.

    F from 10 ms, with 5 ms of compute, 2 of fsdp and 3 of pipeline    fsdp 10-12, compute 12-17, pipeline 17-20
    """
    before = _BEFORE.get(section.kind, ())
    order = (*before, "compute", *(name for name in _INSIDE if name not in before), "pipeline")
    start = section.start_ms
    for name in order:
        ms = section.times_ms[TIMES.index(name)]
        if ms > 0:
            yield name, start, ms
            start += ms


def _of_rank(traced: TracedStep, record: StepRecord, first_pid: int) -> Iterator[dict[str, Any]]:
    layout, rank = traced.layout, record.rank
    places = dict(zip(AXES, layout.coordinates(rank), strict=True))
    where = {"pid": first_pid + places["pp"] * layout.dp + places["dp"], "tid": rank}
    shared, own = (
        [f"{axis}{places[axis]}" for axis in axes if getattr(layout, axis) > 1] for axes in (AXES[:2], AXES[2:])
    )
    process = " ".join([traced.name, *shared]).strip() or f"step {traced.step}"
    yield _meta("process_name", where, {"name": process})
    yield _meta("process_sort_index", where, {"sort_index": where["pid"]})
    yield _meta("thread_name", where, {"name": " ".join([f"rank {rank}", *own])})
    yield _meta("thread_sort_index", where, {"sort_index": rank})
    sections = record.times.sections
    for section, after in zip(sections, [*sections[1:], None], strict=True):
        yield from _of_section(section, where, inf if after is None else after.start_ms)


def _of_section(section: Section, where: dict[str, int], until: float) -> Iterator[dict[str, Any]]:
    # Rounded times may add up to more than lies between two marks; slices that overlap by that would not nest.
    parts = [(name, min(start, until), min(start + ms, until)) for name, start, ms in spans(section)]
    inside = [part for part in parts if part[0] != "pipeline"]
    if inside:
        is_action = section.micro_batch >= 0
        arguments: dict[str, Any] = {f"{name}_ms": round(end - start, 3) for name, start, end in inside}
        if section.stage >= 0:
            arguments["stage"] = section.stage
        if is_action:
            arguments["micro_batch"] = section.micro_batch
        name = f"{section.kind}{section.micro_batch}" if is_action else NAMES[section.kind]
        yield _slice(name, NAMES[section.kind], inside[0][1], inside[-1][2], where, arguments)
    for name, start, end in parts:
        if name != TIMES[COMPUTE]:
            yield _slice(name, name, start, end, where, {})


def _slice(
    name: str, category: str, start_ms: float, end_ms: float, where: dict[str, int], args: dict[str, Any]
) -> dict[str, Any]:
    start_ns, end_ns = round(1e6 * start_ms), round(1e6 * end_ms)
    times = {"ts": start_ns / 1e3, "dur": (end_ns - start_ns) / 1e3}
    return {"name": name, "cat": category, "ph": "X", **times, **where, "args": args}


def _meta(name: str, where: dict[str, int], args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", **where, "args": args}

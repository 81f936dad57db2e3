"""The Chrome trace of a step: everything is there once, and slices nest."""

import json
from itertools import pairwise

import pytest

from titan_wlb.metrics.trace import NAMES, TracedStep, chrome_trace, spans
from titan_wlb.records import KINDS, TIMES, Layout, Section, StepRecord, StepTimes


def section(kind, start, stage=-1, micro_batch=-1, **times):
    return Section(kind, stage, micro_batch, float(start), tuple(float(times.get(name, 0)) for name in TIMES))


def record(rank, *sections, step=7):
    return StepRecord(rank, StepTimes(step, sections))


SECTIONS = (
    section("head", 0, compute=1, data=4),
    section("F", 5, 1, 0, compute=10, fsdp=2, pipeline=3, blocked=1),
    section("B", 20, 1, 0, compute=20, cp=5, fsdp=5),
    section("tail", 50, compute=8, starved=2),
)


def slices(trace, tid=0):
    return [event for event in trace["traceEvents"] if event["ph"] == "X" and event["tid"] == tid]


def test_waits_are_drawn_in_front_of_the_compute_or_behind_it():
    forward = section("F", 10, compute=5, fsdp=2, pipeline=3)
    assert list(spans(forward)) == [("fsdp", 10, 2), ("compute", 12, 5), ("pipeline", 17, 3)]
    backward = section("B", 10, compute=5, fsdp=2, pipeline=3)
    assert list(spans(backward)) == [("compute", 10, 5), ("fsdp", 15, 2), ("pipeline", 17, 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_the_whole_section_without_gaps(kind):
    whole = section(kind, 3, compute=1, blocked=0.5, starved=2, pipeline=4, cp=8, fsdp=16, data=32, other=64)
    parts = list(spans(whole))
    assert sum(ms for _, _, ms in parts) == whole.wall_ms == 127
    assert parts[0][1] == 3 and all(start + ms == after for (_, start, ms), (_, after, _) in pairwise(parts))
    assert "blocked" not in [name for name, _, _ in parts] and kind in NAMES


def test_a_step_is_a_slice_an_action_with_its_waits_inside_and_the_pipelines_behind():
    """rank 0    |head 0-5 (data 0-4)|F0 5-17 (fsdp 5-7)|pipeline 17-20|B0 20-50 (cp, fsdp at its end)|tail 50-60|"""
    trace = chrome_trace([TracedStep("", 7, Layout(), [record(0, *SECTIONS)])])
    found = [(event["name"], event["ts"], event["ts"] + event["dur"]) for event in slices(trace)]
    assert found == [
        ("before the first action", 0, 5000),
        ("data", 0, 4000),
        ("F0", 5000, 17000),
        ("fsdp", 5000, 7000),
        ("pipeline", 17000, 20000),
        ("B0", 20000, 50000),
        ("cp", 40000, 45000),
        ("fsdp", 45000, 50000),
        ("optimizer", 50000, 60000),
        ("starved", 58000, 60000),
    ]
    forward = next(event for event in slices(trace) if event["name"] == "F0")
    assert forward["cat"] == "forward"
    assert forward["args"] == {"fsdp_ms": 2.0, "compute_ms": 10.0, "stage": 1, "micro_batch": 0}


def test_rounded_times_do_not_make_slices_overlap():
    rounded = (section("F", 0, 0, 0, compute=1.0004, fsdp=0.0004), section("B", 1.0003, 0, 0, compute=2))
    trace = chrome_trace([TracedStep("", 1, Layout(), [record(0, *rounded)])])
    open_until = []
    for event in sorted(slices(trace), key=lambda event: (event["ts"], -event["dur"])):
        while open_until and open_until[-1] <= event["ts"]:
            open_until.pop()
        assert not open_until or event["ts"] + event["dur"] <= open_until[-1]
        open_until.append(event["ts"] + event["dur"])


def test_ranks_are_threads_of_a_process_per_stage_and_dp_rank():
    layout = Layout(pp=2, dp=2, cp=2)
    step = [record(rank, *SECTIONS) for rank in range(layout.size)]
    events = chrome_trace([TracedStep("", 7, layout, step)])["traceEvents"]
    processes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    threads = {
        event["tid"]: (event["pid"], event["args"]["name"]) for event in events if event["name"] == "thread_name"
    }
    assert processes == {1: "pp0 dp0", 2: "pp0 dp1", 3: "pp1 dp0", 4: "pp1 dp1"}
    assert threads[3] == (2, "rank 3 cp1") and threads[4] == (3, "rank 4 cp0")
    assert {event["tid"] for event in events if event["ph"] == "X"} == set(range(8))


def test_two_runs_stand_below_one_another_under_their_names():
    steps = [
        TracedStep(name, 7, Layout(dp=2), [record(0, *SECTIONS), record(1, *SECTIONS)]) for name in ("plain", "wlb")
    ]
    trace = json.loads(json.dumps(chrome_trace(steps)))
    names = {event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"}
    assert names == {1: "plain dp0", 2: "plain dp1", 3: "wlb dp0", 4: "wlb dp1"}
    assert trace["otherData"] == {"step of plain": 7, "step of wlb": 7}

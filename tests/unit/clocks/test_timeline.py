from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.clocks import NullClock, StepClock
from titan_wlb.records import WAITS


class ScriptedClock(StepClock):
    """A clock on which time passes only when told to: (wall, starved, blocked) ms."""

    def __init__(self):
        super().__init__()
        self.time = (0, 0, 0)

    def spend(self, wall, starved=0, blocked=0):
        self.time = tuple(a + b for a, b in zip(self.time, (wall, starved, blocked), strict=True))

    def _now(self):
        return self.time

    def _between(self, moment, until, waiting):
        wall, starved, blocked = (float(b - a) for a, b in zip(moment, until, strict=True))
        return wall, starved, 0.0 if waiting else blocked


def test_a_step_is_split_as_drawn():
    clock = ScriptedClock()
    clock.begin(7)
    with clock.wait("data"):
        clock.spend(3)
    clock.spend(1)
    clock.mark("F", 0, 0)
    clock.spend(10, starved=2, blocked=1)
    with clock.wait("cp", collective=True):
        clock.spend(5, starved=1)
    clock.spend(4)
    clock.mark("B", 0, 0)
    with clock.wait("pipeline"):
        clock.spend(6)
    clock.spend(20)
    clock.phase("tail")
    clock.spend(2)
    clock.end()

    times = clock.read()
    assert times.step == 7
    assert [(s.kind, s.stage, s.micro_batch, s.start_ms) for s in times.sections] == [
        ("head", -1, -1, 0),
        ("F", 0, 0, 4),
        ("B", 0, 0, 23),
        ("tail", -1, -1, 49),
    ]
    assert {name: times.ms(name) for name in ("wall", "compute", "blocked", "starved", *WAITS, "idle")} == {
        "wall": 51,
        "compute": 1 + 8 + 4 + 20 + 2,
        "blocked": 1,
        "starved": 3,
        "pipeline": 6,
        "cp": 4,
        "fsdp": 0,
        "data": 3,
        "other": 0,
        "idle": 13,
    }
    assert times.collectives_ms == {"cp": (4,), "fsdp": (), "dp_replicate": ()}


def test_nested_waits_share_no_time():
    clock = ScriptedClock()
    clock.begin(1)
    with clock.wait("other"):
        clock.spend(1)
        with clock.wait("fsdp", collective=True):
            clock.spend(10)
            with clock.wait("pipeline"):
                clock.spend(100)
            clock.spend(20)
        clock.spend(2)
    clock.end()
    times = clock.read()
    assert (times.ms("other"), times.ms("fsdp"), times.ms("pipeline")) == (3, 30, 100)
    assert times.collectives_ms["fsdp"] == (30,)


def test_collectives_are_listed_per_group_in_order_and_other_waits_are_not():
    clock = ScriptedClock()
    clock.begin(1)
    for ms, group in ((1, None), (2, "dp_replicate"), (3, None)):
        with clock.wait("fsdp", collective=True, group=group):
            clock.spend(ms)
        clock.mark("F", 0, ms)
    with clock.wait("fsdp"):
        clock.spend(50)
    clock.end()
    times = clock.read()
    assert times.collectives_ms == {"cp": (), "fsdp": (1, 3), "dp_replicate": (2,)}
    assert times.ms("fsdp") == 56


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["mark", "enter", "exit", "spend"]),
            st.sampled_from(WAITS),
            st.integers(0, 100),
            st.integers(0, 100),
        ),
        max_size=60,
    )
)
def test_a_step_sums_up_to_its_wall_time(events):
    clock, spent, open_waits = ScriptedClock(), 0, []
    clock.begin(1)
    for event, category, wall, starved in events:
        if event == "mark":
            clock.mark("F", 0, 0)
        elif event == "enter" and category in ("cp", "fsdp"):
            open_waits.append(clock.wait(category, collective=True))
            open_waits[-1].__enter__()
        elif event == "enter":
            open_waits.append(clock.wait(category))
            open_waits[-1].__enter__()
        elif event == "exit" and open_waits:
            open_waits.pop().__exit__(None, None, None)
        elif event == "spend":
            clock.spend(wall, starved=min(starved, wall))
            spent += wall
    clock.end()
    times = clock.read()
    parts = ("compute", "starved", *WAITS)
    assert times.ms("wall") == pytest.approx(spent)
    assert sum(times.ms(part) for part in parts) == pytest.approx(spent)
    assert sum(section.wall_ms for section in times.sections) == pytest.approx(spent)
    for section, following in zip(times.sections, times.sections[1:], strict=False):
        assert section.start_ms + section.wall_ms == pytest.approx(following.start_ms)
    for category in ("cp", "fsdp"):
        assert sum(times.collectives_ms[category]) == pytest.approx(times.ms(category))


def test_marks_and_waits_outside_of_a_step_are_ignored():
    clock = ScriptedClock()
    with clock.wait("fsdp", collective=True):
        clock.spend(5)
    clock.mark("F", 0, 0)
    clock.begin(1)
    clock.spend(1)
    clock.end()
    with clock.wait("pipeline"):
        clock.spend(5)
    times = clock.read()
    assert times.ms("wall") == times.ms("compute") == 1
    assert [section.kind for section in times.sections] == ["head"]


def test_an_exception_within_a_wait_costs_the_step_only():
    clock = ScriptedClock()
    clock.begin(1)
    with suppress(KeyError), clock.wait("data"):
        clock.spend(4)
        raise KeyError
    clock.spend(1)
    clock.begin(2)  # the first step was not ended
    clock.spend(3)
    clock.end()
    times = clock.read()
    assert (times.step, times.ms("wall"), times.ms("data")) == (2, 3, 0)


def test_a_wait_may_reach_over_the_end_of_a_step():
    clock = ScriptedClock()
    clock.begin(1)
    wait = clock.wait("other")
    wait.__enter__()
    clock.spend(2)
    clock.end()
    wait.__exit__(None, None, None)
    assert clock.read().ms("other") == 2


def test_totals_are_sums_since_the_last_reading_without_the_first_two_steps():
    clock = ScriptedClock()

    def run(step, ms):
        clock.begin(step)
        clock.spend(ms)
        clock.end()

    run(11, 1000)
    assert clock.read().totals.steps == 0
    run(12, 1000)
    for step in (13, 14, 15):
        run(step, step)
    totals = clock.read().totals
    assert (totals.steps, totals.mean("compute"), totals.mean("wall")) == (3, 14, 14)
    run(16, 50)
    assert (clock.read().totals.steps, clock.read().totals.steps) == (1, 0)


def test_a_null_clock_accepts_everything():
    clock = NullClock()
    clock.begin(3)
    clock.mark("F", 0, 0)
    clock.phase("norm")
    clock.mark("B", 0, 0)
    with clock.wait("cp", collective=True):
        pass
    clock.end()
    assert clock.read().ms("wall") == 0

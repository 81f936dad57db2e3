import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.timeline import build_schedule, order_for_schedule, replay, step_time, step_time_over_balanced
from titan_wlb.planning.timeline.evening import AXES, evened, step_time_of_ranks
from titan_wlb.planning.timeline.events import WIRES, events_of
from titan_wlb.planning.timeline.program import Post, Wait, program
from titan_wlb.planning.timeline.schedule import Action
from titan_wlb.planning.timeline.works import step_times_of_works


def letters(actions, pp):
    """F0 of the first of a rank's stages, F0' of the second."""
    return " ".join(f"{kind}{micro_batch}" + "'" * (stage // pp) for kind, stage, micro_batch in actions)


LAYOUTS = [
    ("GPipe", 1, 2, 1),
    ("GPipe", 3, 4, 1),
    ("1F1B", 1, 3, 1),
    ("1F1B", 2, 2, 1),
    ("1F1B", 4, 4, 1),
    ("1F1B", 3, 7, 1),
    ("Interleaved1F1B", 2, 4, 2),
    ("Interleaved1F1B", 4, 10, 2),
    ("Interleaved1F1B", 3, 3, 3),
]


@st.composite
def steps(draw):
    """(schedule, forward, backward, transfer, wires)."""
    schedule = build_schedule(*draw(st.sampled_from(LAYOUTS)))
    times = st.lists(st.integers(0, 50), min_size=schedule.num_micro_batches, max_size=schedule.num_micro_batches)
    table = st.lists(times, min_size=schedule.num_stages, max_size=schedule.num_stages)
    return schedule, draw(table), draw(table), draw(st.integers(0, 9)), draw(st.sampled_from(WIRES))


def test_the_drawn_orders():
    assert [letters(actions, 3) for actions in build_schedule("1F1B", 3, 4).ranks] == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]
    assert [letters(actions, 2) for actions in build_schedule("Interleaved1F1B", 2, 2).ranks] == [
        "F0 F1 F0' F1' B0' B1' B0 B1",
        "F0 F1 F0' B0' F1' B1' B0 B1",
    ]


def test_the_drawn_program():
    def drawn(step):
        if isinstance(step, Post):
            return "[" + " ".join(f"{kind}{micro_batch} of {stage}" for kind, stage, micro_batch in step.outputs) + "]"
        return "~" if isinstance(step, Wait) else f"{step.kind}{step.micro_batch}"

    assert [" ".join(map(drawn, steps)) for steps in program(build_schedule("1F1B", 2, 2))] == [
        "F0 [F0 of 0] F1 ~ [F1 of 0 B0 of 1] ~ B0 [B1 of 1] ~ B1",
        "[F0 of 0] ~ F0 B0 [B0 of 1 F1 of 0] ~ F1 B1 [B1 of 1] ~",
    ]


def test_the_drawn_graph():
    events = events_of(build_schedule("1F1B", 2, 1 + 1), "independent")
    first = [event for event in events if event.action.micro_batch == 0]
    assert [(kind, stage, travels) for (kind, stage, _), travels, _ in first] == [
        ("F", 0, False),
        ("F", 0, True),
        ("F", 1, False),
        ("B", 1, False),
        ("B", 1, True),
        ("B", 0, False),
    ]


def test_the_drawn_timeline():
    timeline = replay(build_schedule("1F1B", 2, 2), [[2, 1], [2, 1]], [[4, 2], [4, 2]])
    assert timeline.starts == ((0, 2, 8, 12), (2, 4, 8, 9))
    assert timeline.ends == ((2, 3, 12, 14), (4, 8, 9, 11))
    assert timeline.step_time == 14
    assert timeline.idle == (5, 5)
    assert timeline.waits(0) == (0, 0, 5, 0)
    assert timeline.waits(1) == (2, 0, 0, 0)


def test_the_drawn_works():
    schedule = build_schedule("1F1B", 2, 2)
    assert step_times_of_works(schedule, np.array([[6, 6], [7.2, 4.8], [4.8, 7.2]])) == pytest.approx([9, 8.8, 9.2])
    assert step_time_over_balanced([[7.2, 4.8]], "1F1B", 2) == pytest.approx(0.978, abs=5e-4)


@pytest.mark.parametrize("pp, num_micro_batches", [(1, 1), (2, 2), (4, 4), (4, 16), (8, 8), (8, 64)])
@pytest.mark.parametrize("name", ["GPipe", "1F1B", "Interleaved1F1B"])
def test_equal_durations_leave_the_textbook_bubble(name, pp, num_micro_batches):
    schedule = build_schedule(name, pp, num_micro_batches)
    times = [[1.0] * num_micro_batches] * schedule.num_stages
    twice = [[2.0] * num_micro_batches] * schedule.num_stages
    timeline = replay(schedule, times, twice)
    # (PP - 1) forwards and backwards of one stage, of which an interleaved rank has several, one after the other
    assert timeline.idle == pytest.approx([3 * (pp - 1)] * pp)
    assert timeline.step_time == 3 * (num_micro_batches * schedule.virtual_stages + pp - 1)


@given(steps())
def test_no_step_is_shorter_than_a_ranks_work_or_a_micro_batchs_way(step):
    schedule, forward, backward, transfer, wires = step
    timeline = replay(schedule, forward, backward, transfer=transfer, wires=wires)
    for rank in range(schedule.pp):
        work = sum(
            sum(forward[stage]) + sum(backward[stage]) for stage in range(rank, schedule.num_stages, schedule.pp)
        )
        assert timeline.step_time >= work
        assert timeline.idle[rank] == timeline.step_time - work
    journey = 2 * transfer * (schedule.num_stages - 1) if schedule.pp > 1 else 0
    for micro_batch in range(schedule.num_micro_batches):
        way = sum(times[micro_batch] for times in (*forward, *backward))
        assert timeline.step_time >= way + journey


@given(steps())
def test_actions_run_in_order_on_their_rank_and_after_their_input(step):
    schedule, forward, backward, transfer, wires = step
    timeline = replay(schedule, forward, backward, transfer=transfer, wires=wires)
    start, end = {}, {}
    for actions, starts, ends in zip(schedule.ranks, timeline.starts, timeline.ends, strict=True):
        assert all(before <= after for before, after in zip(ends, starts[1:], strict=False))
        start.update(zip(actions, starts, strict=True))
        end.update(zip(actions, ends, strict=True))
    apart = transfer if schedule.pp > 1 else 0
    for kind, stage, micro_batch in start:
        if kind == "F" and stage:
            assert start[kind, stage, micro_batch] >= end["F", stage - 1, micro_batch] + apart
        if kind == "B" and stage + 1 < schedule.num_stages:
            assert start[kind, stage, micro_batch] >= end["B", stage + 1, micro_batch] + apart
        table = forward if kind == "F" else backward
        assert end[kind, stage, micro_batch] == start[kind, stage, micro_batch] + table[stage][micro_batch]
    assert step_time(schedule, forward, backward, transfer=transfer, wires=wires) == timeline.step_time


@given(steps(), st.data())
def test_a_longer_action_never_shortens_the_step(step, data):
    schedule, forward, backward, transfer, wires = step
    before = step_time(schedule, forward, backward, transfer=transfer, wires=wires)
    stage = data.draw(st.integers(0, schedule.num_stages - 1))
    micro_batch = data.draw(st.integers(0, schedule.num_micro_batches - 1))
    data.draw(st.sampled_from([forward, backward]))[stage][micro_batch] += 7
    after = step_time(schedule, forward, backward, transfer=transfer, wires=wires)
    assert before <= after <= before + 7
    assert after <= step_time(schedule, forward, backward, transfer=transfer + 1, wires=wires)


@given(steps())
def test_wires_that_carry_one_thing_at_a_time_are_never_quicker(step):
    schedule, forward, backward, transfer, _ = step
    independent, in_order = (step_time(schedule, forward, backward, transfer=transfer, wires=wires) for wires in WIRES)
    assert independent <= in_order


def test_receives_posted_ahead_hold_up_what_nccl_sends_behind_them():
    # pytorch/pytorch issue 188833: equal micro-batches, and yet ranks wait for more than the bubble
    schedule = build_schedule("Interleaved1F1B", 4, 4)
    times = [[1.0] * 4] * 8
    assert step_time(schedule, times, times, wires="in_order") > 1.2 * step_time(schedule, times, times)
    schedule = build_schedule("1F1B", 4, 4)
    assert step_time(schedule, times[:4], times[:4], wires="in_order") == step_time(schedule, times[:4], times[:4])


def test_a_busy_neighbour_holds_up_a_rank_that_is_two_sends_ahead():
    schedule = build_schedule("1F1B", 4, 4)
    forward = [[1] * 4, [9, 1, 1, 1], [1] * 4, [1] * 4]
    timeline = replay(schedule, forward, [[1] * 4] * 4)
    assert schedule.ranks[0][:4] == tuple(Action("F", 0, micro_batch) for micro_batch in range(4))
    # Rank 1 is busy with F0 until 10 and takes F1 then. Before it is taken, rank 0 does F2, but not F3.
    assert timeline.starts[0][:4] == (0, 1, 2, 10)


@given(steps())
@settings(max_examples=30)
def test_many_candidates_at_once_take_what_each_takes_alone(step):
    schedule, table, _, _, wires = step
    works = np.array(table, dtype=np.float64)
    share = 3.0 * schedule.num_stages
    alone = [
        step_time(
            schedule,
            [[work / share for work in candidate]] * schedule.num_stages,
            [[work / share * 2.0 for work in candidate]] * schedule.num_stages,
            wires=wires,
        )
        for candidate in works
    ]
    assert step_times_of_works(schedule, works, wires=wires).tolist() == alone


def test_step_time_over_balanced_is_of_the_slowest_dp_rank():
    assert step_time_over_balanced([[1, 1, 1, 1], [1, 1, 1, 1]], "1F1B", 4) == 1
    assert step_time_over_balanced([[3, 3], [1, 1]], "1F1B", 2) == pytest.approx(1.5)
    assert step_time_over_balanced([[0, 0], [0, 0]], "1F1B", 2) == 1
    assert step_time_over_balanced([[5, 1], [2, 2]], "GPipe", 1) == pytest.approx(1.2)


def test_the_largest_runs_in_the_middle():
    assert order_for_schedule([9, 10, 11, 12], "1F1B", 4) == (1, 3, 2, 0)
    order = order_for_schedule([8, 9, 10, 11, 12, 13, 14, 15], "1F1B", 8)
    assert 2 <= order.index(7) <= 5


@given(st.lists(st.integers(1, 100), min_size=4, max_size=6), st.sampled_from(["1F1B", "GPipe", "Interleaved1F1B"]))
@settings(max_examples=30)
def test_the_order_found_is_about_the_best_of_all(works, name):
    pp = 4 if name == "1F1B" else 3
    if name == "Interleaved1F1B" and len(works) % (len(works) // pp):
        return
    schedule = build_schedule(name, pp, len(works))
    order = order_for_schedule(works, name, pp)
    assert sorted(order) == list(range(len(works)))
    every = np.array(list(itertools.permutations(works)), dtype=np.float64)
    best = step_times_of_works(schedule, every).min()
    found = step_times_of_works(schedule, np.array([[works[place] for place in order]], dtype=np.float64))[0]
    given_order = step_times_of_works(schedule, np.array([works], dtype=np.float64))[0]
    assert found <= given_order * (1 + 1e-9)
    assert found <= best * (1.0 + 1e-9 if len(works) <= 5 else 1.05)


def test_the_drawn_evening():
    schedule = build_schedule("GPipe", 1, 2)
    forward = np.array([[[[6.0, 2.0]], [[2.0, 6.0]]]])
    nothing = np.zeros_like(forward)
    assert step_time_of_ranks(schedule, forward, nothing) == 12
    assert step_time_of_ranks(schedule, *evened(forward, nothing, "cp")) == 8
    assert step_time_of_ranks(schedule, *evened(forward, nothing, "micro_batch")) == 12


@pytest.mark.parametrize("planted", AXES)
def test_evening_out_the_axis_of_a_planted_delay_gives_the_step_without_it(planted):
    schedule = build_schedule("1F1B", 2, 3)
    forward = np.ones((2, 2, 2, 3))
    place = {
        "dp": (1,),
        "cp": (..., 1, slice(None), slice(None)),
        "stage": (..., 1, slice(None)),
        "micro_batch": (..., 2),  # the last: in the middle, a larger one costs no more than its work
    }
    forward[place[planted]] = 2.0
    backward = 2.0 * forward
    before = step_time_of_ranks(schedule, forward, backward)
    gains = {axis: before - step_time_of_ranks(schedule, *evened(forward, backward, axis)) for axis in AXES}
    assert max(gains, key=gains.__getitem__) == planted
    assert all(gain == pytest.approx(0, abs=1e-9) for axis, gain in gains.items() if axis != planted)
    for axis in AXES:
        even_f, even_b = evened(forward, backward, axis)
        assert (even_f + even_b).sum() == pytest.approx((forward + backward).sum())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("DualPipe", 4, 4), "choose one of GPipe, 1F1B, Interleaved1F1B"),
        (("1F1B", 4, 3), "at least 4 micro-batches, not 3"),
        (("Interleaved1F1B", 4, 9), "9 micro-batches in 2 equal rounds"),
        (("1F1B", 4, 4, 2), "one stage on each rank, not 2"),
        (("GPipe", 0, 4), "at least 1"),
    ],
)
def test_what_torch_cannot_run_is_refused_in_one_line(arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        build_schedule(*arguments)
    assert "\n" not in str(error.value)


def test_unknown_wires_and_axes_are_refused():
    with pytest.raises(ValueError, match="independent, in_order"):
        events_of(build_schedule("1F1B", 2, 2), "copper")
    with pytest.raises(ValueError, match="cp, dp, stage, micro_batch"):
        evened(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), "tp")

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import InOrder
from titan_wlb.planning.packing.fixed_length import FixedLength, least_work_with_room
from titan_wlb.planning.plan import Document, Segment
from titan_wlb.planning.workload import Workload

SQUARE = Workload(0, 0, 1)


def steps_of(packer, lengths, num_steps):
    """(the lengths in each micro-batch, what waits, documents drawn) of each step."""
    intake = Intake(InOrder(KnownLengths(lengths)))
    waiting = packer.empty()
    for step in range(1, num_steps + 1):
        intake.step = step
        packed, waiting = packer.pack(waiting, intake)
        yield [[segment.length for segment in micro_batch] for micro_batch in packed], waiting, intake.num_drawn


def tokens(segments):
    return sum(segment.length for segment in segments)


def test_the_drawn_example():
    lengths = [9, 6, 5, 5, 4, 4, 4, 3] + [2] * 30
    first, second, third = steps_of(FixedLength(2, 10, 2, SQUARE), lengths, 3)
    assert first[0] == [[9], [6, 4]]
    assert second[0] == [[5, 4], [5, 4]]
    assert first[2] == second[2] == 8, "the second step draws nothing"
    assert [segment.document.id for segment in second[1].left_over] == [7]
    assert third[0][0] == [3, 2, 2, 2], "what was left over goes first"
    assert sum(lengths[8 : third[2]]) in (37, 38), "and three tokens less are drawn"


def test_a_document_goes_past_the_least_work_where_it_has_no_room():
    segments = [Segment(Document(id, length), 0, length) for id, length in enumerate((6, 5, 5, 4))]
    # Work 36, 25 + 25: the lightest would be micro-batch 0 for the last 5, which it has no room for.
    micro_batches, left_over = least_work_with_room(segments, 2, 10, Workload(10, 0, 0))
    assert [[segment.length for segment in micro_batch] for micro_batch in micro_batches] == [[6, 4], [5, 5]]
    assert not left_over


@given(
    st.lists(st.integers(1, 30), max_size=40),
    st.integers(1, 6),
    st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 3)),
)
def test_the_heap_finds_what_a_search_finds(lengths, num_micro_batches, coefficients):
    workload = Workload(*coefficients)
    segments = [Segment(Document(id, length), 0, length) for id, length in enumerate(lengths)]
    expected, left_over = [[] for _ in range(num_micro_batches)], []
    for segment in segments:
        room = [place for place, held in enumerate(expected) if tokens(held) + segment.length <= 30]
        if not room:
            left_over.append(segment)
            continue
        place = min(room, key=lambda i: (workload.costs(s.length for s in expected[i]), tokens(expected[i]), i))
        expected[place].append(segment)
    assert least_work_with_room(segments, num_micro_batches, 30, workload) == (expected, left_over)


@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_a_window_is_drawn_at_once_and_runs_heaviest_micro_batches_first(window):
    lengths = [1 + 37 * id % 97 for id in range(4000)]
    packer = FixedLength(4, 100, window, SQUARE)
    drawn, largest = [], []
    for micro_batches, waiting, num_drawn in steps_of(packer, lengths, 8 * window):
        drawn.append(num_drawn)
        largest.append(max(sum(length**2 for length in micro_batch) for micro_batch in micro_batches))
        assert len(waiting.queues) % 4 == 0 and len(waiting.queues) == 4 * (window - 1 - (len(drawn) - 1) % window)
    for first in range(0, 8 * window, window):
        assert len(set(drawn[first : first + window])) == 1
        assert largest[first : first + window] == sorted(largest[first : first + window], reverse=True)
    assert len(set(drawn)) == 8


def test_more_global_batches_at_once_are_balanced_better_and_wait_longer():
    lengths = [2000 if id % 23 == 0 else 50 + 37 * id % 197 for id in range(9000)]
    degrees, delays = [], []
    for window in (1, 2, 4, 8):
        steps = list(steps_of(FixedLength(4, 2048, window, SQUARE), lengths, 80))
        works = [[sum(length**2 for length in held) for held in micro_batches] for micro_batches, _, _ in steps]
        degrees.append(sum(4 * max(work) / sum(work) for work in works) / 80)
        delays.append(sum(tokens(waiting) for _, waiting, _ in steps))
    assert degrees == sorted(degrees, reverse=True)
    assert delays == sorted(delays)


def test_the_end_of_the_data_takes_no_more_steps_than_it_needs():
    packer = FixedLength(2, 10, 8, SQUARE)
    steps = list(steps_of(packer, [5] * 9, 3))
    assert [micro_batches for micro_batches, _, _ in steps] == [[[5, 5], [5, 5]], [[5, 5], [5]], [[5], [5]]]
    assert [list(waiting) for _, waiting, _ in steps][-1] == []


def test_where_one_document_overshot_by_many_windows_no_later_step_is_empty():
    lengths = [1000, *[7] * 300]
    for micro_batches, _, _ in steps_of(FixedLength(2, 10, 2, SQUARE), lengths, 60):
        assert all(micro_batches)

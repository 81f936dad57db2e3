import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import InOrder
from titan_wlb.planning.packing.packer import Waiting, pieces
from titan_wlb.planning.packing.variable_length import VariableLength, default_thresholds
from titan_wlb.planning.plan import Document, Segment
from titan_wlb.planning.workload import Workload

SQUARE = Workload(0, 0, 1)


def documents(*lengths, first=0):
    return [Document(first + place, length) for place, length in enumerate(lengths)]


def ids(packed):
    return [[segment.document.id for segment in micro_batch] for micro_batch in packed]


def packer(num_micro_batches=2, window=12, max_tokens=12, thresholds=(), workload=SQUARE):
    return VariableLength(num_micro_batches, window, max_tokens, thresholds, workload)


def test_the_drawn_example():
    pack = packer(thresholds=(8,)).pack_arrived
    first, waiting = pack(packer(thresholds=(8,)).empty(), documents(8, 3, 2, 2))
    assert ids(first) == [[1], [2, 3]]
    assert [segment.document.id for segment in waiting.queues[0]] == [0]
    second, waiting = pack(waiting, documents(9, 2, 1, first=4))
    assert ids(second) == [[4], [0, 5, 6]]
    assert not list(waiting)


def test_an_outlier_enters_the_queue_whose_threshold_it_reaches():
    _, waiting = packer(num_micro_batches=3, thresholds=(4, 8)).pack_arrived(
        packer(thresholds=(4, 8)).empty(), documents(3, 4, 7, 8, 12)
    )
    assert [[segment.length for segment in queue] for queue in waiting.queues] == [[4, 7], [8, 12]]


def test_a_queue_releases_exactly_n_of_its_oldest_and_no_more_in_one_step():
    packed, waiting = packer(thresholds=(6,)).pack_arrived(packer(thresholds=(6,)).empty(), documents(6, 7, 8, 9, 10))
    assert ids(packed) == [[1], [0]]
    assert [segment.document.id for segment in waiting.queues[0]] == [2, 3, 4]


def test_a_queue_holds_back_fewer_than_n():
    packed, waiting = packer(thresholds=(6,)).pack_arrived(packer(thresholds=(6,)).empty(), documents(9, 2, 2))
    assert ids(packed) == [[1], [2]]
    assert [segment.document.id for segment in waiting.queues[0]] == [0]


def test_what_does_not_fit_the_lightest_goes_to_the_shortest_micro_batch():
    # The constant makes the micro-batch of few long documents the lightest although it is the longest.
    workload = Workload(constant=100, linear=1, quadratic=0)
    packed, waiting = packer(max_tokens=13, workload=workload).pack_arrived(packer().empty(), documents(10, 3, 3, 1, 5))
    # 10 -> 0; 5 -> 1; 3 -> 1 (work 105 < 110), now 208; 3 -> 0 (110), exactly full with 13 tokens, now 213;
    # 1 -> 1 (208), now 309 with 9 tokens.
    assert ids(packed) == [[0, 2], [4, 1, 3]]
    # Lightest is micro-batch 0 (213 against 309), but it is full: the shortest takes it.
    packed, _ = packer(max_tokens=13, workload=workload).pack_arrived(packer().empty(), documents(10, 3, 3, 1, 5, 1))
    assert ids(packed) == [[0, 2], [4, 1, 3, 5]]
    assert not list(waiting)


def test_what_fits_nowhere_is_left_over_and_goes_first_in_the_next_step():
    pack = packer(max_tokens=12).pack_arrived
    packed, waiting = pack(packer().empty(), documents(9, 8, 5, 2))
    assert ids(packed) == [[0], [1, 3]]
    assert [segment.document.id for segment in waiting.left_over] == [2]
    packed, waiting = pack(waiting, documents(7, 6, first=4))
    assert ids(packed) == [[2, 5], [4]], "the left-over of 5 tokens comes before the longer new ones"


def test_a_document_longer_than_the_window_is_cut_at_the_intake():
    long, short = Document(0, 9), Document(1, 2)
    assert [(segment.start, segment.stop) for segment in pieces([long, short], 4)] == [(0, 4), (4, 8), (8, 9), (0, 2)]
    packed, _ = packer(num_micro_batches=3, window=4).pack_arrived(packer().empty(), [long])
    assert packed == [(Segment(long, 0, 4),), (Segment(long, 4, 8),), (Segment(long, 8, 9),)]


def test_documents_that_cost_nothing_still_leave_no_micro_batch_empty():
    packed, _ = packer(num_micro_batches=3, workload=Workload(0, 0, 0)).pack_arrived(
        packer().empty(), documents(1, 1, 1)
    )
    assert ids(packed) == [[0], [1], [2]]


def test_too_few_documents_leave_micro_batches_empty_for_the_planner_to_see():
    packed, _ = packer(num_micro_batches=3).pack_arrived(packer().empty(), documents(5))
    assert ids(packed) == [[0], [], []]


def as_written_in_the_paper(waiting, arrived, num_micro_batches, window, max_tokens, thresholds, workload):
    """Algorithm 1 without heaps: a search over all micro-batches for every document."""
    queues, new = [list(queue) for queue in waiting.queues], []
    outliers = []
    for segment in pieces(arrived, window):
        (outliers if thresholds and segment.length >= thresholds[0] else new).append(segment)
    for segment in outliers:
        level = max(level for level, threshold in enumerate(thresholds) if segment.length >= threshold)
        queues[level].append(segment)
    released = []
    for queue in queues:
        if len(queue) >= num_micro_batches:
            released += [queue.pop(0) for _ in range(num_micro_batches)]
    ordered = list(waiting.left_over) + sorted(released + new, key=lambda segment: segment.length, reverse=True)
    micro_batches, left_over = [[] for _ in range(num_micro_batches)], []
    for segment in ordered:
        length = [sum(other.length for other in micro_batch) for micro_batch in micro_batches]
        work = [workload.costs(other.length for other in micro_batch) for micro_batch in micro_batches]
        lightest = min(range(num_micro_batches), key=lambda place: (work[place], length[place], place))
        shortest = min(range(num_micro_batches), key=lambda place: (length[place], place))
        if length[lightest] + segment.length <= max_tokens:
            micro_batches[lightest].append(segment)
        elif length[shortest] + segment.length <= max_tokens:
            micro_batches[shortest].append(segment)
        else:
            left_over.append(segment)
    return [tuple(micro_batch) for micro_batch in micro_batches], Waiting(tuple(left_over), tuple(map(tuple, queues)))


@st.composite
def settings_and_documents(draw):
    window = draw(st.integers(1, 40))
    settings = {
        "num_micro_batches": draw(st.integers(1, 6)),
        "window": window,
        "max_tokens": draw(st.integers(window, 3 * window)),
        "thresholds": tuple(sorted(draw(st.sets(st.integers(1, window), max_size=3)))),
        "workload": Workload(*draw(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 3)))),
    }
    return settings, draw(st.lists(st.lists(st.integers(1, 50), max_size=25), min_size=1, max_size=5))


@given(settings_and_documents())
def test_packing_is_the_papers_algorithm_and_keeps_every_token_once_below_the_cap(settings_and_lengths):
    settings, steps = settings_and_lengths
    ours, waiting, id = packer(**settings), packer(**settings).empty(), 0
    tokens = {}
    for lengths in steps:
        arrived = documents(*lengths, first=id)
        id += len(lengths)
        expected = as_written_in_the_paper(waiting, arrived, **settings)
        packed, waiting = ours.pack_arrived(waiting, arrived)
        assert (packed, waiting) == expected
        for micro_batch in packed:
            assert sum(segment.length for segment in micro_batch) <= settings["max_tokens"]
            for segment in micro_batch:
                tokens.setdefault(segment.document, []).extend(range(segment.start, segment.stop))
    for segment in waiting:
        tokens.setdefault(segment.document, []).extend(range(segment.start, segment.stop))
    assert len(tokens) == id
    assert all(sorted(held) == list(range(document.length)) for document, held in tokens.items())


@given(settings_and_documents())
def test_what_waits_survives_json(settings_and_lengths):
    settings, steps = settings_and_lengths
    flat = [length for lengths in steps for length in lengths]
    _, waiting = packer(**settings).pack_arrived(packer(**settings).empty(), documents(*flat))
    assert Waiting.from_json(waiting.to_json()) == waiting


def test_a_micro_batch_cannot_be_smaller_than_the_window():
    with pytest.raises(AssertionError):
        packer(window=12, max_tokens=11)


def packed_steps(packer, lengths, num_steps):
    """(micro-batches, what waits, whether the data has ended) of each step."""
    intake = Intake(InOrder(KnownLengths(lengths)))
    waiting = packer.empty()
    for step in range(1, num_steps + 1):
        intake.step = step
        packed, waiting = packer.pack(waiting, intake)
        yield packed, waiting, intake.exhausted


def test_the_drawn_example_of_a_bound_on_age():
    bounded = packer(thresholds=(8,))
    step_1, step_2 = ([Document(d.id, d.length, step) for d in documents(*lengths, first=first)]
                      for step, first, lengths in ((1, 0, (9, 3, 2)), (2, 3, (4, 3))))  # fmt: skip
    packed, waiting = bounded.pack_arrived(bounded.empty(), step_1, due=0)
    assert (ids(packed), ids(waiting.queues)) == ([[1], [2]], [[0]])
    packed, waiting = bounded.pack_arrived(waiting, step_2, due=1)
    assert ids(packed) == [[0], [3, 4]] and not list(waiting)


def test_what_is_due_brings_along_up_to_n_of_every_queue():
    bounded = VariableLength(2, 12, 24, (6, 9), SQUARE, max_age_iterations=3)
    old, young = documents(9), [Document(id, 7, arrival=3) for id in (1, 2, 3)][:1]
    waiting = Waiting((), ((), tuple(pieces(old, 12))))
    packed, waiting = bounded.pack_arrived(waiting, [*young, *documents(2, 2, first=5)], due=0)
    assert ids(packed) == [[0], [1, 5, 6]]
    assert not list(waiting)


def test_more_than_n_that_are_due_are_all_released():
    bounded = VariableLength(2, 12, 60, (6,), SQUARE, max_age_iterations=3)
    packed, waiting = bounded.pack_arrived(Waiting((), (tuple(pieces(documents(*[9] * 5), 12)),)), [], due=0)
    assert sorted(map(len, packed)) == [2, 3] and not list(waiting)


@pytest.mark.parametrize("age", [1, 2, 7])
def test_no_document_of_a_long_stream_exceeds_the_bound_on_age(age):
    lengths = [100 if id % 97 == 0 else 70 if id % 31 == 0 else 1 + 37 * id % 23 for id in range(4000)]
    bounded, unbounded = (VariableLength(4, 100, 200, (50, 90), SQUARE, bound) for bound in (age, 0))
    for packer, oldest_allowed in ((bounded, range(age + 1)), (unbounded, range(age + 1, 1000))):
        oldest = 0
        for step, (packed, _, _) in enumerate(packed_steps(packer, lengths, 80), start=1):
            oldest = max(oldest, *(step - segment.document.arrival for held in packed for segment in held))
        assert oldest in oldest_allowed


def test_the_end_of_the_data_releases_every_queue_in_balance():
    lengths = [*[3, 2, 4, 1] * 20, 90, 80, 60, 40, *[5] * 26]
    *_, (last, waiting, exhausted) = packed_steps(VariableLength(2, 100, 300, (30, 50, 70), SQUARE), lengths, 3)
    assert exhausted and not list(waiting)
    work = [SQUARE.costs(segment.length for segment in held) for held in last]
    longest = max(segment.length for held in last for segment in held)
    assert max(work) <= 1.2 * max(sum(work) / 2, SQUARE.cost(longest))


def test_the_default_thresholds_are_three_quarters_of_the_window():
    assert default_thresholds(131_072) == (32_768, 65_536, 98_304)
    assert default_thresholds(2) == (1,)

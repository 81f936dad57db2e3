import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import EpochOrder, InOrder
from titan_wlb.planning.shuffle import Shuffle

SEGMENTS = st.lists(st.lists(st.integers(1, 20), max_size=8), min_size=1, max_size=4).filter(any)


def in_order(*lengths):
    return Intake(InOrder(KnownLengths(*lengths)))


def shuffled(*segments, seed=4):
    return Intake(EpochOrder(KnownLengths(*segments), seed))


def test_the_drawn_example():
    intake = in_order([5, 4, 2, 9, 1])
    assert [document.id for document in intake.draw(8)] == [0, 1]
    assert (intake.drawn, intake.goal) == (9, 8)
    intake.step = 2
    assert [(document.id, document.arrival) for document in intake.draw(8)] == [(2, 2), (3, 2)]
    assert (intake.drawn, intake.goal) == (20, 16)
    assert [document.id for document in intake.draw(8)] == [4]
    assert intake.exhausted and intake.draw(8) == []


def test_documents_come_in_the_epochs_shuffled_order():
    drawn = shuffled(np.arange(1, 8), seed=9).draw(2 * 28)
    order = [*Shuffle(7, 9, 0, 0).ids(0, 7).tolist(), *Shuffle(7, 9, 1, 0).ids(0, 7).tolist()]
    assert [document.id for document in drawn] == order
    assert [document.epoch for document in drawn] == [0] * 7 + [1] * 7
    assert all(document.length == document.id + 1 for document in drawn)


def test_a_further_batch_brings_its_tokens_although_the_last_one_overshot():
    intake = in_order([100, 6, 6, 6])
    intake.draw(8)
    assert intake.draw(8) == []
    assert [document.length for document in intake.draw_more(8)] == [6, 6]


@pytest.mark.parametrize("num_documents", [1, 5, 4095, 4096, 4097, 9000])
def test_drawing_in_blocks_loses_nothing_at_their_ends(num_documents):
    intake = shuffled(np.ones(num_documents, dtype=np.int64), seed=1)
    drawn = [document for _ in range(4) for document in intake.draw(num_documents // 2 + 1)]
    expected = [(epoch, id) for epoch in range(4) for id in Shuffle(num_documents, 1, epoch, 0).ids(0, num_documents)]
    assert [(document.epoch, document.id) for document in drawn] == expected[: 4 * (num_documents // 2 + 1)]
    assert intake.num_drawn == len(drawn)


@given(SEGMENTS, st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_a_restored_intake_goes_on_as_if_it_had_not_stopped(segments, batches):
    intake = shuffled(*segments)
    for step, tokens in enumerate(batches):
        other = shuffled(*segments)
        other.set_state(intake.state())
        intake.step = other.step = step
        assert intake.draw(tokens) == other.draw(tokens)
        assert intake.state() == other.state()


@given(SEGMENTS, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6))
def test_what_is_peeked_at_is_what_is_drawn_next_and_peeking_changes_nothing(segments, batches):
    intake, blind = shuffled(*segments), shuffled(*segments)
    for tokens, look in batches:
        peeked = intake.peek(look).tolist()
        assert sum(peeked) >= look > sum(peeked[:-1]) or not look
        drawn = intake.draw_more(tokens)
        assert drawn == blind.draw_more(tokens) and intake.state() == blind.state()
        following = [document.length for document in drawn]
        assert following[: len(peeked)] == peeked[: len(following)]


def test_at_the_end_of_the_data_a_peek_shows_what_is_left():
    intake = in_order([5, 4], [2])
    assert intake.peek(100).tolist() == [5, 4, 2] and not intake.exhausted
    intake.draw(11)
    assert intake.peek(1).tolist() == [] and intake.exhausted

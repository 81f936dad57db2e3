import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.intake import Intake
from titan_wlb.planning.shuffle import Shuffle


class InOrder:
    """In place of the shuffled order."""

    def __init__(self, num_documents, seed, epoch):
        pass

    def ids(self, start, stop):
        return np.arange(start, stop)


def test_the_drawn_example(monkeypatch):
    monkeypatch.setattr("titan_wlb.planning.intake.Shuffle", InOrder)
    intake = Intake(np.array([5, 4, 2, 9, 1]), seed=0)
    assert [document.id for document in intake.draw(8, step=1)] == [0, 1]
    assert (intake.drawn, intake.goal) == (9, 8)
    assert [document.id for document in intake.draw(8, step=2)] == [2, 3]
    assert (intake.drawn, intake.goal) == (20, 16)
    third = intake.draw(8, step=3)
    assert [(document.id, document.epoch, document.arrival) for document in third] == [(4, 0, 3), (0, 1, 3)]


def test_documents_come_in_the_epochs_shuffled_order():
    lengths = np.arange(1, 8)
    drawn = Intake(lengths, seed=9).draw(2 * 28, step=1)
    order = [*Shuffle(7, 9, 0).ids(0, 7).tolist(), *Shuffle(7, 9, 1).ids(0, 7).tolist()]
    assert [document.id for document in drawn] == order
    assert [document.epoch for document in drawn] == [0] * 7 + [1] * 7
    assert all(document.length == document.id + 1 for document in drawn)


def test_a_further_batch_brings_its_tokens_although_the_last_one_overshot(monkeypatch):
    monkeypatch.setattr("titan_wlb.planning.intake.Shuffle", InOrder)
    intake = Intake(np.array([100, 6, 6, 6]), seed=0)
    intake.draw(8, step=1)
    assert intake.draw(8, step=2) == []
    assert [document.length for document in intake.draw_more(8, step=2)] == [6, 6]


@pytest.mark.parametrize("num_documents", [1, 5, 4095, 4096, 4097, 9000])
def test_drawing_in_blocks_loses_nothing_at_their_ends(num_documents):
    intake = Intake(np.ones(num_documents, dtype=np.int64), seed=1)
    drawn = [document for _ in range(4) for document in intake.draw(num_documents // 2 + 1, step=1)]
    expected = [(epoch, id) for epoch in range(4) for id in Shuffle(num_documents, 1, epoch).ids(0, num_documents)]
    assert [(document.epoch, document.id) for document in drawn] == expected[: 4 * (num_documents // 2 + 1)]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=15), st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_a_restored_intake_goes_on_as_if_it_had_not_stopped(lengths, batches):
    intake = Intake(np.array(lengths), seed=4)
    for step, tokens in enumerate(batches):
        other = Intake(np.array(lengths), seed=4)
        other.set_state(intake.state())
        assert intake.draw(tokens, step=step) == other.draw(tokens, step=step)
        assert intake.state() == other.state()

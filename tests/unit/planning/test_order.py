import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.lengths import FirstSegments, KnownLengths, OpenedSegments
from titan_wlb.planning.order import BLOCK, EpochOrder, InOrder, Position

SEGMENTS = st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=5).filter(any)


class Growing:
    """An index of which only some segments may be asked for: asking for another would wait."""

    def __init__(self, *segments):
        self.known, self.there = KnownLengths(*segments), 0

    def segment(self, number):
        assert number < self.there, f"segment {number} is needed"
        return self.known.segment(number)


def ids_of(order, num_documents, position=None):
    position, ids = position or Position(), []
    while len(ids) < num_documents:
        block = order.block(position)
        ids += block.ids.tolist()
        position = block.end
    return ids[:num_documents]


@given(SEGMENTS, st.integers(0, 99))
def test_an_epoch_holds_every_document_once_segment_by_segment(segments, seed):
    total = sum(map(len, segments))
    ids = ids_of(EpochOrder(KnownLengths(*segments), seed), 3 * total)
    first = 0
    for lengths in segments:
        assert sorted(ids[first : first + len(lengths)]) == list(range(first, first + len(lengths)))
        first += len(lengths)
    for epoch in range(3):
        assert sorted(ids[epoch * total : (epoch + 1) * total]) == list(range(total))


def test_later_epochs_shuffle_the_segments_too():
    segments = [[1] * 10] * 6
    ids = ids_of(EpochOrder(KnownLengths(*segments), 0), 60 * 8)
    orders = [tuple(id // 10 for id in ids[epoch * 60 : (epoch + 1) * 60 : 10]) for epoch in range(8)]
    assert orders[0] == tuple(range(6))
    assert len(set(orders)) == 8


def test_no_segment_is_asked_for_before_the_one_in_front_of_it_is_used_up():
    growing = Growing([1] * 4, [1] * 3, [1] * 5)
    order = EpochOrder(growing, 1)
    position = Position()
    for there, num_documents in ((1, 4), (2, 3), (3, 5)):
        growing.there = there
        block = order.block(position)
        assert len(block.ids) == num_documents
        position = block.end
    growing.there = 4
    assert order.block(position).position.epoch == 1


@given(SEGMENTS, st.integers(0, 60))
def test_from_any_position_the_order_goes_on_alike(segments, num_documents):
    source = KnownLengths(*segments)
    order, position = EpochOrder(source, 3), Position()
    for _ in range(num_documents % 7):
        position = order.block(position).end
    assert ids_of(EpochOrder(source, 3), num_documents, position) == ids_of(order, num_documents, position)


@given(SEGMENTS)
def test_in_order_is_the_index_once(segments):
    order, position, ids, lengths = InOrder(KnownLengths(*segments)), Position(), [], []
    while (block := order.block(position)) is not None:
        ids += block.ids.tolist()
        lengths += block.lengths.tolist()
        position = block.end
    assert ids == list(range(len(ids)))
    assert lengths == [length for segment in segments for length in segment]


def test_a_block_is_bounded():
    assert len(EpochOrder(KnownLengths(np.ones(3 * BLOCK, dtype=np.int64)), 0).block(Position()).ids) == BLOCK


@pytest.mark.parametrize("segments", [[[]], [[], []], []])
def test_an_index_without_a_document_is_refused(segments):
    with pytest.raises(ValueError, match="the document index is empty"):
        EpochOrder(KnownLengths(*segments), 0).block(Position())


def test_a_document_without_a_token_is_refused():
    with pytest.raises(ValueError, match="document 3 of the index has no token"):
        KnownLengths([1, 2], [3, 0])


def test_what_was_opened_is_told_by_one_digest():
    def digest(*segments, number=2, fingerprint=""):
        opened = OpenedSegments(KnownLengths(*segments, fingerprint=fingerprint))
        for place in (*range(number), 0, number - 1):
            opened.segment(place)
        return opened.number, opened.digest

    assert digest([1, 2], [3], [4]) == digest([1, 2], [3]) == (2, digest([1, 2], [3])[1])
    others = [
        digest([1], [2, 3]),
        digest([2, 1], [3]),
        digest([1, 2], [3], number=1),
        digest([1, 2], [3], [4], number=3),
    ]
    assert len({*others, digest([1, 2], [3]), digest([1, 2], [3], fingerprint="other")}) == 6


def test_the_first_segments_are_an_index_of_their_own():
    first = FirstSegments(KnownLengths([1], [2], [3]), 2)
    assert [first.segment(number) is None for number in range(4)] == [False, False, True, True]

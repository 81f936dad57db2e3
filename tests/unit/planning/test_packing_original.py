from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import InOrder
from titan_wlb.planning.packing.original import Original
from titan_wlb.planning.plan import Document, Segment


def test_the_drawn_example():
    a, b, c = (Document(id, length) for id, length in enumerate((3, 3, 5)))
    packed, waiting = Original(num_micro_batches=2, context_window=4).pack_arrived(Original(2, 4).empty(), [a, b, c])
    assert packed == [(Segment(a, 0, 3), Segment(b, 0, 1)), (Segment(b, 1, 3), Segment(c, 0, 2))]
    assert list(waiting) == [Segment(c, 2, 5)]


def test_what_is_carried_goes_first_and_a_long_document_fills_many_micro_batches():
    long, short = Document(0, 11), Document(1, 2)
    packer = Original(num_micro_batches=2, context_window=4)
    first, waiting = packer.pack_arrived(packer.empty(), [long])
    second, waiting = packer.pack_arrived(waiting, [short])
    assert first == [(Segment(long, 0, 4),), (Segment(long, 4, 8),)]
    assert second == [(Segment(long, 8, 11), Segment(short, 0, 1)), (Segment(short, 1, 2),)]
    assert not list(waiting)


def test_labels_cross_a_cut_inside_the_document_and_end_with_it():
    document = Document(0, 5)
    packer = Original(num_micro_batches=2, context_window=3)
    (first, second), _ = packer.pack_arrived(packer.empty(), [document])
    # Token 2, the last of the first piece, has token 3 as its label; only token 4 has none.
    assert [segment.num_labels for segment in (*first, *second)] == [3, 1]


@given(
    lengths=st.lists(st.lists(st.integers(1, 30), max_size=12), min_size=1, max_size=6),
    num_micro_batches=st.integers(1, 5),
    window=st.integers(1, 16),
)
def test_the_stream_keeps_its_order_and_every_micro_batch_but_the_last_is_full(lengths, num_micro_batches, window):
    packer = Original(num_micro_batches, window)
    waiting, stream, trained, id = packer.empty(), [], [], 0
    for step in lengths:
        arrived = []
        for length in step:
            arrived.append(Document(id, length))
            stream += [(id, token) for token in range(length)]
            id += 1
        packed, waiting = packer.pack_arrived(waiting, arrived)
        tokens = [sum(segment.length for segment in micro_batch) for micro_batch in packed]
        full, partial = divmod(min(len(stream) - len(trained), num_micro_batches * window), window)
        assert tokens == ([window] * full + [partial] * (partial > 0) + [0] * num_micro_batches)[:num_micro_batches]
        trained += [
            (segment.document.id, token)
            for micro_batch in packed
            for segment in micro_batch
            for token in range(segment.start, segment.stop)
        ]
        assert trained == stream[: len(trained)]
    assert sum(segment.length for segment in waiting) == len(stream) - len(trained)


def test_the_end_of_the_data_is_trained_whole():
    intake, packer = Intake(InOrder(KnownLengths([3, 11, 2]))), Original(num_micro_batches=2, context_window=4)
    waiting, trained = packer.empty(), []
    while not intake.exhausted or list(waiting):
        packed, waiting = packer.pack(waiting, intake)
        trained.append([sum(segment.length for segment in micro_batch) for micro_batch in packed])
    assert trained == [[4, 4], [4, 4]]
    intake, waiting = Intake(InOrder(KnownLengths([3, 6]))), packer.empty()
    _, waiting = packer.pack(waiting, intake)
    second, waiting = packer.pack(waiting, intake)
    assert [len(micro_batch) for micro_batch in second] == [1, 0] and not list(waiting)

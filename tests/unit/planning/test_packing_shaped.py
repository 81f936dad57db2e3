import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import InOrder
from titan_wlb.planning.packing.karmarkar_karp import KarmarkarKarp
from titan_wlb.planning.packing.packer import Waiting
from titan_wlb.planning.packing.shaped import Shaped
from titan_wlb.planning.packing.variable_length import VariableLength
from titan_wlb.planning.plan import Document, Segment
from titan_wlb.planning.workload import Workload

LINEAR, SQUARE = Workload(0, 1, 0), Workload(0, 0, 1)


class Given:
    """In place of a packer."""

    def __init__(self, *micro_batches):
        ids = iter(range(100))
        self.packed = [
            tuple(Segment(Document(next(ids), length), 0, length) for length in lengths) for lengths in micro_batches
        ]

    def pack(self, waiting, stream):
        return self.packed, Waiting(queues=((),))


def lengths_of(packed):
    return [[segment.length for segment in micro_batch] for micro_batch in packed]


def test_the_drawn_example():
    shaped = Shaped(Given((4, 4, 2, 2), (6, 3, 3)), 20, LINEAR, (1.25, 0.75))
    packed, waiting = shaped.pack(Waiting(), None)
    assert lengths_of(packed) == [[6, 4, 3, 2], [4, 3, 2]]
    assert waiting == Waiting(queues=((),))


def test_what_the_cap_lets_in_nowhere_waits():
    shaped = Shaped(Given((6, 2), (5, 3)), 8, LINEAR, (1.5, 0.5))
    packed, waiting = shaped.pack(Waiting(), None)
    assert lengths_of(packed) == [[6, 2], [5, 3]] and not list(waiting)
    packed, waiting = Shaped(Given((3, 3, 2), (4, 4)), 8, LINEAR, (1.9, 0.1)).pack(Waiting(), None)
    assert lengths_of(packed) == [[4, 3], [4, 3]], "each could be packed into 8 tokens, though not by this rule"
    assert lengths_of([waiting.left_over]) == [[2]]


@pytest.mark.parametrize("targets", [(1.2, 1.12, 0.96, 0.72), (1.0, 1.0, 1.0, 1.0)])
def test_works_are_in_proportion_to_the_targets(targets):
    lengths = [1 + 7919 * id % 97 for id in range(3000)]
    shaped = Shaped(VariableLength(4, 1000, 2000, (), SQUARE), 2000, SQUARE, targets)
    intake = Intake(InOrder(KnownLengths(lengths)))
    packed, _ = shaped.pack(shaped.empty(), intake)
    works = [SQUARE.costs(held) / target for held, target in zip(lengths_of(packed), targets, strict=True)]
    assert max(works) < 1.01 * min(works)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(30, 60))
def test_every_token_is_trained_once_below_the_cap(lengths, max_tokens):
    inner = KarmarkarKarp(3, 30, max_tokens, SQUARE)
    shaped = Shaped(inner, max_tokens, SQUARE, (1.3, 1.1, 0.6))
    intake, waiting, trained = Intake(InOrder(KnownLengths(lengths))), shaped.empty(), []
    while not intake.exhausted or list(waiting):
        intake.step += 1
        packed, waiting = shaped.pack(waiting, intake)
        assert Waiting.from_json(waiting.to_json()) == waiting
        assert all(packed) or intake.exhausted
        assert max(map(sum, lengths_of(packed))) <= max_tokens
        trained += [
            (segment.document.id, token) for held in packed for segment in held
            for token in range(segment.start, segment.stop)
        ]  # fmt: skip
    assert sorted(trained) == [(id, token) for id, length in enumerate(lengths) for token in range(length)]

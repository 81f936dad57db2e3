"""What every packer promises, whatever arrives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.config import PlannerConfig
from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import EpochOrder, InOrder
from titan_wlb.planning.packing import PACKERS, Waiting, build_packer
from titan_wlb.planning.workload import Workload

CAPPED_BY_THE_WINDOW = ("original", "fixed_length", "solver")
FLOODS = {
    "tiny documents": [20] * 400,
    "all long": [64] * 60,
    "all equal": [32] * 120,
    "one document": [64],
    "one document of many windows": [5000],
    "long among tiny": [64 if id % 40 == 0 else 1 for id in range(800)],
    "longer than the window now and then": [150 if id % 17 == 0 else 9 for id in range(120)],
}


def config_of(packing, **changes):
    values = {
        "packing": packing,
        "num_micro_batches": 4,
        "context_window": 64,
        "max_tokens": 128,
        "outlier_thresholds": (24, 48) if packing == "variable_length" else (),
        "packing_window": 2 if packing in ("fixed_length", "solver") else 1,
        "workload": Workload(10, 64, 1, 64),
    }
    return PlannerConfig(**{**values, **changes})


@st.composite
def configs(draw, packing):
    window = draw(st.integers(1, 40))
    return config_of(
        packing,
        num_micro_batches=draw(st.integers(1, 2 if packing == "solver" else 5)),
        context_window=window,
        max_tokens=draw(st.integers(window, 3 * window)),
        outlier_thresholds=tuple(sorted(draw(st.sets(st.integers(1, window), max_size=3)))),
        packing_window=draw(st.integers(1, 2)) if packing in ("fixed_length", "solver") else 1,
        max_age_iterations=draw(st.integers(0, 4)) if packing in ("variable_length", "lookahead") else 0,
        workload=Workload(*draw(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 3)))),
    )


def packer_of(config):
    """The solver searches little here: how good it is, its own tests show."""
    packer = build_packer(config)
    if config.packing == "solver":
        packer.max_nodes = 1
    return packer


def steps_of(config, order, num_steps):
    """(step, micro-batches, what waits, whether there is a further document); until everything is trained."""
    intake, packer = Intake(order), packer_of(config)
    waiting = packer.empty()
    for step in range(1, num_steps + 1):
        if intake.exhausted and not list(waiting):
            return
        intake.step = step
        packed, waiting = packer.pack(waiting, intake)
        yield step, packed, waiting, intake.exhausted


def tokens_of(segments):
    """(epoch, document, token) of every token."""
    for segment in segments:
        for token in range(segment.start, segment.stop):
            yield segment.document.epoch, segment.document.id, token


def check_every_step(config, steps):
    """What holds in every step; returns the tokens that were trained."""
    cap = config.context_window if config.packing in CAPPED_BY_THE_WINDOW else config.max_tokens
    trained = []
    for step, packed, waiting, exhausted in steps:
        assert len(packed) == config.num_micro_batches
        assert all(packed) or exhausted
        for micro_batch in packed:
            assert sum(segment.length for segment in micro_batch) <= cap
            assert all(1 <= segment.length <= config.context_window for segment in micro_batch)
            assert all(1 <= segment.document.arrival <= step for segment in micro_batch)
            trained += tokens_of(micro_batch)
        assert any(packed), "a step trains something"
        held = [*trained, *tokens_of(waiting)]
        assert len(held) == len(set(held)), "no token twice"
    return trained


def everything(lengths):
    return [(0, id, token) for id, length in enumerate(lengths) for token in range(length)]


@pytest.mark.parametrize("packing", PACKERS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_finite_stream_is_trained_whole_each_token_once_below_the_cap(packing, data):
    config = data.draw(configs(packing))
    lengths = data.draw(st.lists(st.integers(1, 3 * config.context_window), min_size=1, max_size=30))
    order = InOrder(KnownLengths(lengths))
    assert sorted(check_every_step(config, steps_of(config, order, 400))) == everything(lengths)


@pytest.mark.parametrize("packing", PACKERS)
@settings(max_examples=25)
@given(data=st.data())
def test_an_endless_stream_fills_every_micro_batch(packing, data):
    config = data.draw(configs(packing))
    lengths = data.draw(st.lists(st.integers(1, 3 * config.context_window), min_size=1, max_size=20))
    check_every_step(config, steps_of(config, EpochOrder(KnownLengths(lengths), 1), 12))


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("flood", FLOODS)
def test_floods_are_trained_whole(packing, flood):
    lengths = FLOODS[flood]
    config = config_of(packing)
    assert sorted(check_every_step(config, steps_of(config, InOrder(KnownLengths(lengths)), 400))) == everything(
        lengths
    )


@pytest.mark.parametrize("packing", PACKERS)
@settings(max_examples=10)
@given(data=st.data())
def test_what_waits_and_the_intake_are_all_that_a_packer_remembers(packing, data):
    config = data.draw(configs(packing))
    lengths = data.draw(st.lists(st.integers(1, 2 * config.context_window), min_size=1, max_size=30))
    intake, waiting = Intake(InOrder(KnownLengths(lengths))), build_packer(config).empty()
    straight = list(steps_of(config, InOrder(KnownLengths(lengths)), 40))
    for step, packed, its_waiting, _ in straight:
        resumed = Intake(InOrder(KnownLengths(lengths)))
        resumed.set_state(intake.state())
        resumed.step = step
        assert Waiting.from_json(waiting.to_json()) == waiting
        found, waiting = packer_of(config).pack(Waiting.from_json(waiting.to_json()), resumed)
        assert (found, waiting) == (packed, its_waiting)
        intake = resumed


@pytest.mark.parametrize("packing", [packing for packing in PACKERS if packing not in ("fixed_length", "solver")])
def test_equal_documents_are_trained_in_the_order_of_their_arrival(packing):
    lengths = [1 + 37 * id % 61 for id in range(600)]
    last: dict[int, int] = {}
    for _, packed, _, _ in steps_of(config_of(packing), InOrder(KnownLengths(lengths)), 100):
        ids: dict[int, list[int]] = {}
        for segment in (segment for held in packed for segment in held):
            ids.setdefault(segment.document.length, []).append(segment.document.id)
        for length, of_length in ids.items():
            assert min(of_length) >= last.get(length, -1), "the same one again only where it was cut"
            last[length] = max(of_length)


@pytest.mark.parametrize("packing", PACKERS)
def test_lengths_as_a_list_and_as_an_array_pack_the_same(packing):
    lengths = [1 + 37 * id % 97 for id in range(40)]
    config = config_of(packing)
    one, other = (list(steps_of(config, InOrder(KnownLengths(kind)), 9)) for kind in (lengths, np.array(lengths)))
    assert one == other

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import CONFIG

from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.packing import PACKERS, Waiting
from titan_wlb.planning.planner import Planner, differences
from titan_wlb.planning.workload import Workload

LENGTHS = np.random.default_rng(0).integers(1, 100, size=50)
ONE_SEGMENT = KnownLengths(LENGTHS)
SEGMENTS = KnownLengths(LENGTHS[:20], LENGTHS[20:23], [], LENGTHS[23:])


def without_layout(plan):
    """What of a plan does not depend on DP and CP."""
    return replace(plan, dp_ranks=(), shards=(), digest="")


@pytest.mark.parametrize("index", [ONE_SEGMENT, SEGMENTS], ids=["one segment", "segments"])
@pytest.mark.parametrize("packing", PACKERS)
def test_restoring_after_any_step_gives_the_same_following_plans_also_on_another_layout(packing, index):
    config = replace(CONFIG, packing=packing)
    planner = Planner(index, config, dp=2, cp=2)
    states, plans = [planner.state], []
    for _ in range(40):
        plans.append(planner.plan())
        states.append(plans[-1].state)
    assert plans[-1].epoch >= 2
    for step, state in enumerate(states[:-1]):
        same, other = Planner(index, config, dp=2, cp=2), Planner(index, config, dp=4, cp=1)
        same.restore(state)
        other.restore(state)
        for expected in plans[step : step + 3]:
            assert replace(same.plan(), digest="") == replace(expected, digest="")
            assert without_layout(other.plan()) == without_layout(expected)


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=20),
    thresholds=st.sets(st.integers(1, 64), max_size=3),
    packing=st.sampled_from(PACKERS),
    cut=st.integers(0, 20),
    stops=st.lists(st.integers(0, 4), max_size=4),
)
def test_restoring_again_and_again_changes_nothing(lengths, thresholds, packing, cut, stops):
    config = replace(CONFIG, packing=packing, outlier_thresholds=tuple(sorted(thresholds)))
    index = KnownLengths(lengths[:cut], lengths[cut:])
    straight, resumed = (Planner(index, config, dp=1, cp=1) for _ in range(2))
    for layout, num_steps in enumerate(stops):
        for _ in range(num_steps):
            assert without_layout(resumed.plan()) == without_layout(straight.plan())
        state, resumed = resumed.state, Planner(index, config, dp=(1, 2, 4)[layout % 3], cp=layout + 1)
        resumed.restore(state)
        assert resumed.state == state == straight.state
    assert without_layout(resumed.plan()) == without_layout(straight.plan())


@pytest.mark.parametrize("packing", [packing for packing in PACKERS if packing != "solver"])  # slow, and like greedy
def test_thousands_of_documents_are_each_trained_once_per_epoch_across_two_resumes_on_other_layouts(packing):
    lengths = np.minimum(np.random.default_rng(7).lognormal(4, 1.3, size=4000).astype(int) + 2, 1500)
    config = replace(CONFIG, packing=packing, num_micro_batches=8, context_window=512, max_tokens=1024,
                     outlier_thresholds=(128, 256, 384), workload=Workload(0, 512, 1))  # fmt: skip
    tokens: Counter = Counter()
    documents = set()
    state = None
    for dp, cp, until_epoch in ((2, 2, 1), (8, 1, 2), (1, 4, 3)):
        planner = Planner(KnownLengths(*np.split(lengths, [1000, 1700])), config, dp=dp, cp=cp)
        if state is not None:
            planner.restore(state)
        plan = planner.plan()
        while True:
            for micro_batch in plan.micro_batches:
                for segment in micro_batch.segments:
                    documents.add(segment.document)
                    for start in range(segment.start, segment.stop):
                        tokens[segment.document.epoch, segment.document.id, start] += 1
            if plan.epoch >= until_epoch and plan.step % 7 == 0:
                break
            plan = planner.plan()
        state = plan.state
    waiting = Waiting.from_json(json.loads(state)["waiting"])
    not_yet = {(segment.document.epoch, segment.document.id) for segment in waiting}
    assert set(tokens.values()) == {1}
    rows = Counter((epoch, id) for epoch, id, _ in tokens)
    for epoch in range(3):
        for id, length in enumerate(lengths.tolist()):
            assert rows[epoch, id] == length or (epoch, id) in not_yet
    assert not any(epoch == 0 for epoch, _ in not_yet), "the first epoch is trained whole"


def test_the_state_does_not_depend_on_the_layout():
    planners = [Planner(KnownLengths(LENGTHS), CONFIG, dp=dp, cp=cp) for dp, cp in ((1, 1), (2, 4), (4, 8))]
    assert len({planner.state for planner in planners}) == 1
    for _ in range(10):
        assert len({planner.plan().state for planner in planners}) == 1


def test_the_state_holds_no_more_than_what_waits():
    planner = Planner(KnownLengths(np.random.default_rng(2).integers(2, 60, size=5000)), CONFIG, dp=1, cp=1)
    sizes = [len(planner.plan().state) for _ in range(300)]
    assert max(sizes) < 4000, "bytes: no list of documents that were trained"


def test_what_of_the_configuration_is_in_the_state_stays_in_force():
    planner = Planner(KnownLengths(LENGTHS), CONFIG, dp=2, cp=1)
    planner.plan()
    state, expected = planner.state, planner.plan()
    changed = replace(CONFIG, packing="original", num_micro_batches=8, max_tokens=64, outlier_thresholds=(),
                      workload=Workload(1, 1, 1), seed=9, sharding="per_sequence")  # fmt: skip
    resumed = Planner(KnownLengths(LENGTHS), changed, dp=2, cp=1)
    resumed.restore(state)
    plan = resumed.plan()
    assert plan.micro_batches == expected.micro_batches
    assert resumed.config == replace(CONFIG, sharding="per_sequence"), "sharding may change on resume"
    assert {shard.strategy for shard in plan.shards} == {"per_sequence"}


def test_differences_name_what_stays_in_force():
    state = Planner(KnownLengths(LENGTHS), CONFIG, dp=2, cp=1).state
    assert differences(state, CONFIG) == []
    assert differences(state, replace(CONFIG, sharding="per_sequence")) == []
    assert differences(state, replace(CONFIG, num_micro_batches=8, outlier_thresholds=(24,))) == [
        "training.global_batch_size: 4 in the checkpoint stays in force, 8 is not used",
        "wlb.outlier_thresholds: [24, 48] in the checkpoint stays in force, [24] is not used",
    ]


def test_a_checkpoint_of_another_index_is_refused():
    state = Planner(KnownLengths(LENGTHS, fingerprint="a"), CONFIG, dp=1, cp=1).state
    for other in (
        Planner(KnownLengths(LENGTHS, fingerprint="b"), CONFIG, dp=1, cp=1),
        Planner(KnownLengths(LENGTHS[::-1], fingerprint="a"), CONFIG, dp=1, cp=1),
    ):
        with pytest.raises(ValueError, match="another document index"):
            other.restore(state)


def test_a_checkpoint_of_a_growing_index_is_resumed_with_what_has_grown_behind_it():
    shorter, longer = KnownLengths(LENGTHS), KnownLengths(LENGTHS, LENGTHS)
    state = Planner(shorter, CONFIG, dp=1, cp=1).plan().state
    resumed, straight = Planner(longer, CONFIG, dp=1, cp=1), Planner(longer, CONFIG, dp=1, cp=1)
    resumed.restore(state)
    straight.plan()
    assert [resumed.plan().micro_batches for _ in range(30)] == [straight.plan().micro_batches for _ in range(30)]
    with pytest.raises(ValueError, match="another document index"):
        Planner(shorter, CONFIG, dp=1, cp=1).restore(straight.state)


def test_a_layout_that_the_checkpoints_n_does_not_divide_over_is_refused():
    state = Planner(KnownLengths(LENGTHS), CONFIG, dp=1, cp=1).state
    planner = Planner(KnownLengths(LENGTHS), replace(CONFIG, num_micro_batches=6), dp=3, cp=1)
    with pytest.raises(ValueError, match="global_batch_size 4 must be a multiple of the 3"):
        planner.restore(state)


@pytest.mark.parametrize("state", [b"", b"\x80", b"[]", b"{}", b"nothing", b'{"version": 99}'])
def test_bytes_that_are_no_state_are_refused(state):
    with pytest.raises(ValueError, match="data position"):
        Planner(KnownLengths(LENGTHS), CONFIG, dp=1, cp=1).restore(state)
    with pytest.raises(ValueError, match="data position"):
        differences(state, CONFIG)

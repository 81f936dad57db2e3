from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import CONFIG, LATENCY

from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.packing import PACKERS
from titan_wlb.planning.packing.dealing import in_order
from titan_wlb.planning.planner import Pipeline, Planner, PlannerConfig
from titan_wlb.planning.sharding import STRATEGIES, shard
from titan_wlb.planning.workload import Workload

LENGTHS = np.random.default_rng(0).integers(1, 100, size=200)


@st.composite
def jobs(draw):
    """(lengths, config, dp, cp) of small jobs, also such where everything waits or one document fills many windows."""
    window = draw(st.integers(1, 40))
    dp = draw(st.integers(1, 3))
    config = PlannerConfig(
        packing=draw(st.sampled_from(PACKERS)),
        num_micro_batches=dp * draw(st.integers(1, 3)),
        context_window=window,
        max_tokens=draw(st.integers(window, 3 * window)),
        outlier_thresholds=tuple(sorted(draw(st.sets(st.integers(1, window), max_size=3)))),
        workload=Workload(*draw(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 3)))),
        seed=draw(st.integers(0, 5)),
    )
    lengths = draw(st.lists(st.integers(1, 3 * window), min_size=1, max_size=25))
    return lengths, config, dp, draw(st.integers(1, 4))


@given(jobs(), st.integers(1, 12))
def test_every_micro_batch_holds_something_and_never_more_than_the_cap(job, num_steps):
    lengths, config, dp, cp = job
    planner = Planner(KnownLengths(lengths), config, dp=dp, cp=cp)
    cap = config.context_window if config.packing == "original" else config.max_tokens
    for step in range(1, num_steps + 1):
        plan = planner.plan()
        assert plan.step == step
        assert len(plan.micro_batches) == config.num_micro_batches
        for micro_batch in plan.micro_batches:
            assert 1 <= micro_batch.tokens <= cap
            assert all(1 <= length <= config.context_window for length in micro_batch.lengths)
            assert micro_batch.cost == config.workload.costs(micro_batch.lengths)


@given(jobs(), st.integers(1, 12))
def test_what_was_drawn_is_trained_or_waits_each_token_once(job, num_steps):
    lengths, config, dp, cp = job
    planner = Planner(KnownLengths(lengths), config, dp=dp, cp=cp)
    plans = [planner.plan() for _ in range(num_steps)]
    trained = [segment for plan in plans for micro_batch in plan.micro_batches for segment in micro_batch.segments]
    rows = {}
    for segment in trained:
        rows.setdefault(segment.document, []).extend(range(segment.start, segment.stop))
    assert all(len(held) == len(set(held)) for held in rows.values())
    drawn = sum(plan.arrived for plan in plans)
    partly = {document for document, held in rows.items() if len(held) < document.length}
    assert len(rows) - len(partly) + plans[-1].waiting_documents == drawn
    tokens_of_waiting = sum(document.length - len(rows[document]) for document in partly)
    assert tokens_of_waiting <= plans[-1].waiting_tokens
    assert len({(document.epoch, document.id) for document in rows}) == len(rows), "drawn once an epoch"
    assert all(document.length == lengths[document.id] for document in rows)


@given(jobs())
def test_the_counts_of_a_plan_are_those_of_its_segments(job):
    lengths, config, dp, cp = job
    planner = Planner(KnownLengths(lengths), config, dp=dp, cp=cp)
    trained = 0
    for _ in range(5):
        plan = planner.plan()
        segments = [segment for micro_batch in plan.micro_batches for segment in micro_batch.segments]
        trained += plan.tokens
        ends = sum(segment.stop == segment.document.length for segment in segments)
        assert plan.num_labels == plan.tokens - ends
        assert plan.delay_trained == sum(s.length * (plan.step - s.document.arrival) for s in segments)
        assert plan.oldest_waiting >= max(plan.step - segment.document.arrival for segment in segments)
        assert plan.waiting_tokens == planner._intake.drawn - trained
        assert plan.tokens == sum(sum(shard.tokens) for shard in plan.shards)


def test_on_one_rank_every_sharding_keeps_documents_whole():
    for sharding in STRATEGIES:
        plan = shard(sharding, (5, 3), 1)
        assert [[chunk.length for chunk in rank] for rank in plan.ranks] == [[5, 3]]


@pytest.mark.parametrize("sharding", STRATEGIES)
@pytest.mark.parametrize("packing", PACKERS)
def test_each_rank_runs_equally_many_micro_batches_sharded_as_configured(packing, sharding):
    config = replace(CONFIG, packing=packing, sharding=sharding)
    planner = Planner(KnownLengths(LENGTHS), config, dp=2, cp=3, latency=LATENCY)
    for _ in range(10):
        plan = planner.plan()
        assert [len(plan.of_dp_rank(rank)) for rank in range(2)] == [2, 2]
        assert sorted(plan.of_dp_rank(0) + plan.of_dp_rank(1)) == [0, 1, 2, 3]
        lengths = [micro_batch.lengths for micro_batch in plan.micro_batches]
        assert list(plan.shards) == [shard(sharding, of_one, 3, LATENCY) for of_one in lengths]
        assert sharding == "adaptive" or {plan.strategy for plan in plan.shards} == {sharding}


def test_original_deals_consecutive_micro_batches_and_variable_length_balances_the_ranks():
    original = Planner(KnownLengths(LENGTHS), replace(CONFIG, packing="original"), dp=2, cp=1)
    assert all(original.plan().dp_ranks == in_order(4, 2) for _ in range(5))
    balanced, consecutive = 0, 0
    planner = Planner(KnownLengths(LENGTHS), CONFIG, dp=2, cp=1)
    for _ in range(20):
        plan = planner.plan()
        costs = [micro_batch.cost for micro_batch in plan.micro_batches]
        balanced += max(sum(costs[place] for place in plan.of_dp_rank(rank)) for rank in range(2))
        consecutive += max(sum(costs[:2]), sum(costs[2:]))
    assert balanced < consecutive


def test_a_ranks_tokens_are_capped_by_exchanging_micro_batches_of_one_step():
    lengths = np.minimum(np.random.default_rng(2).lognormal(4, 1.3, size=4000).astype(int) + 2, 512)
    config = replace(CONFIG, num_micro_batches=8, context_window=512, max_tokens=1024, outlier_thresholds=(),
                     workload=Workload(0, 64, 1))  # fmt: skip
    largest = {}
    plans = {}
    for cap in (0, 2300):
        planner = Planner(KnownLengths(lengths), replace(config, max_rank_tokens=cap), dp=2, cp=1)
        plans[cap] = [planner.plan() for _ in range(30)]
        largest[cap] = [
            max(sum(plan.micro_batches[place].tokens for place in plan.of_dp_rank(rank)) for rank in range(2))
            for plan in plans[cap]
        ]
    assert max(largest[2300]) <= 2300 < max(largest[0])
    for capped, free in zip(plans[2300], plans[0], strict=True):
        assert capped.micro_batches == free.micro_batches and capped.state == free.state, "nothing goes to another step"


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_schedules_shape_is_run_in_its_order_and_predicted_to_beat_balance(ranks):
    lengths = np.minimum(np.random.default_rng(1).lognormal(5, 1.2, size=3000).astype(int) + 2, 2048)
    config = replace(CONFIG, num_micro_batches=2 * ranks, context_window=2048, max_tokens=4096,
                     outlier_thresholds=(512, 1024, 1536), workload=Workload(0, 512, 1))  # fmt: skip
    pipeline = Pipeline("1F1B", ranks)
    times = {}
    for shape in ("equal", "schedule"):
        planner = Planner(
            KnownLengths(lengths), replace(config, micro_batch_shape=shape), dp=2, cp=1, pipeline=pipeline
        )
        plans = [planner.plan() for _ in range(40)]
        assert all([len(plan.of_dp_rank(rank)) for rank in range(2)] == [ranks, ranks] for plan in plans)
        times[shape] = sum(map(pipeline.step_time_over_balanced, plans)) / len(plans)
    assert times["schedule"] < 1 < times["equal"]
    assert (pipeline.in_flight, Pipeline("GPipe", ranks).in_flight, Pipeline().in_flight) == (ranks, 0, 1)


def test_variable_length_balances_work_where_original_does_not():
    lengths = np.minimum(np.random.default_rng(1).lognormal(5, 1.2, size=3000).astype(int) + 2, 2048)
    config = replace(
        CONFIG, context_window=2048, max_tokens=4096, outlier_thresholds=(512, 1024, 1536), workload=Workload(0, 512, 1)
    )
    degrees = {}
    for packing in ("original", "variable_length"):
        planner = Planner(KnownLengths(lengths), replace(config, packing=packing), dp=1, cp=1)
        degrees[packing] = sum(planner.plan().imbalance_degree for _ in range(50)) / 50
    assert degrees["original"] > 1.2
    assert degrees["variable_length"] < 1.1


@pytest.mark.parametrize("num_queues", [0, 1, 2, 5])
@pytest.mark.parametrize("lengths", [[64], [63, 64, 40, 41, 50], [1000], [10_000, 64, 30]])
def test_where_everything_waits_in_queues_the_step_draws_a_bounded_number_of_further_batches(lengths, num_queues):
    thresholds = tuple(range(10, 60, 10))[:num_queues]
    config = replace(CONFIG, outlier_thresholds=thresholds)
    planner = Planner(KnownLengths(lengths), config, dp=1, cp=1)
    for _ in range(30):
        before = planner._intake.drawn
        plan = planner.plan()
        assert all(micro_batch.segments for micro_batch in plan.micro_batches)
        batches = (planner._intake.drawn - before) / (4 * 64)
        overshoot = max(lengths) / (4 * 64)
        assert batches <= (num_queues + 2) * (1 + overshoot)


def test_a_further_batch_is_drawn_by_a_step_that_lacks_documents_and_by_no_other():
    config = replace(CONFIG, num_micro_batches=3, outlier_thresholds=(64,))
    whole = Planner(KnownLengths([64]), config, dp=1, cp=1)
    assert [whole.plan().arrived for _ in range(4)] == [3] * 4, "three documents arrive and are released"
    # A queue each for documents of 63 and 64 tokens: the global batch of 192 tokens is four documents, two of each,
    # and neither queue releases. With the next one of three or four documents one of them holds three.
    halves = Planner(KnownLengths([63, 64]), replace(config, outlier_thresholds=(63, 64)), dp=1, cp=1)
    first = halves.plan()
    assert first.arrived in (7, 8)
    assert sum(len(micro_batch.segments) for micro_batch in first.micro_batches) in (3, 6)


def test_epochs_follow_one_another_and_reshuffle():
    planner = Planner(KnownLengths([10] * 30), replace(CONFIG, outlier_thresholds=()), dp=1, cp=1)
    orders = {}
    for _ in range(20):
        plan = planner.plan()
        for micro_batch in plan.micro_batches:
            for segment in micro_batch.segments:
                orders.setdefault(segment.document.epoch, []).append(segment.document.id)
    assert plan.epoch >= 10
    complete = [order for epoch, order in orders.items() if epoch < plan.epoch - 1]
    assert all(sorted(order) == list(range(30)) for order in complete)
    assert len({tuple(order) for order in complete}) == len(complete)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": "greedy"}, "wlb.packing 'greedy' must be one of original, variable_length"),
        ({"sharding": "ring"}, "wlb.sharding 'ring' must be one of per_sequence, per_document"),
        ({"num_micro_batches": 0}, "training.global_batch_size 0 must be at least 1"),
        ({"context_window": 0}, "training.seq_len 0 must be at least 1"),
        ({"max_tokens": 63}, "wlb.max_tokens 63 must be at least training.seq_len 64"),
        ({"outlier_thresholds": (48, 24)}, r"wlb.outlier_thresholds \[48, 24\] must rise"),
        ({"outlier_thresholds": (0, 24)}, r"wlb.outlier_thresholds \[0, 24\] must rise"),
        ({"outlier_thresholds": (65,)}, "at most training.seq_len 64"),
    ],
)
def test_a_value_that_is_not_valid_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(CONFIG, **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lengths", "dp", "message"),
    [
        ([], 1, "index is empty"),
        ([3, 0, 2], 1, "document 1 of the index has no token"),
        ([3], 3, "training.global_batch_size 4 must be a multiple of the 3 data-parallel ranks"),
        ([3], 8, "training.global_batch_size 4 must be a multiple of the 8 data-parallel ranks"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(lengths, dp, message):
    with pytest.raises(ValueError, match=message):
        Planner(KnownLengths(lengths), CONFIG, dp=dp, cp=1)


@settings(max_examples=20)
@given(st.integers(1, 1024))
def test_any_number_of_micro_batches_is_filled(num_micro_batches):
    config = replace(CONFIG, num_micro_batches=num_micro_batches)
    plan = Planner(KnownLengths(LENGTHS), config, dp=1, cp=1).plan()
    assert [len(micro_batch.segments) > 0 for micro_batch in plan.micro_batches] == [True] * num_micro_batches

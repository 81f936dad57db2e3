import pytest

from titan_wlb.planning.packing.measures import (
    PackingMeasures,
    autocorrelation,
    imbalance_degree,
    imbalance_time_weighted,
    in_flight_tokens,
)
from titan_wlb.planning.plan import Document, MicroBatch, Segment, StepPlan


def plan(step, costs, lengths, *, dp_ranks=None, waiting_tokens=0, delay_trained=0, oldest_waiting=0):
    micro_batches = tuple(
        MicroBatch((Segment(Document(0, length), 0, length),), cost)
        for cost, length in zip(costs, lengths, strict=True)
    )
    return StepPlan(
        step=step,
        epoch=0,
        micro_batches=micro_batches,
        dp_ranks=dp_ranks or (0,) * len(costs),
        shards=(),
        num_labels=0,
        arrived=0,
        waiting_documents=0,
        waiting_tokens=waiting_tokens,
        delay_trained=delay_trained,
        oldest_waiting=oldest_waiting,
        digest="",
        state=b"",
    )


def test_imbalance_degree_is_largest_over_mean():
    assert imbalance_degree([30, 10]) == 1.5
    assert imbalance_degree([7, 7, 7]) == 1.0


def test_the_drawn_example_weighs_heavy_steps_more():
    assert imbalance_time_weighted([[2, 2], [30, 10]]) == pytest.approx(32 / 22)


def test_measures_over_steps_counted_by_hand():
    measures = PackingMeasures()
    measures.add(plan(1, [2, 2], [10, 20], waiting_tokens=15))
    measures.add(plan(2, [30, 10], [40, 30], waiting_tokens=5, delay_trained=15, oldest_waiting=1))
    assert measures.num_steps == 2
    assert measures.imbalance_degree_mean == 1.25
    assert measures.imbalance_degree_p95 == 1.5
    assert measures.imbalance_time_weighted == pytest.approx(32 / 22)
    assert measures.delay_iterations_mean == (15 + 5) / 2 / 50
    assert measures.delay_trained_mean == 15 / 100
    assert measures.oldest_waiting == 1
    assert measures.tokens_per_step == 50
    assert measures.tokens_per_step_cv == 20 / 50
    assert measures.tokens_per_step_max == 70
    assert measures.micro_batch_tokens_max == 40
    assert measures.work_per_token == 44 / 100
    assert measures.time_per_token == (2 * 2 + 2 * 30) / 100


def test_the_95th_percentile_is_a_step_that_happened():
    measures = PackingMeasures()
    for step in range(20):
        measures.add(plan(step + 1, [100 + step, 100 - step], [1, 1]))
    assert measures.imbalance_degree_p95 == 1.18, "the 19th of 20"


def test_no_step_measures_as_balanced_and_without_delay():
    measures = PackingMeasures()
    assert (measures.imbalance_degree_p95, measures.imbalance_time_weighted, measures.delay_iterations_mean) == (
        1,
        1,
        0,
    )


def test_the_drawn_examples_of_autocorrelation():
    assert autocorrelation([0, 1] * 4) == -0.875
    assert autocorrelation([0] * 4 + [1] * 4) == 0.625
    assert autocorrelation([3, 3, 3]) == autocorrelation([]) == 0


def test_the_share_of_long_documents_is_one_of_tokens():
    measures = PackingMeasures(long_from=10)
    for step, long in enumerate((90, 10, 90, 10)):
        measures.add(plan(step + 1, [1] * 11, [long, *[(100 - long) // 10] * 10]))
    assert measures.long_share_autocorrelation == pytest.approx(-0.75)


def test_in_flight_are_the_tokens_that_a_rank_holds_at_once():
    step = plan(1, [1] * 6, [5, 9, 4, 3, 8, 8], dp_ranks=(0, 0, 0, 0, 1, 1))
    assert in_flight_tokens(plan(1, [1] * 4, [5, 9, 4, 3]), 2) == 14, "the drawn example"
    assert [in_flight_tokens(step, in_flight) for in_flight in (1, 2, 3, 4, 0)] == [9, 16, 18, 21, 21]
    measures = PackingMeasures(in_flight=2)
    measures.add(step)
    assert measures.in_flight_tokens_max == 16

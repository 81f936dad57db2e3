"""Training in every layout is training in one process, and that is stock TorchTitan's, document by document.

All from one seed checkpoint, in fp32: gradients of every parameter after step 1, then loss and gradient norm of six
steps, clipping on. The runs are made by parity_worlds.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from parity_layouts import EAGER, MAX_NORM, MICRO_BATCHES, SCHEDULE_SHAPE, STEPS, WINDOW
from parity_results import assert_same_training, of_all_ranks, of_rank_0, segments

PACKINGS = ["one_process", "one_process_original"]


@pytest.mark.parametrize("layout", EAGER, ids=lambda layout: layout.name)
def test_layout_trains_as_one_process(runs, layout):
    results = of_all_ranks(runs, layout)
    reference = of_rank_0(runs, layout.reference)
    for result in results:
        assert [plan.micro_batches for plan in result.plans] == [plan.micro_batches for plan in reference.plans]
        known = {name: reference.gradients[name] for name in result.gradients}
        assert_same_training(result, replace(reference, gradients=known))
    assert set().union(*(result.gradients for result in results)) == set(reference.gradients), "a parameter is missing"


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_process_trains_as_stock_torchtitan_does_document_by_document(runs, packing):
    assert_same_training(of_rank_0(runs, packing), of_rank_0(runs, f"stock_{packing}"))


def test_original_and_variable_length_give_the_same_loss_and_gradients_for_the_same_documents(runs):
    original, variable = of_rank_0(runs, "exact_fit_original"), of_rank_0(runs, "exact_fit_variable_length")
    ((original_plan,), (variable_plan,)) = original.plans, variable.plans
    assert all(segment.length == segment.document.length for segment in segments(original_plan)), (
        "original cut a document: run tests/documents/make_documents.py again"
    )
    assert sorted(segments(original_plan), key=id_of) == sorted(segments(variable_plan), key=id_of)
    assert original_plan.tokens == MICRO_BATCHES * WINDOW
    assert micro_batches_of_ids(original_plan) != micro_batches_of_ids(variable_plan)
    assert_same_training(variable, original)


@pytest.mark.parametrize("layout", [SCHEDULE_SHAPE], ids=lambda layout: layout.name)
def test_micro_batches_shaped_for_a_schedule_give_the_same_loss_and_gradients_for_the_same_documents(runs, layout):
    equal = of_rank_0(runs, "exact_fit_variable_length")
    for result in of_all_ranks(runs, layout):
        (plan,) = result.plans
        assert sorted(segments(plan), key=id_of) == sorted(segments(equal.plans[0]), key=id_of)
        lightest, *_ = works = [micro_batch.cost for micro_batch in plan.micro_batches]
        assert lightest == min(works), "of 1F1B's four the first is the lightest"
        known = {name: equal.gradients[name] for name in result.gradients}
        assert_same_training(result, replace(equal, gradients=known))


@pytest.mark.parametrize("packing", PACKINGS)
def test_clipping_bites_in_every_step(runs, packing):
    assert min(of_rank_0(runs, packing).norms) > MAX_NORM


def test_the_documents_are_hard_ones(runs):
    plans = of_rank_0(runs, "one_process").plans
    first = segments(plans[0])
    assert {3, 7, WINDOW} <= {segment.length for segment in first}
    assert any(segment.document.length > WINDOW for segment in first)
    assert all(len({micro_batch.tokens for micro_batch in plan.micro_batches}) >= 3 for plan in plans)
    assert min(micro_batch.tokens for plan in plans for micro_batch in plan.micro_batches) < 2 * 4
    assert {segment.start for plan in plans for segment in segments(plan)} == {0, WINDOW, 2 * WINDOW}
    assert len(plans) == STEPS
    original = of_rank_0(runs, "one_process_original").plans
    assert any(segment.start % WINDOW for plan in original for segment in segments(plan)), "no document is cut"


def id_of(segment) -> int:
    return segment.document.id


def micro_batches_of_ids(plan) -> set[frozenset[int]]:
    return {frozenset(map(id_of, micro_batch.segments)) for micro_batch in plan.micro_batches}

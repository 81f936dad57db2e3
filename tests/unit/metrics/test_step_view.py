import json

import pytest

from titan_wlb.metrics import step_view
from titan_wlb.metrics.step_view import ACTION_FIELDS, actions_text, plan_text, ranks_shown
from titan_wlb.planning.plan import Document, MicroBatch, Segment, ShardPlan, StepPlan
from titan_wlb.records import Layout, MicroBatchCost, Section, StepRecord, StepTimes


def micro_batch(cost, *lengths, arrival=7):
    documents = [Document(i, length, arrival) for i, length in enumerate(lengths)]
    return MicroBatch(tuple(Segment(document, 0, document.length) for document in documents), cost)


def plan_of(micro_batches, dp_ranks):
    shards = tuple(ShardPlan("per_document", each.lengths, ()) for each in micro_batches)
    return StepPlan(7, 0, tuple(micro_batches), tuple(dp_ranks), shards, 0, 0, 0, 0, 0, 0, "", b"")


def view_of(plan, costs=()):
    return json.loads(plan_text(plan, costs, packing="original", context_window=4096))


def test_the_drawing_of_a_plan():
    first = micro_batch(5_000_000, 600, 300)
    plan = plan_of([first, micro_batch(1, 50), micro_batch(2, 70, arrival=6)], [1, 0, 1])
    view = view_of(plan, [MicroBatchCost(1, 0, 4.2004, 4.0), MicroBatchCost(1, 1, 1.0, 2.0)])
    assert (view["version"], view["step"], view["packing"], view["context_window"]) == (1, 7, "original", 4096)
    assert view["micro_batches"][0] == {
        "dp_rank": 1,
        "place": 0,
        "tokens": 900,
        "sharding": "per_document",
        "predicted_ms": 4.2,
        "measured_ms": 4.0,
        "num_documents": 2,
        "lengths": [600, 300],
        "arrivals": [7, 7],
    }
    assert [(each["dp_rank"], each["place"]) for each in view["micro_batches"]] == [(1, 0), (0, 0), (1, 1)]
    assert view["micro_batches"][2]["measured_ms"] == 2.0 and view["micro_batches"][2]["arrivals"] == [6]
    assert view["micro_batches"][1]["measured_ms"] is None


def test_of_many_documents_those_of_the_costliest_micro_batches_are_listed(monkeypatch):
    monkeypatch.setattr(step_view, "MAX_DOCUMENTS", 5)
    plan = plan_of([micro_batch(1, *[1] * 2), micro_batch(9, *[1] * 3), micro_batch(5, *[1] * 2)], [0, 0, 0])
    view = view_of(plan)
    assert [each["lengths"] for each in view["micro_batches"]] == [None, [1, 1, 1], [1, 1]]
    assert [each["num_documents"] for each in view["micro_batches"]] == [2, 3, 2]


def record(rank, compute):
    times = (compute, 0, 0.5, 0, 0, 0, 0, 0)
    return StepRecord(rank, StepTimes(7, (Section("head", -1, -1, 0.0, (0,) * 8), Section("F", 0, 1, 1.25, times))))


def test_an_action_is_told_with_its_start_and_duration():
    view = json.loads(actions_text([record(0, 10.0), record(1, 20.0)], Layout(dp=2)))
    assert (view["step"], view["num_ranks"], tuple(view["fields"])) == (7, 2, ACTION_FIELDS)
    assert [rank["rank"] for rank in view["ranks"]] == [0, 1]
    action = dict(zip(view["fields"], view["ranks"][1]["actions"][1], strict=True))
    assert action["kind"] == "F" and action["micro_batch"] == 1
    assert (action["start"], action["wall"], action["compute"], action["starved"]) == (1.25, 20.5, 20.0, 0.5)


def test_of_many_ranks_whole_pipelines_are_told_the_slowest_and_the_fastest(monkeypatch):
    monkeypatch.setattr(step_view, "MAX_RANKS", 4)
    assert ranks_shown([9, 5, 7, 9, 8, 7], Layout(pp=2, dp=3)) == [0, 2, 3, 5]


@pytest.mark.parametrize("layout", [Layout(pp=8, dp=16, cp=4, tp=8), Layout(pp=128, dp=4), Layout(dp=4096)])
def test_the_slowest_rank_is_always_among_those_told(layout):
    compute = [1.0] * layout.size
    compute[layout.size // 3] = 2.0
    shown = ranks_shown(compute, layout)
    assert layout.size // 3 in shown and len(shown) <= max(step_view.MAX_RANKS, layout.pp)
    assert len(shown) % layout.pp == 0

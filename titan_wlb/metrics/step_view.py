"""One step to look into, as JSON for the event file: what each micro-batch held, and what each rank did when.

``wlb/plan`` of two DP ranks with a micro-batch each (``place``: in the order in which the DP rank runs its own):

    {"version": 1, "step": 7, "packing": "variable_length", "context_window": 4096, "micro_batches": [
        {"dp_rank": 0, "place": 0, "tokens": 900, "sharding": "per_document", "predicted_ms": 4.2, "measured_ms": 4.0,
         "num_documents": 2, "lengths": [600, 300], "arrivals": [7, 6]}, ...]}

``wlb/actions`` of the same step, ms, on each rank's own clock from the beginning of its step:

    {"version": 1, "step": 7, "num_ranks": 2, "fields": ["kind", "stage", "micro_batch", "start", "wall", "compute",
     ...], "ranks": [{"rank": 0, "actions": [["head", -1, -1, 0, 1.2, 1.0, ...], ["F", 0, 0, 1.2, 9.8, ...], ...]},
     ...]}

Both are bounded. A plan lists all micro-batches, but the lengths and arrivals of at most ``MAX_DOCUMENTS`` documents:
of the costliest micro-batches first; where they are left out, ``lengths`` and ``arrivals`` are null. Actions are of at
most ``MAX_RANKS`` ranks, whole pipelines: those with the slowest ranks, and the fastest one. Source: ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from titan_wlb.planning.plan import StepPlan
from titan_wlb.records import COMPUTE, TIMES, Layout, MicroBatchCost, StepRecord

STEP_VIEW_VERSION = 1
MAX_DOCUMENTS = 8192
MAX_RANKS = 64
ACTION_FIELDS = ("kind", "stage", "micro_batch", "start", "wall", *TIMES)


def plan_text(plan: StepPlan, costs: Sequence[MicroBatchCost], *, packing: str, context_window: int) -> str:
    """What ``wlb/plan`` holds of a step.

    Args:
        plan: of the step.
        costs: of its micro-batches; those without one have null as predicted and measured time.
        packing: name of the packing in force.
        context_window: tokens.
    """
    known = {(cost.dp_rank, cost.place): cost for cost in costs}
    listed = _listed([len(micro_batch.segments) for micro_batch in plan.micro_batches], _costliest_first(plan))
    places = [0] * (max(plan.dp_ranks) + 1)
    micro_batches = []
    for i, (micro_batch, dp_rank, shard) in enumerate(zip(plan.micro_batches, plan.dp_ranks, plan.shards, strict=True)):
        cost = known.get((dp_rank, places[dp_rank]))
        micro_batches.append(
            {
                "dp_rank": dp_rank,
                "place": places[dp_rank],
                "tokens": micro_batch.tokens,
                "sharding": shard.strategy,
                "predicted_ms": None if cost is None else round(cost.predicted_ms, 3),
                "measured_ms": None if cost is None else round(cost.measured_ms, 3),
                "num_documents": len(micro_batch.segments),
                "lengths": list(micro_batch.lengths) if i in listed else None,
                "arrivals": [segment.document.arrival for segment in micro_batch.segments] if i in listed else None,
            }
        )
        places[dp_rank] += 1
    return _json(
        {
            "version": STEP_VIEW_VERSION,
            "step": plan.step,
            "packing": packing,
            "context_window": context_window,
            "micro_batches": micro_batches,
        }
    )


def actions_text(records: Sequence[StepRecord], layout: Layout) -> str:
    """What ``wlb/actions`` holds of a step.

    Args:
        records: of all ranks, in the order of ranks.
        layout: of the job.
    """
    ranks = []
    for rank in ranks_shown([record.times.times_ms[COMPUTE] for record in records], layout):
        actions = [
            [s.kind, s.stage, s.micro_batch, *(round(ms, 2) or 0 for ms in (s.start_ms, s.wall_ms, *s.times_ms))]
            for s in records[rank].times.sections
        ]
        ranks.append({"rank": rank, "actions": actions})
    return _json(
        {
            "version": STEP_VIEW_VERSION,
            "step": records[0].times.step,
            "num_ranks": len(records),
            "fields": ACTION_FIELDS,
            "ranks": ranks,
        }
    )


def ranks_shown(compute_ms: Sequence[float], layout: Layout) -> list[int]:
    """The ranks whose actions are told, ascending: all, or those of the slowest pipelines and of the fastest.

        pp 2, dp 3, at most 4 ranks; compute 9 5 7 | 9 8 7      dp 0 (slowest rank: 9) and dp 2 (7): ranks 0 2 3 5

    Args:
        compute_ms: per rank.
        layout: of the job; its pipelines are told as a whole.
    """
    if layout.size <= MAX_RANKS:
        return list(range(layout.size))
    width = layout.size // layout.pp  # ranks of one pipeline stage
    pipelines = [range(first, layout.size, width) for first in range(width)]
    slowest = sorted(pipelines, key=lambda ranks: -max(compute_ms[rank] for rank in ranks))
    number = max(MAX_RANKS // layout.pp, 1)
    shown = slowest[:number] if number == 1 else [*slowest[: number - 1], slowest[-1]]
    return sorted(rank for ranks in shown for rank in ranks)


def _costliest_first(plan: StepPlan) -> list[int]:
    return sorted(range(len(plan.micro_batches)), key=lambda i: -plan.micro_batches[i].cost)


def _listed(num_documents: Sequence[int], order: Sequence[int]) -> set[int]:
    """Micro-batches whose documents fit into the bound, taken in this order until one does not."""
    listed: set[int] = set()
    left = MAX_DOCUMENTS
    for i in order:
        left -= num_documents[i]
        if left < 0:
            break
        listed.add(i)
    return listed


def _json(values: dict[str, object]) -> str:
    return json.dumps(values, separators=(",", ":"))

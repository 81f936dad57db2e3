"""Which documents were in the step whose loss jumped: a JSON line a step, by one rank."""

import json
from pathlib import Path

from titan_wlb.metrics.jsonl import end_torn_line
from titan_wlb.planning.plan import StepPlan


class DocumentsLog:
    """Appends to ``<dump_folder>/wlb/documents.jsonl``.

    A resumed run appends its steps again; of two lines with the same step the later one counts, and a line that a kill
    tore counts as none.
    """

    def __init__(self, dump_folder: str):
        self.path = Path(dump_folder) / "wlb" / "documents.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end_torn_line(self.path)

    def append(self, plan: StepPlan) -> None:
        """Writes the step's line and flushes it, so that a killed run loses no step that it trained."""
        with open(self.path, "a") as file:
            file.write(json.dumps(as_record(plan)) + "\n")


def as_record(plan: StepPlan) -> dict:
    """The step as plain JSON: ``documents`` are [id, start, stop, arrival step], ``cost`` is in nanoseconds."""
    return {
        "step": plan.step,
        "epoch": plan.epoch,
        "micro_batches": [
            {
                "dp_rank": dp_rank,
                "tokens": micro_batch.tokens,
                "cost": micro_batch.cost,
                "sharding": shard.strategy,
                "documents": [
                    [segment.document.id, segment.start, segment.stop, segment.document.arrival]
                    for segment in micro_batch.segments
                ],
            }
            for micro_batch, dp_rank, shard in zip(plan.micro_batches, plan.dp_ranks, plan.shards, strict=True)
        ],
    }

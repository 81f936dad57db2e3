"""Runs that were never run: folders with the records of planted steps, for the report's tests."""

import json
from pathlib import Path

import numpy as np

from titan_wlb.metrics.jsonl import RecordWriter
from titan_wlb.records import TIMES, Layout, Section, StepRecord, StepTimes


def section(kind, start, stage=-1, micro_batch=-1, **times):
    """A section of a step: ``compute=3.0, cp=1.0`` in ms."""
    assert set(times) <= set(TIMES)
    return Section(kind, stage, micro_batch, float(start), tuple(float(times.get(name, 0)) for name in TIMES))


def step_of(layout: Layout, step: int, works, slow: dict[int, float] | None = None) -> list[StepRecord]:
    """Records of a step in which all stages run their micro-batches forward, then backward, and FSDP waits at the end.

    Args:
        works: [dp, micro_batches], ms of a forward; a backward takes twice that.
        slow: rank -> factor on its compute.
    """
    own = []
    for rank in range(layout.size):
        _, dp_rank, _, _ = layout.coordinates(rank)
        own.append([(slow or {}).get(rank, 1.0) * work for work in works[dp_rank]])
    longest = max(3 * sum(of_rank) for of_rank in own)
    records = []
    for rank, of_rank in enumerate(own):
        stage, start, sections = layout.coordinates(rank)[0], 1.0, [section("head", 0, data=0.5, compute=0.5)]
        for kind, factor in (("F", 1.0), ("B", 2.0)):
            for place, work in enumerate(of_rank):
                sections.append(section(kind, start, stage, place, compute=factor * work))
                start += factor * work
        sections.append(section("norm", start, compute=1.0, fsdp=longest + 2.0 - 3 * sum(of_rank)))
        sections.append(section("tail", longest + 4.0, compute=2.0))
        records.append(StepRecord(rank, StepTimes(step, tuple(sections)), 0.0, 2.0))
    return records


def measures_of(records, step, works, lost=None):
    """What the reporter puts beside the records."""
    flat = [3 * work for of_rank in works for work in of_rank]
    wall = max(record.ms("wall") for record in records)
    degree = len(flat) * max(flat) / sum(flat)
    values = {
        "wlb/imbalance_degree/predicted": degree,
        "wlb/imbalance_degree/measured": degree,
        "wlb/tokens_per_step": 1000.0,
        "wlb/tokens_per_second": 1e6 / wall,
        "wlb/delay_iterations": 0.25,
        "loss": 8.0 - 0.1 * step,
        "micro_batches": [
            [dp_rank, place, 1.5 * work, 3 * work]
            for dp_rank, of_rank in enumerate(works)
            for place, work in enumerate(of_rank)
        ],
    }
    return values | {f"wlb/lost/{cause}": ms for cause, ms in (lost or {}).items()}


def write_run(folder: Path, layout: Layout, steps, works=None, slow=None, lost=None, documents=False) -> Path:
    """Appends a process's logged steps to a run.

    Args:
        works: step -> [dp, micro_batches]; by default 10 ms each.
        slow: step -> {rank: factor}; by default no rank.
        lost: "<cause>_ms" and "slow_rank" -> value, of every step.
    """
    works = works or (lambda step: [[10.0, 10.0]] * layout.dp)
    writer = RecordWriter(folder / "wlb" / "records.jsonl")
    for step in steps:
        records = step_of(layout, step, works(step), slow(step) if slow else None)
        writer.write(records, layout, measures_of(records, step, works(step), lost))
        if documents:
            with (folder / "wlb" / "documents.jsonl").open("a") as file:
                file.write(json.dumps(documents_line(step, works(step))) + "\n")
    writer.close()
    return folder


def documents_line(step, works):
    """Micro-batches of two documents each; a document of d tokens costs 1000 d + d^2 ns."""
    micro_batches = []
    for dp_rank, of_rank in enumerate(works):
        for place, work in enumerate(of_rank):
            lengths = [int(100 * work), 50 + 10 * place]
            entries = [[10 * step + i, 0, length, step] for i, length in enumerate(lengths)]
            cost = sum(1000 * length + length**2 for length in lengths)
            micro_batches.append(
                {"dp_rank": dp_rank, "tokens": sum(lengths), "cost": cost, "sharding": "hybrid", "documents": entries}
            )
    return {"step": step, "epoch": 0, "micro_batches": micro_batches}


def uneven(layout: Layout, micro_batches: int, seed: int = 0):
    """Works that differ from step to step."""

    def works(step):
        rng = np.random.default_rng([seed, step])
        return rng.uniform(5, 20, size=(layout.dp, micro_batches)).round(2).tolist()

    return works

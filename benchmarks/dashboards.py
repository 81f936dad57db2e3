"""What the dashboards cost: python benchmarks/dashboards.py writing | files | posting | fetching

writing     on the rank that logs, per logged step, by number of ranks; bytes of the event file and of records.jsonl
files       size of the event file after 1,000 logged steps: scalars, tables, plans and actions
posting     a logged step on 2, 4 and 8 CPU ranks: posting to the store, beside gathering by collectives
fetching    the thread of the rank that logs, with the records of up to 16,384 ranks in the store

See clocks.md for what they gave.
"""

from __future__ import annotations

import gc
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch.distributed as dist
import torch.multiprocessing as mp
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from titan_wlb.compat.store import store_with_queues
from titan_wlb.metrics.event_file import EventFile
from titan_wlb.metrics.gather import Groups, gather_records
from titan_wlb.metrics.history import History
from titan_wlb.metrics.jsonl import RecordWriter
from titan_wlb.metrics.mailbox import Mailbox, from_bytes, to_bytes
from titan_wlb.metrics.scalars import scalars
from titan_wlb.metrics.step_view import actions_text, plan_text
from titan_wlb.planning.plan import Document, MicroBatch, Segment, ShardPlan, StepPlan
from titan_wlb.records import Layout, Section, StepRecord, StepTimes, Totals, micro_batch_costs
from titan_wlb.records.per_rank import per_rank_rows
from titan_wlb.records.transfer import with_transfer

LAYOUTS = (Layout(pp=2, dp=2, cp=2), Layout(pp=4, dp=16, cp=8), Layout(pp=8, dp=64, cp=8))
MICRO_BATCHES = 16  # of a DP rank
DOCUMENTS = 22  # of a micro-batch
COLLECTIVES_MS = {"cp": (0.5,) * 256, "fsdp": (1.0,) * 64}  # of four layers a rank
PARTS = ("unpack", "transfer", "costs", "history", "rows", "scalars", "table", "view", "line", "checksum")
STEPS = 5
POSTED = 50


def records_of(layout: Layout, step: int) -> list[StepRecord]:
    """A step of 1F1B as clocks would have measured it: 35 sections a rank, noise in every number."""
    noise = random.Random(step)
    records = []
    for rank in range(layout.size):
        stage = layout.coordinates(rank)[0]
        actions = [(kind, stage, i) for i in range(MICRO_BATCHES) for kind in ("F", "B")]
        marks = [("head", -1, -1), *actions, ("norm", -1, -1), ("tail", -1, -1)]
        sections = tuple(
            Section(*mark, 10.0 * i, (8 + noise.random(), *(noise.random() for _ in range(7))))
            for i, mark in enumerate(marks)
        )
        records.append(StepRecord(rank, StepTimes(step, sections, COLLECTIVES_MS, Totals(10, (1.0,) * 8))))
    return records


def plan_of(layout: Layout, step: int) -> StepPlan:
    """As many micro-batches of documents."""
    noise = random.Random(step)
    number = layout.dp * MICRO_BATCHES
    batches = []
    for _ in range(number):
        documents = [Document(noise.randrange(10**6), noise.randrange(1, 9999), step) for _ in range(DOCUMENTS)]
        segments = tuple(Segment(document, 0, document.length) for document in documents)
        batches.append(MicroBatch(segments, noise.randrange(10**8)))
    shards = tuple(ShardPlan("per_document", batch.lengths, ()) for batch in batches)
    ranks = tuple(i % layout.dp for i in range(number))
    return StepPlan(step, 0, tuple(batches), ranks, shards, 1, 1, 1, 1, 1, 1, "", b"")


def writing() -> None:
    """Milliseconds, median of ``STEPS`` logged steps each, and what a step adds to the files."""
    gc.disable()  # as TorchTitan does
    print(
        " ranks   " + "".join(f"{name:>10}" for name in PARTS) + "  ms" + f"{'table':>10}{'view':>10}{'line':>10}  KB"
    )
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            times, sizes = _written(layout, Path(folder))
        figures = "".join(f"{median(times[name]):>10.1f}" for name in PARTS)
        print(f"{layout.size:>6}   {figures}    " + "".join(f"{size / 1e3:>10.1f}" for size in sizes), flush=True)


def _written(layout: Layout, folder: Path) -> tuple[dict[str, list[float]], tuple[float, float, float]]:
    history = History(layout)
    writer = SummaryWriter(str(folder / "tb"), max_queue=1000)
    events, lines = EventFile(writer, layout), RecordWriter(folder / "records.jsonl")
    predicted = {(dp, place): 5.0 for dp in range(layout.dp) for place in range(MICRO_BATCHES)}
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    view_bytes = line_bytes = table_bytes = 0

    def timed(name: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = action()
        times[name].append(1e3 * (time.perf_counter() - start))
        return result

    for step in range(1, STEPS + 1):
        plan = plan_of(layout, step)
        sent = [to_bytes(record.rank, record.times) for record in records_of(layout, step)]
        posted = timed("unpack", lambda sent=sent: [from_bytes(row) for row in sent])
        records = timed("transfer", lambda posted=posted: with_transfer(posted, layout, layout.dp))
        costs = timed("costs", lambda records=records: micro_batch_costs(records, layout, predicted))
        timed("history", lambda of=(records, costs): history.add(of[0], predicted_imbalance_degree=1.0, costs=of[1]))
        rows = timed("rows", lambda records=records: per_rank_rows(records))
        values = timed("scalars", lambda of=(records, costs, rows): _scalars(layout, *of))
        timed("table", lambda step=step, rows=rows: events.write_step(step, rows))
        view = timed("view", lambda of=(plan, costs, records): (_plan_text(*of[:2]), actions_text(of[2], layout)))
        timed("line", lambda of=(records, values): lines.write(of[0], layout, of[1]))
        table = np.asarray(rows, dtype=np.float32).tobytes()
        timed("checksum", lambda table=table: masked_crc32c(table))
        view_bytes += sum(map(len, view))
        table_bytes += len(table)
    writer.close()
    lines.close()
    line_bytes = (folder / "records.jsonl").stat().st_size
    return times, (table_bytes / STEPS, view_bytes / STEPS, line_bytes / STEPS)


def _scalars(layout: Layout, records: Any, costs: Any, rows: Any) -> dict[str, float]:
    return scalars(
        records,
        layout,
        predicted_imbalance_degree=1.0,
        costs=costs,
        delay_iterations=0.5,
        tokens=1,
        rows=rows,
    )


def _plan_text(plan: StepPlan, costs: Any) -> str:
    return plan_text(plan, costs, packing="original", context_window=131_072)


def files() -> None:
    """Megabytes, with the same step a thousand times; a minute and more at the most ranks."""
    for layout in LAYOUTS:
        records, plan = records_of(layout, 1), plan_of(layout, 1)
        rows = per_rank_rows(records)
        view = _plan_text(plan, []), actions_text(records, layout)
        values = _scalars(layout, records, [], rows)
        with tempfile.TemporaryDirectory() as folder:
            writer = SummaryWriter(folder, max_queue=1000)
            events = EventFile(writer, layout)
            start = time.perf_counter()
            for step in range(1, 1001):
                for tag, value in values.items():
                    writer.add_scalar(tag, value, step)
                events.write_step(step, rows, lambda view=view: view)
            writer.close()
            seconds = time.perf_counter() - start
            megabytes = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        print(f"{layout.size} ranks: {megabytes:.1f} MB with {len(values)} scalars, in {seconds:.1f} s", flush=True)


def posting() -> None:
    """Milliseconds a logged step on the training thread, the mean over steps of the slowest rank."""
    for num_ranks in (2, 4, 8):
        mp.spawn(_post, args=(num_ranks, 29_000 + random.randrange(900)), nprocs=num_ranks)


def _post(rank: int, num_ranks: int, port: int) -> None:
    store = dist.TCPStore("127.0.0.1", port, num_ranks, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    times = StepTimes(1, records_of(Layout(), 1)[0].times.sections, COLLECTIVES_MS)
    queues = store_with_queues()
    assert queues is not None, "a TCPStore has queues"
    box = Mailbox(queues, rank, num_ranks, is_receiver=rank == 0)
    figures = [
        _per_step(lambda: gather_records(times, Groups(cp=dist.group.WORLD), metrics_rank=0)),
        _per_step(lambda: box.post(times)),
    ]
    if rank == 0:
        for _ in range(POSTED):
            box.expect(1)
    everybodys: list = [None] * num_ranks
    dist.all_gather_object(everybodys, figures)
    if rank == 0:
        gathered, posted = (max(column) for column in zip(*everybodys, strict=True))
        print(f"{num_ranks} ranks: gathered in {gathered:.2f} ms, posted in {posted:.3f} ms", flush=True)
        box.finish()
    dist.barrier()
    box.close()
    dist.destroy_process_group()


def _per_step(action: Callable[[], object]) -> float:
    taken = []
    for _ in range(POSTED):
        dist.barrier()
        start = time.perf_counter()
        action()
        taken.append(1e3 * (time.perf_counter() - start))
    return median(taken)


def fetching() -> None:
    """Seconds of the receiving thread until a step is complete; one process posts for all ranks."""
    for num_ranks in (512, 4096, 16_384):
        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=60))
        template = records_of(Layout(), 1)[0]
        box = Mailbox(store, 0, num_ranks, is_receiver=True)
        start = time.perf_counter()
        for rank in range(num_ranks):
            sender = Mailbox(store, rank, num_ranks, is_receiver=False)
            sender.post(template.times)
        posted = time.perf_counter()
        box.expect(1)
        ((_, records),) = box.finish()
        fetched = time.perf_counter()
        assert len(records) == num_ranks, "every rank's record"
        kilobytes = len(to_bytes(0, template.times)) / 1e3
        print(
            f"{num_ranks} ranks: posted in {posted - start:.2f} s by one process, "
            f"fetched in {fetched - posted:.2f} s, {kilobytes:.1f} KB a rank",
            flush=True,
        )


if __name__ == "__main__":
    {"writing": writing, "files": files, "posting": posting, "fetching": fetching}[sys.argv[1]]()

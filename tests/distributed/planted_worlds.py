"""Trains while one of two ranks is made late, and writes what their clocks saw: python planted_worlds.py FOLDER REQUEST

REQUEST is JSON: {layout: [cells whose delays are wanted]}. Two processes keep their process group over all layouts. A
layout runs under the real trainer, its delays by turns with steps without any, in an order drawn for each round:

    round 1    forward, sleep, 50 ms | nothing | loader, work, 100 ms | nothing | ...
    round 2    nothing | backward, work, 50 ms | ...

so that the machine's load and the documents are the same for all. Cells whose medians a loaded machine has spoilt run
again, up to twice. See planted_cases.py for the results.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import titan_wlb.compat.cpu  # noqa: F401  (before torchtitan)

# isort: split
import torch
import torch.distributed as dist
import torchtitan.train
from parity_layouts import DOCUMENTS
from parity_worlds import parsed
from planted_cases import CELL_NAMES, LAYOUTS, NONE, STEPS, STEPS_UNPLANTED, Cell, Layout, Results, Step
from torchtitan.models.llama3.model.args import TransformerModelArgs

from titan_wlb import models
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.planning.plan import StepPlan
from titan_wlb.records import TIMES, StepTimes
from titan_wlb.trainer import WLBTrainer

RUNS_AT_MOST = 4
LAST_START_S = 180  # seconds from the first one: nothing begins again behind it
WARMUP_STEPS = 3
SECONDS_AT_MOST = 400
WINDOW = 512
FLAVOR = "planted"
SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 258, "multiple_of": 32}
SHARED = (
    "--model.name=llama3_wlb",
    f"--model.flavor={FLAVOR}",
    "--model.hf_assets_path=",
    "--training.dataset=jsonl",
    f"--training.dataset_path={DOCUMENTS / 'parity.jsonl'}",
    f"--training.seq_len={WINDOW}",
    "--training.mixed_precision_param=float32",
    "--debug.seed=1",
    "--metrics.log_freq=1",
    "--activation_checkpoint.mode=none",
    "--parallelism.fsdp_reshard_after_forward=never",
    "--comm.trace_buf_size=0",
    "--parallelism.pipeline_parallel_first_stage_less_layers=0",
    "--parallelism.pipeline_parallel_last_stage_less_layers=0",
)


class Plant:
    """Makes this rank late, once in a step that is armed.

    forward     between a block's K/V projection and its attention, in the step's first micro-batch
    backward    between a block's output projection and its attention, in the last micro-batch
    loader      in ``next`` of the data iterator, on the thread that trains
    """

    def __init__(self, trainer: WLBTrainer):
        self.calls_in = {"forward": 0, "backward": trainer.micro_batches_per_step - 1, "loader": 0}
        block = next(iter(trainer.model_parts[-1].layers.values()))
        block.attention.wv.register_forward_hook(lambda *_: self.pass_through("forward"))
        block.attention.wo.register_full_backward_hook(lambda *_: self.pass_through("backward"))
        self.arm(None)

    def arm(self, cell: Cell | None) -> None:
        """For one step."""
        self.cell, self.calls, self.stamps = cell, 0, (0, 0)

    def pass_through(self, place: str) -> None:
        """Called in every place, late or not."""
        if self.cell is None or self.cell.place != place:
            return
        if self.calls == self.calls_in[place]:
            start = time.perf_counter_ns()
            if self.cell.kind == "sleep":
                time.sleep(self.cell.delay_ms / 1e3)
            else:
                until = time.thread_time_ns() + self.cell.delay_ms * 1_000_000
                while time.thread_time_ns() < until:
                    pass
            self.stamps = start, time.perf_counter_ns()
        self.calls += 1

    def over(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The data iterator, late where it should be."""
        self.pass_through("loader")
        yield next(batches)


class PlantedTrainer(WLBTrainer):
    """The trainer, one of whose ranks is late as ``cells`` says for each step; notes what its clock saw."""

    def __init__(self, job_config: Any, layout: Layout, cells: list[str]):
        super().__init__(job_config)
        self.is_late = dist.get_rank() == layout.late_rank
        self.cells = cells
        self.plant = Plant(self)
        self.seen: list[Step] = []
        log = self.reporter.log

        def observed(times: StepTimes, plan: StepPlan, loss: float) -> None:
            self.seen.append(self.observe(times))
            log(times, plan, loss)

        self.reporter.log = observed

    def train_step(self, data_iterator: Iterator[Any]) -> None:
        cell = self.cells[self.step - 1]
        self.plant.arm(CELL_NAMES[cell] if cell and self.is_late else None)
        super().train_step(self.plant.over(data_iterator))

    def observe(self, times: StepTimes) -> Step:
        """This rank's step that ended just now."""
        intervals = self.clock.intervals()
        inside_ns: dict[str, int] = {}
        start, stop = self.plant.stamps
        for begin, until, category in intervals:
            overlap = min(stop, until) - max(start, begin)
            if overlap > 0:
                inside_ns[category] = inside_ns.get(category, 0) + overlap
        return Step(
            step=times.step,
            cell=self.cells[times.step - 1],
            moments=len(intervals) + 1,
            wall_ns=intervals[-1][1] - intervals[0][0],
            times_ms={name: times.ms(name) for name in (*TIMES, "wall")},
            categories=sorted({category for _, _, category in intervals}),
            planted_ns=stop - start,
            inside_ns=inside_ns,
        )


def main(folder: Path, request: dict[str, list[str]]) -> int:
    """Starts the ranks and waits for them; 0 where all went well."""
    FLAVORS[FLAVOR] = TransformerModelArgs(**SHAPE)
    models.register()
    # TorchTitan's first rank sleeps two seconds at the end of a run
    torchtitan.train.time = SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda seconds: None)
    gc.freeze()  # ranks would visit all that was imported at every collection
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run_rank, args=(rank, folder, request)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + SECONDS_AT_MOST
    while any(rank.is_alive() for rank in ranks):
        if time.monotonic() > deadline or any(rank.exitcode for rank in ranks):
            for rank in ranks:
                rank.kill()
            return 1
        time.sleep(0.1)
    return max(rank.exitcode for rank in ranks)


def run_rank(rank: int, folder: Path, request: dict[str, list[str]]) -> None:
    """One process: all layouts."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
        measure({layout: request[layout.name] for layout in LAYOUTS if layout.name in request}, rank, folder)
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def measure(wanted: dict[Layout, list[str]], rank: int, folder: Path) -> None:
    """Runs the layouts with their cells; then, behind all of them, again what a loaded machine has spoilt."""
    started = time.monotonic()
    for run in range(RUNS_AT_MOST):
        missed = {}
        for layout, cells in wanted.items():
            late = torch.tensor(time.monotonic() - started > LAST_START_S)
            dist.all_reduce(late, dist.ReduceOp.MAX)
            if run and late:
                return
            results = folder / layout.name / str(run)
            seen = train(layout, order_of(cells), results)
            (results / f"rank{rank}.json").write_text(json.dumps([asdict(step) for step in seen[WARMUP_STEPS:]]))
            dist.barrier()
            wrong = Results(folder, layout).missed()
            if wrong:
                missed[layout] = [cell for cell in cells if cell in wrong]
        wanted = missed


def order_of(cells: list[str]) -> list[str]:
    """What is planted in each step of a run."""
    draw = random.Random(0)
    order = [NONE] * WARMUP_STEPS
    for _ in range(STEPS):
        planted = [*cells, *[NONE] * (STEPS_UNPLANTED // STEPS)]
        order += draw.sample(planted, len(planted))
    return order


def train(layout: Layout, cells: list[str], results: Path) -> list[Step]:
    """One run, as ``titan_wlb.train`` makes it."""
    args = [*SHARED, *layout.flags, f"--job.dump_folder={results}", f"--training.steps={len(cells)}"]
    trainer = PlantedTrainer(parsed(args, 2), layout, cells)
    trainer.train()
    trainer.close()
    seen = trainer.seen
    del trainer
    gc.collect()
    return seen


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))

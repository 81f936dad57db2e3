"""Trains while one rank is made late, and leaves the product's own records: python causes_worlds.py FOLDER REQUEST

REQUEST is JSON: {"layouts": {layout: [cells]}, "rounds": n}. As planted_worlds.py, whose trainer runs here; every
layout has processes of its own, two or four. See causes_cases.py for the results.
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
from pathlib import Path
from types import SimpleNamespace

import titan_wlb.compat.cpu  # noqa: F401  (before torchtitan)

# isort: split
import torch
import torch.distributed as dist
import torchtitan.train
from causes_cases import LAYOUTS, RANKS
from parity_worlds import parsed
from planted_cases import NONE, Layout
from planted_worlds import FLAVOR, SHAPE, SHARED, WARMUP_STEPS, PlantedTrainer
from torchtitan.models.llama3.model.args import TransformerModelArgs

from titan_wlb import models
from titan_wlb.models.llama3_wlb.flavors import FLAVORS

SECONDS_AT_MOST = 300  # of a layout
PLAIN = 2  # steps without a delay, of each round
LAYERS = 4  # two of each stage, also where a rank has two stages


def main(folder: Path, layouts: dict[str, list[str]], rounds: int) -> int:
    """Runs one layout after the other; 0 where all went well."""
    FLAVORS[FLAVOR] = TransformerModelArgs(**SHAPE | {"n_layers": LAYERS})
    models.register()
    # TorchTitan's first rank sleeps two seconds at the end of a run
    torchtitan.train.time = SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda seconds: None)
    gc.freeze()  # ranks would visit all that was imported at every collection
    wanted = [layout for layout in LAYOUTS if layout.name in layouts]
    return max(run(folder / layout.name, layout, order_of(layouts[layout.name], rounds)) for layout in wanted)


def run(folder: Path, layout: Layout, cells: list[str]) -> int:
    """One layout: starts its ranks and waits for them."""
    folder.mkdir()
    fork = multiprocessing.get_context("fork")
    size = RANKS.get(layout.name, 2)
    ranks = [fork.Process(target=run_rank, args=(rank, size, folder, layout, cells)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + SECONDS_AT_MOST
    while any(rank.is_alive() for rank in ranks):
        if time.monotonic() > deadline or any(rank.exitcode for rank in ranks):
            for rank in ranks:
                rank.kill()
            return 1
        time.sleep(0.1)
    return max(rank.exitcode or 0 for rank in ranks)


def run_rank(rank: int, size: int, folder: Path, layout: Layout, cells: list[str]) -> None:
    """One process."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size)
        args = [*SHARED, *layout.flags, f"--job.dump_folder={folder}", f"--training.steps={len(cells)}"]
        trainer = PlantedTrainer(parsed(args, size), layout, cells)
        trainer.train()
        trainer.close()
        if rank == layout.late_rank:
            late = [[step.step, step.cell, step.planted_ns / 1e6] for step in trainer.seen[WARMUP_STEPS:]]
            (folder / "late.json").write_text(json.dumps(late))
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def order_of(cells: list[str], rounds: int) -> list[str]:
    """What is planted in each step: in each round every cell and some steps without any, in an order drawn for it."""
    draw = random.Random(0)
    order = [NONE] * WARMUP_STEPS
    for _ in range(rounds):
        order += draw.sample([*cells, *[NONE] * PLAIN], len(cells) + PLAIN)
    return order


if __name__ == "__main__":
    request = json.loads(sys.argv[2])
    sys.exit(main(Path(sys.argv[1]), request["layouts"], request["rounds"]))

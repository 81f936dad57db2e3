"""Runs every layout of parity_layouts.py and leaves its results in a folder: python parity_worlds.py FOLDER [NAME ...]

One process imports TorchTitan (seconds) and forks the ranks: 1, then 2, 4 and 8. The ranks of a size keep their process
group and run all layouts of this size one after the other. Where a rank fails, its layout gets an error instead of
results, and fresh ranks go on behind it.

    FOLDER/seed/step-0/        TorchTitan's seed checkpoint
    FOLDER/<layout>/rank0.pt   a Result
    FOLDER/<layout>/error.txt  what went wrong
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import titan_wlb.compat.cpu  # noqa: F401  (before torchtitan)

# isort: split
import torch
import torch.distributed as dist
import torchtitan.train
from parity_layouts import FLAVOR, LAYOUTS, PARITY, SHAPE, SHARED, Layout
from parity_results import Result
from parity_stock import train_stock
from torch.distributed.tensor import DTensor
from torchtitan.config import ConfigManager
from torchtitan.models.llama3.model.args import TransformerModelArgs

from titan_wlb import models
from titan_wlb.job_config import JobConfig
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.trainer import WLBTrainer
from titan_wlb.validate import check_config

SECONDS_PER_WORLD = 400
CHECK_AGAINST_STOCK = ("one_process", "one_process_original")


class ObservedTrainer(WLBTrainer):
    """The trainer, with a look at gradients, plans and what it logs."""

    def __init__(self, job_config: JobConfig):
        super().__init__(job_config)
        self.result = Result()
        log = self.metrics_processor.log

        def observed(step: int, mean_loss: float, max_loss: float, norm: float, **kwargs: Any) -> None:
            self.result.losses.append(mean_loss)
            self.result.norms.append(norm)
            self.result.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
            log(step, mean_loss, max_loss, norm, **kwargs)

        self.metrics_processor.log = observed

    def _forward_backward(self, batch: Any) -> torch.Tensor:
        loss = super()._forward_backward(batch)
        self.result.plans.append(batch.plan)
        if self.step == 1:
            self.result.gradients = full_gradients(self.model_parts)
        return loss


def main(folder: Path, names: list[str]) -> None:
    """Runs the named layouts, or all."""
    FLAVORS[FLAVOR] = TransformerModelArgs(**SHAPE)
    models.register()
    # TorchTitan's first rank sleeps two seconds at the end of a run
    torchtitan.train.time = SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda seconds: None)
    gc.freeze()  # ranks would visit all that was imported at every collection
    layouts = [layout for layout in LAYOUTS if not names or layout.name in names]
    for layout in layouts:
        (folder / layout.name).mkdir(parents=True, exist_ok=True)
    for ranks in sorted({layout.ranks for layout in layouts}):
        left = [layout for layout in layouts if layout.ranks == ranks]
        while left:
            started = time.monotonic()
            done = run_world(ranks, left, folder)
            print(f"{ranks} ranks: {done} layouts in {time.monotonic() - started:.1f} s", flush=True)
            left = left[done + 1 :]


def run_world(ranks: int, layouts: list[Layout], folder: Path) -> int:
    """Starts the ranks, waits for them; how many layouts went well before one failed, or all."""
    fork = multiprocessing.get_context("fork")
    store = folder / f"store-{ranks}-{layouts[0].name}"
    processes = [fork.Process(target=run_rank, args=(rank, ranks, store, layouts, folder)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + SECONDS_PER_WORLD
    while any(process.is_alive() for process in processes):
        if time.monotonic() > deadline or any(process.exitcode for process in processes):
            for process in processes:
                process.terminate()  # a rank prints where it is, see run_rank
            time.sleep(1)
            for process in processes:
                process.kill()
                process.join()
            break
        time.sleep(0.1)
    for done, layout in enumerate(layouts):
        if not all((folder / layout.name / f"rank{rank}.pt").exists() for rank in range(ranks)):
            error = folder / layout.name / "error.txt"
            if not error.exists():
                codes = [process.exitcode for process in processes]
                error.write_text(f"no result within {SECONDS_PER_WORLD} s; exit codes {codes}, stacks in the output")
            return done
    return len(layouts)


def run_rank(rank: int, ranks: int, store: Path, layouts: list[Layout], folder: Path) -> None:
    """One process: all layouts of its world."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    faulthandler.register(15)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for layout in layouts:
        try:
            if ranks == 1 and not (folder / "seed").exists():
                create_seed_checkpoint(folder / "seed")
            result = train(layout, folder)
            torch.save(result, folder / layout.name / f"rank{rank}.part")
            os.replace(folder / layout.name / f"rank{rank}.part", folder / layout.name / f"rank{rank}.pt")
        except BaseException:
            with suppress(FileExistsError), open(folder / layout.name / "error.txt", "x") as error:
                error.write(f"rank {rank}\n{traceback.format_exc()}")  # the first one is the cause
            os._exit(1)
    dist.barrier()
    os._exit(0)


def create_seed_checkpoint(folder: Path) -> None:
    """TorchTitan's own, as ``main`` makes it."""
    args = [
        *SHARED,
        *PARITY,
        f"--job.dump_folder={folder}",
        "--checkpoint.folder=.",
        "--checkpoint.create_seed_checkpoint",
    ]
    trainer = WLBTrainer(parsed(args, 1))
    trainer.checkpointer.save(curr_step=0, last_step=True)
    trainer.close()


def train(layout: Layout, folder: Path) -> Result:
    """The run of one layout; with it stock TorchTitan's, where that is asked for."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    seed = str(folder / "seed" / "step-0")
    config = parsed(layout.args(seed, str(folder / "runs")), layout.ranks)
    trainer = ObservedTrainer(config)
    trainer.train()
    trainer.close()
    result = trainer.result
    if layout.name in CHECK_AGAINST_STOCK:
        losses, norms, gradients = train_stock(config, trainer.model_args, result.plans, trainer.parallel_dims)
        (folder / f"stock_{layout.name}").mkdir(exist_ok=True)
        torch.save(Result(losses, norms, gradients), folder / f"stock_{layout.name}" / "rank0.pt")
    del trainer
    gc.collect()
    return result


def parsed(args: list[str], ranks: int) -> JobConfig:
    """As the entry point parses and checks it."""
    config = ConfigManager(config_cls=JobConfig).parse_args(args)
    check_config(config, ranks)
    return config


def full_gradients(model_parts: list[torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Each parameter's gradient by the name that it has in checkpoints, whole; a collective."""
    gradients = {}
    for part in model_parts:
        for name, parameter in part.named_parameters():
            for wrapper in ("_checkpoint_wrapped_module.", "_orig_mod."):
                name = name.replace(wrapper, "")
            gradient = parameter.grad
            gradients[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).detach().clone()
    return gradients


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

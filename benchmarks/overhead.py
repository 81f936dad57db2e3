"""What balancing costs where nothing is to be balanced: python benchmarks/overhead.py [--pairs 30] [--json -]

Every micro-batch is one document that fills the window, so that packing, sharding and document masks change nothing.

    ours / stock    WLBTrainer against TorchTitan's own Trainer with its own Llama, in the same processes
    CP 2 / one rank WLBTrainer against itself, at the same documents

Both sides start from the same parameters, train the same tokens and take turns step by step (A B, B A, ...): a ratio
is of neighbours, so that a machine that slows down slows both. Every step's losses must agree, or the run stops: the
work compared is the same. The clock times ``train_step`` from a barrier to its end.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a rank is a core

import titan_wlb.compat.cpu  # noqa: F401  (before torchtitan)

# isort: split
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torchtitan.components.loss import build_cross_entropy_loss
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import build_optimizers
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import Transformer, TransformerModelArgs, parallelize_llama
from torchtitan.protocols.train_spec import TrainSpec, register_train_spec
from torchtitan.train import Trainer
from tqdm import tqdm

from titan_wlb import models
from titan_wlb.compat.fsdp_waits import install_fsdp_waits, remove_fsdp_waits
from titan_wlb.data.dataloader import StepBatch
from titan_wlb.job_config import JobConfig
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.planning.planner import Planner
from titan_wlb.trainer import WLBTrainer
from titan_wlb.validate import check_config

FLAVOR = STOCK = "overhead"
BOS, EOS, NO_LABEL = 256, 257, -100
NUM_DOCUMENTS = 64
TOLERANCE = 1e-5  # of the losses, relative
WARM_UP = 3  # steps of each side


@dataclass(frozen=True)
class Side:
    """A trainer: "stock" or "ours", its layout, and its micro-batches of a step over all ranks."""

    kind: str
    micro_batches: int
    dp: int = 1
    cp: int = 1

    @property
    def ranks(self) -> int:
        """Processes that it takes."""
        return self.dp * self.cp


@dataclass(frozen=True)
class Case:
    """``subject`` is divided by ``baseline``. Sides of equally many ranks live in the same processes."""

    name: str
    subject: Side
    baseline: Side


def stock_case(name: str, dp: int, accumulation: int) -> Case:
    """Ours against stock, ``accumulation`` micro-batches a rank and step."""
    return Case(name, Side("ours", dp * accumulation, dp), Side("stock", dp * accumulation, dp))


CASES = (
    stock_case("one rank, ours / stock", 1, 1),
    stock_case("FSDP 2, ours / stock", 2, 1),
    stock_case("one rank, 4 micro-batches, ours / stock", 1, 4),
    stock_case("FSDP 2, 4 micro-batches, ours / stock", 2, 4),
    Case("ours, CP 2 / one rank", Side("ours", 1, cp=2), Side("ours", 1)),
)


def main() -> None:
    """Runs the cases and prints a table, or JSON."""
    options = parse()
    shape = {"dim": options.dim, "n_layers": options.layers, "n_heads": options.heads, "n_kv_heads": options.kv_heads}
    FLAVORS[FLAVOR] = TransformerModelArgs(**shape, vocab_size=258, multiple_of=256, rope_theta=500000)
    models.register()
    register_train_spec(STOCK, stock_spec(dataclasses.replace(FLAVORS[FLAVOR])))
    logging.getLogger().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    gc.freeze()  # ranks are forked, and would visit all that was imported at every collection

    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder) / "documents.jsonl", options.window)
        cases = [case for case in CASES if options.case in case.name]
        with tqdm(total=len(cases) * (WARM_UP + options.pairs), unit="pair", disable=options.quiet) as progress:
            for case in cases:
                progress.set_description(case.name)
                results.append(measure(case, Path(folder), options, progress))
    if options.json:
        text = json.dumps({"options": vars(options), "torch": torch.__version__, "cases": results}, indent=1)
        sys.stdout.write(text + "\n") if options.json == "-" else Path(options.json).write_text(text + "\n")
    if options.json != "-":
        print(table(results))


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="steps of each side, after the warm-up")
    parser.add_argument("--window", type=int, default=1024, help="context window, tokens; a document fills it")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures of every pair; - for stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


def measure(case: Case, folder: Path, options: argparse.Namespace, progress: tqdm) -> dict[str, Any]:
    """Steps of both sides in turn -> their times, milliseconds, and the ratios of neighbours."""
    sides = {"subject": case.subject, "baseline": case.baseline}
    by_ranks = {side.ranks: {} for side in sides.values()}
    for name, side in sides.items():
        by_ranks[side.ranks][name] = side
    worlds = {ranks: World(ranks, mine, folder, options) for ranks, mine in by_ranks.items()}
    steps: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    load = os.getloadavg()[0]
    try:
        for pair in range(WARM_UP + options.pairs):
            for name in sorted(sides, reverse=pair % 2 == 0):
                steps[name].append(worlds[sides[name].ranks].step(name))
            ours, theirs = steps["subject"][-1][2], steps["baseline"][-1][2]
            assert abs(ours - theirs) <= TOLERANCE * abs(theirs), f"{case.name}: pair {pair}: losses {ours}, {theirs}"
            progress.update()
    finally:
        for world in worlds.values():
            world.stop()
    result: dict[str, Any] = {"name": case.name, "load_before": load, "last_loss": steps["subject"][-1][2]}
    for i, what in enumerate(("step_ms", "cpu_ms")):
        mine, other = ([step[i] for step in steps[name][WARM_UP:]] for name in ("subject", "baseline"))
        result[what] = {"subject": mine, "baseline": other, "ratio": [a / b for a, b in zip(mine, other, strict=True)]}
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: medians, and the smallest and largest ratio of a pair. Cores: CPU time / step time of the subject.

    Fewer cores than ranks means that ranks waited, for each other or for a core that another program had.
    """
    lines = [
        "| | step, ms | against | step ratio | CPU, ms | against | CPU ratio | cores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cells = [result["name"]]
        for what in ("step_ms", "cpu_ms"):
            ratio = result[what]["ratio"]
            cells += [f"{statistics.median(result[what][side]):.0f}" for side in ("subject", "baseline")]
            cells.append(f"**{statistics.median(ratio):.3f}** ({min(ratio):.2f} to {max(ratio):.2f})")
        cores = zip(result["cpu_ms"]["subject"], result["step_ms"]["subject"], strict=True)
        cells.append(f"{statistics.median(cpu / step for cpu, step in cores):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


class World:
    """Ranks that share a process group and hold one trainer for each of their sides."""

    def __init__(self, ranks: int, sides: dict[str, Side], folder: Path, options: argparse.Namespace):
        fork = multiprocessing.get_context("fork")
        store = folder / f"store-{time.monotonic_ns()}"
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(ranks):
            mine, theirs = fork.Pipe()
            process = fork.Process(
                target=run_rank, args=(rank, ranks, store, sides, folder, options, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def step(self, name: str) -> tuple[float, float, float]:
        """One step of a side: (the slowest rank's ms, CPU ms of all ranks and their threads, loss)."""
        for pipe in self.pipes:
            pipe.send(name)
        answers = [pipe.recv() for pipe in self.pipes]
        wall, cpu, loss = zip(*answers, strict=True)
        return max(wall), sum(cpu), sum(loss)

    def stop(self) -> None:
        """Ends the processes."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            process.kill()


def run_rank(
    rank: int,
    ranks: int,
    store: Path,
    sides: dict[str, Side],
    folder: Path,
    options: argparse.Namespace,
    pipe: Connection,
) -> None:
    """One process: builds its trainers, then does the steps that it is asked for."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    trainers: dict[str, Any] = {}
    for name, side in sorted(sides.items(), reverse=True):  # ours first: its plans say what stock trains
        config = configuration(side, folder, options)
        planned = trainers.get("subject")
        trainers[name] = OursObserved(config) if side.kind == "ours" else StockObserved(config, planned, folder)
        copy_parameters(trainers[name])
    iterators = {name: trainer.batch_generator(trainer.dataloader) for name, trainer in trainers.items()}
    pipe.send("ready")
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            os._exit(0)
        pipe.send(timed_step(trainers[name], iterators[name]))


def timed_step(trainer: Any, iterator: Iterator[Any]) -> tuple[float, float, float]:
    """(wall ms, CPU ms of this process, this rank's share of the loss)."""
    remove_fsdp_waits()  # of this process, put there by ours; stock must not pass through them
    if isinstance(trainer, WLBTrainer):
        install_fsdp_waits(trainer.model_parts, trainer.clock)
    gc.collect()
    trainer.losses.clear()
    dist.barrier()
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    trainer.step += 1
    trainer.train_step(iterator)
    wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
    return wall / 1e6, cpu / 1e6, sum(loss.item() for loss in trainer.losses)


def configuration(side: Side, folder: Path, options: argparse.Namespace) -> JobConfig:
    """What both trainers are given; neither logs."""
    steps = WARM_UP + options.pairs
    args = [
        "--model.name=llama3_wlb",
        f"--model.flavor={FLAVOR}",
        "--model.hf_assets_path=",
        f"--job.dump_folder={folder}",
        "--training.dataset=jsonl",
        f"--training.dataset_path={folder / 'documents.jsonl'}",
        f"--training.seq_len={options.window}",
        f"--training.global_batch_size={side.micro_batches}",
        "--training.mixed_precision_param=float32",
        f"--training.steps={steps}",
        "--lr_scheduler.warmup_steps=1",
        "--optimizer.lr=1e-4",
        "--activation_checkpoint.mode=none",
        f"--metrics.log_freq={steps + 1}",
        "--comm.trace_buf_size=0",
        f"--parallelism.data_parallel_shard_degree={side.dp}",
        f"--parallelism.context_parallel_degree={side.cp}",
    ]
    config = ConfigManager(config_cls=JobConfig).parse_args(args)
    check_config(config, side.ranks)
    return config


class OursObserved(WLBTrainer):
    """Our trainer, its losses kept."""

    def __init__(self, config: JobConfig):
        super().__init__(config)
        self.losses: list[torch.Tensor] = []
        self.metrics_processor.should_log = lambda step: False

    def _forward_backward(self, batch: StepBatch) -> torch.Tensor:
        assert all(len(micro_batch.shard.lengths) == 1 for micro_batch in batch.micro_batches), "one document each"
        loss = super()._forward_backward(batch)
        self.losses.append(loss.detach())
        return loss


class StockObserved(Trainer):
    """TorchTitan's trainer on ready tokens of the documents that ``ours`` is going to plan, its losses kept."""

    def __init__(self, config: JobConfig, ours: WLBTrainer, folder: Path):
        config.model.name = STOCK
        config.training.local_batch_size = 1
        super().__init__(config)
        self.losses: list[torch.Tensor] = []
        self.metrics_processor.should_log = lambda step: False
        texts = [json.loads(line)["text"] for line in (folder / "documents.jsonl").read_text().splitlines()]
        lengths = [config.training.seq_len] * NUM_DOCUMENTS
        planner = Planner(lengths, ours.dataloader.planner.config, dp=ours.layout.dp, cp=1)
        self.dataloader = []
        for _ in range(config.training.steps):
            plan = planner.plan()
            for place in plan.of_dp_rank(dist.get_rank()):
                (segment,) = plan.micro_batches[place].segments
                tokens = torch.tensor([[BOS, *texts[segment.document.id].encode(), EOS]])
                labels = torch.cat([tokens[:, 1:], torch.tensor([[NO_LABEL]])], dim=1)
                self.dataloader.append(({"input": tokens}, labels))

    def forward_backward_step(self, **kwargs: Any) -> torch.Tensor:
        """TorchTitan's."""
        loss = super().forward_backward_step(**kwargs)
        self.losses.append(loss.detach())
        return loss


def stock_spec(model_args: TransformerModelArgs) -> TrainSpec:
    """TorchTitan's Llama 3 with sdpa, as its own spec has it, without a tokenizer and a dataloader."""

    def parallelize(model: Any, parallel_dims: Any, config: JobConfig) -> Any:
        model = parallelize_llama(model, parallel_dims, config)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # gloo knows no scaled sum; the one thing that is not stock
                module.set_force_sum_reduction_for_comms(True)
        return model

    return TrainSpec(
        model_cls=Transformer,
        model_args={FLAVOR: model_args},
        parallelize_fn=parallelize,
        pipelining_fn=None,
        build_optimizers_fn=build_optimizers,
        build_lr_schedulers_fn=build_lr_schedulers,
        build_dataloader_fn=None,
        build_tokenizer_fn=None,
        build_loss_fn=build_cross_entropy_loss,
    )


def copy_parameters(trainer: Trainer) -> None:
    """Gives a trainer the parameters that every trainer gets."""
    torch.manual_seed(0)
    reference = Transformer(trainer.model_args)
    with torch.no_grad():
        reference.init_weights()
    (model,) = trainer.model_parts
    set_model_state_dict(model, reference.state_dict(), options=StateDictOptions(full_state_dict=True))


def write_documents(path: Path, window: int) -> None:
    """Documents of ``window`` tokens, BOS and EOS included, of random letters."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz      "
    with path.open("w") as file:
        for _ in range(NUM_DOCUMENTS):
            file.write(json.dumps({"text": "".join(draw.choices(letters, k=window - 2))}) + "\n")


if __name__ == "__main__":
    main()

"""Whether a packing changes what a model learns: python benchmarks/convergence.py [train] [evaluate] [report]

Trains the demo's small model through the real program with each packing and seed, one run after the other on one rank,
each for as many steps as bring it nearest to the same number of tokens (equal seeds have equal parameters to start
with, and draw documents in the same order); evaluates every final model on documents that no run has trained; prints
the tables and draws the picture of convergence.md. Without a part, all three. What an earlier call finished is not
done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from convergence_report import draw, evaluation_table, training_table
from tqdm import tqdm

from titan_wlb.metrics.jsonl import read_records
from titan_wlb.planning.planner import Planner
from titan_wlb.records import Layout

if TYPE_CHECKING:
    import torch

    from titan_wlb.data.index import Index
    from titan_wlb.job_config import JobConfig

ROOT = Path(__file__).parent.parent
PACKINGS = {
    "original": [],
    "fixed_length, 1 global batch": ["--wlb.packing_window", "1"],
    "fixed_length, 8 global batches": ["--wlb.packing_window", "8"],
    "variable_length": [],
    "lookahead": [],
    "lookahead, steady tokens": ["--wlb.steady_tokens"],
}
PARTS = ("train", "evaluate", "report")
FLOPS_PER_SECOND = 40_000_000_000  # that the program assumes of a CPU; plans follow from the ratio of costs alone


@dataclass(frozen=True)
class Run:
    """A packing with a seed, and its dump folder."""

    packing: str
    seed: int
    root: Path

    @property
    def folder(self) -> Path:
        """The job's dump folder."""
        return self.root / f"{self.packing.replace(', ', '-').replace(' ', '_')}-seed-{self.seed}"

    def flags(self, options: argparse.Namespace) -> list[str]:
        """What the program is given, but for the number of steps."""
        flags = [*common_flags(options), "--job.dump_folder", str(self.folder), "--debug.seed", str(self.seed)]
        return [*flags, "--wlb.packing", self.packing.split(",")[0], *PACKINGS[self.packing]]

    @property
    def done(self) -> Path:
        """File that a complete run leaves, with its flags and the tokens asked for."""
        return self.folder / "done.json"

    def is_complete(self, options: argparse.Namespace) -> bool:
        """Whether it ran to its end, as it would run now."""
        return self.done.exists() and json.loads(self.done.read_text()) == [self.flags(options), options.tokens]

    @property
    def checkpoint(self) -> Path:
        """The last one."""
        return max((self.folder / "checkpoint").glob("step-*"), key=lambda path: int(path.name[5:]))

    def records(self) -> list[dict[str, Any]]:
        """The measures of its steps."""
        return [measures for _, _, measures, _ in read_records(self.folder / "wlb" / "records.jsonl")]

    def trained(self) -> set[int]:
        """Documents of which it trained anything."""
        lines = map(json.loads, (self.folder / "wlb" / "documents.jsonl").read_text().splitlines())
        batches = (batch for line in lines for batch in line["micro_batches"])
        return {document for batch in batches for document, *_ in batch["documents"]}


def main() -> None:
    """Does the parts."""
    options = parse()
    runs = [Run(packing, seed, options.output) for seed in options.seeds for packing in options.packings]
    if "train" in options.parts:
        train(runs, options)
    runs = [run for run in runs if run.is_complete(options)]
    if not runs:
        sys.exit(f"no run below {options.output} is complete with these options; train first")
    if "evaluate" in options.parts:
        evaluate(runs, options)
    if "report" in options.parts:
        report(runs, options)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--packings", nargs="+", default=list(PACKINGS), choices=list(PACKINGS), metavar="PACKING")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of parameters and order")
    parser.add_argument("--tokens", type=int, default=819_200, help="to train, as nearly as whole steps allow")
    parser.add_argument("--window", type=int, default=2048, help="context window, tokens")
    parser.add_argument("--micro-batches", type=int, default=4, help="of a step")
    parser.add_argument("--documents", type=int, default=500, help="to evaluate on")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "convergence", help="folder of the runs")
    parser.add_argument("--image", type=Path, default=ROOT / "docs" / "images" / "convergence.png")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))} is no part; there are {', '.join(PARTS)}")
    options.parts = options.parts or list(PARTS)
    options.output = options.output.absolute()
    return options


def common_flags(options: argparse.Namespace) -> list[str]:
    """What all runs are given."""
    return [
        *("--job.config_file", str(ROOT / "train_configs" / "debug_cpu.toml")),
        *("--training.seq_len", str(options.window), "--training.global_batch_size", str(options.micro_batches)),
        *("--checkpoint.enable", "--checkpoint.interval", "1000000"),  # which leaves the last one
        *("--wlb.log_documents", "--metrics.no-enable_tensorboard"),
    ]


def train(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Trains what is not complete."""
    index = job_index(options)  # once for all
    bar = "{desc}{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    runs = [run for run in runs if not run.is_complete(options)]
    with tqdm(total=len(runs), bar_format=bar, smoothing=0.02) as progress:
        for run in runs:
            progress.set_description(f"{run.packing}, seed {run.seed}")
            train_run(run, steps_of(run, index, options), options, progress)


def steps_of(run: Run, index: Index, options: argparse.Namespace) -> int:
    """Steps after which a run has trained most nearly the tokens asked for: it is planned, not trained."""
    register_models()
    from titan_wlb.build import cost_model, model_shape, planner_config

    config = parse_config(run.flags(options))
    workload = cost_model(config, model_shape(model_args(config)), FLOPS_PER_SECOND, Layout(1, 1, 1, 1)).workload
    planner = Planner(index, planner_config(config, workload), dp=1, cp=1)
    tokens = [0]
    while tokens[-1] < options.tokens:
        tokens.append(tokens[-1] + planner.plan().tokens)
    return min(range(1, len(tokens)), key=lambda step: abs(tokens[step] - options.tokens))


def train_run(run: Run, steps: int, options: argparse.Namespace, progress: tqdm) -> None:
    """One run, from its beginning; ``progress`` counts runs, and parts of them."""
    shutil.rmtree(run.folder, ignore_errors=True)
    (run.folder / "wlb").mkdir(parents=True)
    (run.folder / "wlb" / "index").symlink_to(options.output / "wlb" / "index")
    records, log = run.folder / "wlb" / "records.jsonl", run.folder / "log.txt"
    command = [sys.executable, "-m", "titan_wlb.launch", "--nproc_per_node=1", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", "-m", "titan_wlb.train", *run.flags(options)]
    command += ["--training.steps", str(steps)]
    seen = 0
    with log.open("w") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        try:
            while process.poll() is None:
                time.sleep(1)
                lines = records.read_bytes().count(b"\n") if records.exists() else 0
                progress.update((lines - seen) / steps)
                seen = lines
        finally:
            process.terminate()
    if process.returncode or len(run.records()) != steps:
        sys.exit(f"{run.packing}, seed {run.seed} ended with status {process.returncode}; see {log}")
    progress.update((steps - seen) / steps)
    run.done.write_text(json.dumps([run.flags(options), options.tokens]))


def parse_config(flags: Sequence[str]) -> JobConfig:
    """The program's configuration."""
    register_models()
    from torchtitan.config import ConfigManager

    from titan_wlb.job_config import JobConfig

    return ConfigManager(config_cls=JobConfig).parse_args(list(flags))


def model_args(config: JobConfig) -> Any:
    """TorchTitan's, of the model."""
    from torchtitan.protocols.train_spec import get_train_spec

    args = get_train_spec(config.model.name).model_args[config.model.flavor]
    args.update_from_config(config)
    return args


@cache
def register_models() -> None:
    """Once a process. Importing torch takes seconds, which a report does without."""
    import titan_wlb.compat.cpu  # noqa: F401  (before torchtitan)

    # isort: split
    from titan_wlb import models

    models.register()


def job_index(options: argparse.Namespace) -> Index:
    """The corpus as all runs read it, built if need be."""
    register_models()
    from titan_wlb.data.from_config import index_from_config
    from titan_wlb.data.tokenizer import build_tokenizer

    config = parse_config([*common_flags(options), "--job.dump_folder", str(options.output)])
    return index_from_config(config, build_tokenizer(config))


def evaluate(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Writes the final models' losses on the same documents to evaluation.json.

    TorchTitan's own Llama computes them, one document after the other, of which it reads the first context window.
    """
    register_models()
    import torch
    import torch.distributed.checkpoint as dcp
    from torchtitan.models.llama3 import Transformer

    torch.set_num_threads(1)
    index = job_index(options)
    untrained = set(range(sum(segment.num_documents for segment in index.opened)))
    untrained.difference_update(*(run.trained() for run in runs))
    chosen = sorted(np.random.default_rng(0).permutation(sorted(untrained))[: options.documents].tolist())
    documents = [torch.from_numpy(index.tokens(i, 0)[: options.window].astype(np.int64)) for i in chosen]

    model = Transformer(model_args(parse_config(runs[0].flags(options))))
    with torch.no_grad():
        model.init_weights()
    results = []
    for run in tqdm(runs, unit="model"):
        state = model.state_dict()
        dcp.load(state, checkpoint_id=run.checkpoint, no_dist=True)
        model.load_state_dict(state)
        results.append({"packing": run.packing, "seed": run.seed, "losses": losses_of(model, documents)})
    evaluation = {"documents": chosen, "lengths": [len(tokens) for tokens in documents], "runs": results}
    (options.output / "evaluation.json").write_text(json.dumps(evaluation))


def losses_of(model: torch.nn.Module, documents: Iterable[torch.Tensor]) -> list[float]:
    """Per document the sum of the loss over its tokens but the first, nats."""
    import torch

    with torch.no_grad():
        return [
            torch.nn.functional.cross_entropy(model(tokens[None, :-1])[0], tokens[1:], reduction="sum").item()
            for tokens in documents
        ]


def report(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Prints the tables and draws the picture."""
    records = {(run.packing, run.seed): run.records() for run in runs}
    print(training_table(records))
    evaluation = options.output / "evaluation.json"
    if evaluation.exists():
        print("\n" + evaluation_table(json.loads(evaluation.read_text()), options.window // 4))
    draw(records, options.image)
    print(f"\nwrote {options.image}")


if __name__ == "__main__":
    main()

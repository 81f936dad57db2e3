"""Step time by sharding on real CP ranks: torchrun --nproc_per_node 2 benchmarks/sharding_training.py

A step is the forward and backward of one micro-batch through the demo's whole model, keys and values exchanged between
the ranks. The shardings take turns, so that what else the machine does meets all of them; every round's step times are
put against ``per_sequence``'s of the same round, and the median of these ratios is printed. OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
import torch
import torch.distributed as dist
from torchtitan.config import ConfigManager
from tqdm import tqdm

from titan_wlb import models
from titan_wlb.build import latency_model, model_shape
from titan_wlb.job_config import JobConfig
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.planning.length_families import lengths_of_family
from titan_wlb.planning.sharding import STRATEGIES, shard
from titan_wlb.profiling.site import Site, open_site
from titan_wlb.profiling.subjects import model_subject
from titan_wlb.records import Layout

BASELINE = "per_sequence"
FLAGS = ("--job.config_file", "train_configs/debug_cpu.toml", "--training.mixed_precision_param", "float32")


def main() -> None:
    """Prints a table on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="of each micro-batch")
    parser.add_argument("--window", type=int, default=4096, help="tokens of a micro-batch")
    parser.add_argument("--seed", type=int, default=7, help="of the drawn lengths")
    options = parser.parse_args()
    models.register()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2:
        parser.error("needs CP ranks: torchrun --nproc_per_node 2 benchmarks/sharding_training.py")
    config = ConfigManager(config_cls=JobConfig).parse_args(
        [*FLAGS, "--parallelism.context_parallel_degree", str(world), "--parallelism.tensor_parallel_degree", "1"]
    )
    config.wlb.sharding = "adaptive"
    site = open_site(config)
    model_args = FLAVORS[config.model.flavor]
    latency = latency_model(config, model_shape(model_args), "cpu", Layout(cp=world))
    site = replace(site, latency=latency)
    cases = micro_batches(options.window, options.seed)
    if dist.get_rank() == 0:
        print(f"| micro-batch | {' | '.join(STRATEGIES)} | adaptive chose |\n|---|{'---|' * (len(STRATEGIES) + 1)}")
    for name, lengths in cases.items():
        times = measure(config, model_args, site, lengths, options.rounds, name)
        if dist.get_rank() == 0:
            chosen = shard("adaptive", lengths, world, latency).strategy
            print(f"| {name} | {' | '.join(cells(times))} | {chosen} |", flush=True)
    dist.destroy_process_group()


def micro_batches(window: int, seed: int) -> dict[str, tuple[int, ...]]:
    """Lengths by name, of ``window`` tokens each."""
    drawn = lengths_of_family("skewed_web", num_tokens=8 * window, seed=seed, context_window=window)
    return {
        "one document": (window,),
        "one of half, one of a quarter, the rest short": (
            window // 2,
            window // 4,
            *[window // 64] * (window // 4 // (window // 64)),
        ),
        "short documents": tuple([window // 64] * 64),
        "skewed_web": filled(drawn.tolist(), window),
    }


def filled(lengths: list[int], window: int) -> tuple[int, ...]:
    """The first of them that make ``window`` tokens, the last one cut."""
    taken: list[int] = []
    for length in lengths:
        taken.append(min(length, window - sum(taken)))
        if sum(taken) == window:
            break
    return tuple(taken)


def measure(
    config: JobConfig, model_args, site: Site, lengths: tuple[int, ...], rounds: int, name: str
) -> dict[str, list[float]]:
    """Per strategy the ms of every round, of the rank that took longest."""
    subject = model_subject(config, model_args, site, model_args.n_layers)
    runs = {}
    for strategy in STRATEGIES:
        config.wlb.sharding = strategy
        runs[strategy] = subject([(1, length) for length in lengths])
    times: dict[str, list[float]] = {strategy: [] for strategy in runs}
    for number in tqdm(range(rounds + 2), desc=name, disable=dist.get_rank() != 0, mininterval=2):
        for strategy, run in runs.items():
            dist.barrier()
            started = time.perf_counter()
            run(lambda: None)
            took = torch.tensor(time.perf_counter() - started)
            dist.all_reduce(took, dist.ReduceOp.MAX)
            if number >= 2:
                times[strategy].append(1e3 * took.item())
    return times


def cells(times: dict[str, list[float]]) -> list[str]:
    """Median ms, and the median of the rounds' ratios to the baseline."""
    written = []
    for strategy, of_strategy in times.items():
        ratios = [one / base for one, base in zip(of_strategy, times[BASELINE], strict=True)]
        ratio = "" if strategy == BASELINE else f", {statistics.median(ratios):.3f}"
        written.append(f"{statistics.median(of_strategy):.1f} ms{ratio}")
    return written


if __name__ == "__main__":
    main()

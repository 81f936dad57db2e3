"""Attention latency of every sharding that `adaptive` chooses from, measured: python benchmarks/sharding_latency.py

The CP ranks of a plan are emulated one after the other in this process: each runs the attention op's forward and
backward on its chunks, on random tensors; local rows are copied in place of the exchange, which the model takes to be
free. A plan's latency is the slowest rank's forward plus the slowest rank's backward. Plans of a sequence are measured
in turn, so that a machine that slows down slows all of them; the best plan is picked on half of the rounds and judged,
like the choice of `adaptive`, on the other half, so that luck does not pick it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from titan_wlb.context_parallel import attend
from titan_wlb.context_parallel.kernels import pick_backend
from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.planning.kernel_file import default_kernel_profile, read_kernel_profile
from titan_wlb.planning.kernel_profile import COLLECTIVES, KernelProfile, Link
from titan_wlb.planning.length_families import lengths_of_family
from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.adaptive import adaptive, family
from titan_wlb.planning.sharding.latency import LatencyModel
from titan_wlb.profiling.stopwatch import stopwatch_for

FREE = Link(latency=0, bytes_per_second=1 << 60)
KINDS = ("skewed_web", "long_context", "code_like", "short")


@dataclass(frozen=True)
class Case:
    """A sequence to be sharded."""

    kind: str
    cp: int
    seed: int
    lengths: tuple[int, ...]


def main() -> None:
    """Measures every sequence and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cp", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, default=4096, help="of a sequence (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[31])
    parser.add_argument("--heads", default="4x2x64", help="query heads x K/V heads x head dim (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="even (default: %(default)s)")
    parser.add_argument("--profile", type=Path, help="of the kernel (default: what ships for this device)")
    parser.add_argument("--json", type=Path, help="every sequence's latencies")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    heads, kv_heads, head_dim = map(int, options.heads.split("x"))
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    profile = read_kernel_profile(options.profile) if options.profile else default_kernel_profile(name, head_dim)
    if profile is None:
        sys.exit(f"sharding_latency: {options.profile} has no profile of a kernel")
    free = replace(profile, exchange=dict.fromkeys(COLLECTIVES, FREE))
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = LatencyModel(profile=free, heads=heads, kv_heads=kv_heads, head_dim=head_dim, element_bytes=dtype.itemsize)
    emulation = Emulation(device, dtype, model, options.tokens)
    cases = [
        Case(kind, cp, seed, _lengths(kind, options.tokens, seed))
        for cp in options.cp
        for kind in KINDS
        for seed in options.seeds
    ]
    results = [emulation.measure(case, options.rounds) for case in tqdm(cases, desc="measuring", unit="sequence")]
    print(_report(results, profile, options))
    if options.json:
        options.json.write_text(json.dumps([vars(result) for result in results], default=vars, indent=1))


def _lengths(kind: str, tokens: int, seed: int) -> tuple[int, ...]:
    """Documents that fill a sequence, the last one cut; "short": none above a sixteenth of it."""
    if kind == "short":
        generator = np.random.Generator(np.random.PCG64(seed))
        lengths = generator.integers(1, tokens // 16, tokens)
    else:
        lengths = lengths_of_family(kind, num_tokens=tokens, seed=seed, context_window=tokens)
    ends = np.minimum(np.cumsum(lengths), tokens)
    found = np.diff(ends, prepend=0)
    return tuple(found[found > 0].tolist())


@dataclass
class Result:
    """Of one sequence.

    Args:
        chosen: by ``adaptive``.
        predicted: ns by plan.
        picking, judging: measured ns by plan, on the two halves of the rounds.
    """

    case: Case
    chosen: str
    predicted: dict[str, int]
    picking: dict[str, int]
    judging: dict[str, int]

    def over_best(self, name: str) -> float:
        """A plan's latency over that of the plan that is best on the other half."""
        best = min(self.picking, key=lambda plan: self.picking[plan])
        return self.judging[name] / self.judging[best]

    @property
    def noise(self) -> float:
        """Standard deviation of the plans' latencies on one half over those on the other."""
        ratios = np.array([self.judging[name] / self.picking[name] for name in self.judging])
        return float(np.std(ratios / ratios.mean()))

    @property
    def in_hindsight(self) -> float:
        """The chosen plan's latency over the least of all, in all rounds: luck included."""
        least = {name: min(self.picking[name], self.judging[name]) for name in self.judging}
        return least[self.chosen] / min(least.values())


class LocalExchange:
    """In place of the collectives: rows of this process are copied, as many as would arrive."""

    def __init__(self, cp: int, rows: torch.Tensor) -> None:
        self.cp, self.rows = cp, rows

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows] * self.cp)

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[: len(rows) // self.cp].clone()

    def all_to_all(
        self, rows: torch.Tensor, counts: Sequence[int], arriving: torch.Tensor, arriving_counts: Sequence[int]
    ) -> LocalExchange:
        self.arrived = arriving.copy_(self.rows[: len(arriving), :, : arriving.shape[2]])
        return self

    def wait(self) -> torch.Tensor:
        return self.arrived


class Emulation:
    """The ranks of a plan, one after the other."""

    def __init__(self, device: torch.device, dtype: torch.dtype, model: LatencyModel, tokens: int) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.backend, self.stopwatch = pick_backend("auto", device), stopwatch_for(device)
        self.rows = self._normal(tokens, 2, model.kv_heads)

    def measure(self, case: Case, rounds: int) -> Result:
        """Every plan of the family, equal ones once."""
        plans = dict(family(case.lengths, case.cp, self.model))
        choice = adaptive(case.lengths, case.cp, self.model)
        different = {(plan.strategy == "hybrid", plan.ranks): plan for plan in reversed(plans.values())}
        runs = {key: [self._run(plan, rank) for rank in range(case.cp)] for key, plan in different.items()}
        laps: dict[object, list[list[list[int]]]] = {key: [] for key in runs}
        for _ in range(rounds + 1):
            for key, ranks in runs.items():
                laps[key].append([self.stopwatch.laps(run) for run in ranks])
        halves = {key: (_latency(found[1::2]), _latency(found[2::2])) for key, found in laps.items()}
        of = {name: halves[plan.strategy == "hybrid", plan.ranks] for name, plan in plans.items()}
        return Result(
            case,
            next(name for name, plan in plans.items() if plan == choice),
            {name: self.model.latency(plan) for name, plan in plans.items()},
            {name: first for name, (first, _) in of.items()},
            {name: second for name, (_, second) in of.items()},
        )

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, self.model.head_dim, device=self.device, dtype=self.dtype)

    def _run(self, plan: ShardPlan, cp_rank: int) -> Callable[[Callable[[], None]], None]:
        """One rank's attention, as the training's op computes it."""
        rows = plan.padded_tokens(1)
        metadata = build_metadata(plan, cp_rank, rows).to(self.device)
        metadata.backend, metadata.exchange = self.backend, LocalExchange(len(plan.ranks), self.rows)
        q, dout = (self._normal(rows, self.model.heads) for _ in range(2))
        k, v = (self._normal(rows, self.model.kv_heads) for _ in range(2))
        scale = self.model.head_dim**-0.5

        def run(mark: Callable[[], None]) -> None:
            mark()
            out, lse = attend.forward(q, k, v, metadata, scale)
            mark()
            attend.backward(dout, q, k, v, out, lse, metadata, scale)
            mark()

        return run


def _latency(rounds: list[list[list[int]]]) -> int:
    """Least time over the rounds of each rank and direction, then the slowest rank of each direction."""
    forward, backward = np.array(rounds).min(axis=0).T
    return int(forward.max() + backward.max())


def _report(results: list[Result], profile: KernelProfile, options: argparse.Namespace) -> str:
    names = ["adaptive", *results[0].judging]
    lines = [
        f"{profile.device}, kernel profile {profile.origin} with heads {profile.heads}x{profile.kv_heads}x"
        f"{profile.head_dim}; {len(results)} sequences of {options.tokens} tokens, heads {options.heads}",
        "",
        "measured latency over that of the measured best plan, mean over sequences",
        f"{'':26}" + "".join(f"{f'CP {cp}':>9}" for cp in options.cp) + f"{'all':>9}{'worst':>9}",
    ]

    def of(result: Result, name: str) -> float:
        return result.over_best(result.chosen if name == "adaptive" else name)

    for name in names:
        groups = [[of(result, name) for result in results if result.case.cp == cp] for cp in options.cp]
        every = [value for group in groups for value in group]
        means = [statistics.mean(group) for group in groups]
        figures = "".join(f"{value:9.3f}" for value in [*means, statistics.mean(every), max(every)])
        lines.append(f"{name:26}{figures}")
    errors = [_spread(result) for result in results]
    hindsight = [result.in_hindsight for result in results]
    lines += [
        "",
        f"adaptive over the plan that had the least time in any round: mean {statistics.mean(hindsight):.3f}, "
        f"worst {max(hindsight):.3f}",
        f"noise: {100 * statistics.mean(result.noise for result in results):.1f} % between the halves of the rounds",
        f"error of the predicted latency ratios: {100 * statistics.mean(errors):.1f} % on the mean, "
        f"{100 * max(errors):.1f} % in the worst sequence",
        "",
        "chosen: " + ", ".join(f"{name} {number}" for name, number in _counts(results).items()),
    ]
    return "\n".join(lines)


def _spread(result: Result) -> float:
    """Mean error of predicted over measured latency of the plans, with one free factor for the sequence."""
    ratios = np.array([result.predicted[name] / result.judging[name] for name in result.judging])
    return float(np.abs(ratios / ratios.mean() - 1).mean())


def _counts(results: list[Result]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for result in results:
        counts[result.chosen] = counts.get(result.chosen, 0) + 1
    return counts


if __name__ == "__main__":
    main()

"""Shardings side by side on one list of lengths: the same planners and measures as in training.

    sequences(lengths=(5, 4, 6, 9, ...), low=8, high=8, number=2)       [[5, 3], [1, 6, 1]]: what does not fit goes on

A strategy is asked for as name[,key=value]: "hybrid,tolerance=0.2".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.kernel_file import default_kernel_profile, read_kernel_profile
from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.adaptive import adaptive
from titan_wlb.planning.sharding.hybrid import hybrid
from titan_wlb.planning.sharding.latency import LatencyModel
from titan_wlb.planning.sharding.measures import measure
from titan_wlb.planning.sharding.per_document import per_document
from titan_wlb.planning.sharding.per_sequence import per_sequence
from titan_wlb.planning.tiles import Tile

STRATEGIES = ("per_sequence", "per_document", "hybrid", "adaptive")
Planner = Callable[[Sequence[int]], ShardPlan]


@dataclass(frozen=True, slots=True)
class Planned:
    """A sequence that a strategy has sharded.

    Args:
        plan: of its documents.
        seconds: CPU time of the planner.
    """

    plan: ShardPlan
    seconds: float

    def to_json(self, spec: str, sequence: int) -> dict[str, Any]:
        """A line that lets anybody score the plan again."""
        return {
            "strategy": spec,
            "sequence": sequence,
            "lengths": list(self.plan.lengths),
            "ranks": [list(map(list, rank)) for rank in self.plan.ranks],
        }


def sequences(lengths: npt.NDArray[np.int64], low: int, high: int, number: int, seed: int = 0) -> list[list[int]]:
    """Lengths of the documents of each sequence, in arrival order; a sequence's last one is cut at its end.

    The rest of a document that is cut begins the next sequence, as a document of its own.

    Args:
        lengths: int64 [documents], tokens, each at least 1.
        low, high: a sequence holds from ``low`` to ``high`` tokens, drawn uniformly.
        number: of sequences.
        seed: of the draw (PCG64).

    Raises:
        ValueError: there are too few documents; one line.
    """
    sizes = np.random.Generator(np.random.PCG64(seed)).integers(low, high + 1, size=number)
    if (needed := int(sizes.sum())) > (found := int(lengths.sum())):
        raise ValueError(f"{number} sequences need {needed} tokens, the lengths make up {found}")
    ends = np.union1d(np.cumsum(lengths), np.cumsum(sizes))
    ends = ends[ends <= needed]
    pieces = np.diff(ends, prepend=0)
    bounds = np.searchsorted(ends, np.cumsum(sizes)) + 1
    return [part.tolist() for part in np.split(pieces, bounds[:-1])]


def planner_of_spec(spec: str, cp: int, tile: Tile, profile: Path | None) -> Planner:
    """What a SPEC asks for.

    Args:
        spec: name[,key=value].
        cp: CP ranks.
        tile: that ``hybrid`` plans for.
        profile: of the kernel, for ``adaptive``, which reads its tile there; None: what ships for an H100.

    Raises:
        ValueError: a name, key or value is not valid; one line.
    """
    name, *settings = spec.split(",")
    if name not in STRATEGIES:
        raise ValueError(f"{spec!r}: no strategy is called {name!r}; choose one of {', '.join(STRATEGIES)}")
    tolerance = 0.0
    for setting in settings:
        key, _, text = setting.partition("=")
        if (name, key) != ("hybrid", "tolerance"):
            raise ValueError(f"{spec!r}: {key!r} is no key of {name}; there is tolerance, of hybrid")
        try:
            tolerance = float(text)
        except ValueError:
            tolerance = -1.0
        if not 0 <= tolerance < np.inf:
            raise ValueError(f"{spec!r}: tolerance {text!r} must be a share of the mean work from 0 on, such as 0.1")
    if name == "hybrid":
        return lambda lengths: hybrid(lengths, cp, tile, tolerance)
    if name == "adaptive":
        kernel = read_kernel_profile(profile) if profile else default_kernel_profile("H100")
        if kernel is None:
            raise ValueError(f"profile {str(profile)!r} has no kernel section; tools/profile_latency.py measures it")
        model = LatencyModel(profile=kernel, heads=kernel.heads, kv_heads=kernel.kv_heads, head_dim=kernel.head_dim)
        return lambda lengths: adaptive(lengths, cp, model)
    plan = per_sequence if name == "per_sequence" else per_document
    return lambda lengths: plan(lengths, cp)


def run(planner: Planner, documents: Sequence[Sequence[int]]) -> Iterator[Planned]:
    """The plan of every sequence."""
    for lengths in documents:
        start = time.process_time()
        plan = planner(lengths)
        yield Planned(plan, time.process_time() - start)


def score(spec: str, planned: Sequence[Planned], tile: Tile) -> dict[str, Any]:
    """The measures of a strategy over its sequences."""
    measures = [measure(sequence.plan, tile) for sequence in planned]
    milliseconds = [1000 * sequence.seconds for sequence in planned]
    over_bound = [of_plan.makespan_over_bound for of_plan in measures]
    makespans = [of_plan.makespan for of_plan in measures]
    return {
        "name": spec,
        "makespan_mean": mean(makespans),
        "makespan_p95": _p95(makespans),
        "bound_mean": mean(of_plan.bound for of_plan in measures),
        "makespan_over_bound_mean": mean(over_bound),
        "makespan_over_bound_p95": _p95(over_bound),
        "token_spread_max": max(of_plan.token_spread for of_plan in measures),
        "kv_needed_mean": mean(of_plan.kv_needed for of_plan in measures),
        "kv_busiest_sender_mean": mean(of_plan.kv_busiest_sender for of_plan in measures),
        "kv_gathered_mean": mean(of_plan.kv_gathered for of_plan in measures),
        "plan_ms_mean": mean(milliseconds),
        "plan_ms_median": median(milliseconds),
        "plan_ms_max": max(milliseconds),
        "segments_per_rank_mean": mean(of_plan.segments_per_rank for of_plan in measures),
        "documents_mean": mean(len(sequence.plan.lengths) for sequence in planned),
        "sequences": len(planned),
    }


def _p95(values: Sequence[float]) -> float:
    """The least value that 95 % do not exceed."""
    return sorted(values)[-(-len(values) * 95 // 100) - 1]

#!/usr/bin/env python3
"""The tables of packing.md: every packer on seeded lengths, with the library that tools/compare_packing.py calls.

    python benchmarks/packing.py [PART ...]      table2 solver seeds long_context code_like schedule; all by default

Prints Markdown. All parts but "solver" take two minutes together on one core, "solver" a quarter of an hour.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from tqdm import tqdm

from titan_wlb.planning.length_families import lengths_of_family
from titan_wlb.planning.packing.compare import Job, run, score
from titan_wlb.planning.packing.specs import config_of_spec, workload_of_text

WINDOW, COST = 131_072, "0,1,1/24576"
TABLE2 = (
    *("original", *(f"fixed_length,packing_window={number}" for number in (1, 2, 4, 8)), "karmarkar_karp"),
    *(f"variable_length,outlier_thresholds={queues}" for queues in ("65536", "32768:65536", "32768:65536:98304")),
    "variable_length,outlier_thresholds=auto,max_delay_iterations=0.5",
    "variable_length,max_age_iterations=8",
    *("lookahead", "lookahead,max_age_iterations=8", "lookahead,steady_tokens=true"),
)
SOLVER = tuple(f"solver,packing_window={number}" for number in (1, 2, 4))
OTHERS = ("original", *(f"fixed_length,packing_window={number}" for number in (1, 8)), "karmarkar_karp",
          "variable_length", "lookahead")  # fmt: skip
SEEDS = tuple(spec for spec in TABLE2 if "auto" not in spec)
SHAPED = ("variable_length,outlier_thresholds=65536", "lookahead")
# (N, DP, PP, global batches, warm-up)
LAYOUTS = ((4, 1, 4, 260, 60), (16, 2, 8, 160, 40))

COLUMNS = (
    ("imbalance: mean", "imbalance_degree_mean", ".4f"),
    ("p95", "imbalance_degree_p95", ".3f"),
    ("time-weighted", "imbalance_time_weighted", ".4f"),
    ("over whole", "time_over_whole_documents", ".3f"),
    ("delay", "delay_iterations_mean", ".3f"),
    ("oldest", "oldest_waiting", "d"),
    ("token variation", "tokens_per_step_cv", ".1%"),
    ("largest micro-batch, W", "max_tokens_over_window", ".2f"),
    ("largest step, W", "tokens_per_step_max", ".2f"),
    ("long tokens repeat", "long_share_autocorrelation", "+.2f"),
    ("plan, ms", "plan_ms_mean", ",.1f"),
)
OVER_SEEDS = (*COLUMNS[:3], COLUMNS[4])
OF_SHAPES = (COLUMNS[0], ("step time", "step_time_over_balanced_mean", ".4f"), COLUMNS[4])


def main(parts: Sequence[str]) -> None:
    """Prints the tables of the parts."""
    for part in parts or ("table2", "seeds", "long_context", "code_like", "schedule", "solver"):
        print(f"\n{part}\n")
        for line in _PARTS[part]():
            print(line, flush=True)


def _one(family: str, specs: Sequence[str]) -> Iterator[str]:
    yield from _head(["packer", *(title for title, _, _ in COLUMNS)])
    for spec in tqdm(specs, unit="packer", disable=None):
        measures = _measured(_job(family, seed=11), spec)
        measures["tokens_per_step_max"] /= WINDOW
        yield f"| `{spec}` | " + " | ".join(format(measures[key], form) for _, key, form in COLUMNS) + " |"


def _seeds() -> Iterator[str]:
    yield from _head(["packer", *(title for title, _, _ in OVER_SEEDS)])
    for spec in tqdm(SEEDS, unit="packer", disable=None):
        found = [_measured(_job("skewed_web", seed), spec) for seed in range(100, 105)]
        yield f"| `{spec}` | {_spread(found, OVER_SEEDS)} |"


def _schedule() -> Iterator[str]:
    yield from _head(["layout, 1F1B", "packer", *(title for title, _, _ in OF_SHAPES)])
    for layout in LAYOUTS:
        for spec in [spec + shape for spec in SHAPED for shape in ("", ",micro_batch_shape=schedule")]:
            found = [_measured(_job("skewed_web", seed, *layout, schedule="1F1B"), spec) for seed in range(100, 103)]
            yield f"| N {layout[0]}, DP {layout[1]}, PP {layout[2]} | `{spec}` | {_spread(found, OF_SHAPES)} |"


def _job(
    family: str, seed: int, num: int = 4, dp: int = 1, pp: int = 1, batches: int = 260, warmup: int = 60,
    schedule: str = "",
) -> Job:  # fmt: skip
    return Job(
        lengths=lengths_of_family(family, num_tokens=num * WINDOW * (batches + 15), seed=seed),
        context_window=WINDOW,
        num_micro_batches=num,
        global_batches=batches,
        warmup=warmup,
        workload=workload_of_text(COST, WINDOW),
        max_tokens=2 * WINDOW,
        dp=dp,
        pp=pp,
        schedule=schedule,
    )


def _measured(job: Job, spec: str) -> dict[str, Any]:
    config = config_of_spec(spec, job)
    return score(job, spec, config, list(run(job, config)))


def _head(titles: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"


def _spread(found: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str, str]]) -> str:
    """Mean (least to greatest) over the seeds."""
    cells = []
    for _, key, form in columns:
        values = [measures[key] for measures in found]
        cells.append(f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})")
    return " | ".join(cells)


_PARTS = {
    "table2": lambda: _one("skewed_web", TABLE2),
    "solver": lambda: _one("skewed_web", SOLVER),
    "seeds": _seeds,
    "long_context": lambda: _one("long_context", OTHERS),
    "code_like": lambda: _one("code_like", OTHERS),
    "schedule": _schedule,
}

if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - _PARTS.keys()
    if unknown:
        sys.exit(f"{', '.join(sorted(unknown))} is no part; choose of {', '.join(_PARTS)}")
    main(sys.argv[1:])

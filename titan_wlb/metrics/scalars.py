"""A step's records as TensorBoard scalars below ``wlb/``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from titan_wlb.records import (
    IDLE,
    Layout,
    MicroBatchCost,
    StepRecord,
    cost_error,
    cost_scale,
    idle_share,
    measured_imbalance_degree,
)

MAX_RANKS_ONE_BY_ONE = 64


def scalars(
    records: Sequence[StepRecord],
    layout: Layout,
    *,
    predicted_imbalance_degree: float,
    costs: Sequence[MicroBatchCost],
    delay_iterations: float,
    tokens: int,
    flops: float = 0.0,
    peak_flops: float = 0.0,
) -> dict[str, float]:
    """Tags and values of one step, for TorchTitan's ``metrics_processor.logger.log(scalars, step)``.

    Per-rank compute and idle: one scalar each for up to 64 ranks, above that their distribution and the slowest rank.
    Times are ms, ``wlb/idle/*`` means over the ranks; ``wlb/idle_share`` and the cost model's error are fractions,
    ``wlb/mfu`` a percentage as TorchTitan's own.

    Args:
        records: of all ranks.
        predicted_imbalance_degree: of the step's plan.
        costs: of its micro-batches.
        delay_iterations: mean so far (DESIGN's ``delay_iterations_mean``).
        tokens: real tokens of the step.
        flops: of the whole job in this step, counted from the plan.
        peak_flops: of one device per second; without it there is no ``wlb/mfu``.
    """
    wall_ms = max(record.ms("wall") for record in records)
    values = {
        "wlb/step_ms": wall_ms,
        "wlb/imbalance_degree/predicted": predicted_imbalance_degree,
        "wlb/imbalance_degree/measured": measured_imbalance_degree(records, layout),
        "wlb/micro_batch_cost/measured_over_predicted": cost_scale(costs),
        "wlb/micro_batch_cost/error": cost_error(costs),
        "wlb/delay_iterations": delay_iterations,
        "wlb/tokens_per_step": float(tokens),
        "wlb/tokens_per_second": tokens / max(wall_ms / 1e3, 1e-9),
        "wlb/idle_share": idle_share(records),
    }
    if flops > 0 and peak_flops > 0:
        values["wlb/mfu"] = 100 * flops / (wall_ms / 1e3 * peak_flops * len(records))
    for name in (*IDLE, "cp_transfer", "cp_waiting", "fsdp_transfer", "fsdp_waiting"):
        values[f"wlb/idle/{name}_ms"] = _mean([record.ms(name) for record in records])
    for name in ("starved", "blocked", "other"):
        values[f"wlb/{name}_ms"] = _mean([record.ms(name) for record in records])
    for name in ("compute", "idle"):
        values |= _of_ranks(f"{name}_ms", [record.ms(name) for record in records])
    return values


def _of_ranks(tag: str, per_rank: list[float]) -> dict[str, float]:
    if len(per_rank) <= MAX_RANKS_ONE_BY_ONE:
        return {f"wlb/rank{rank:04d}/{tag}": value for rank, value in enumerate(per_rank)}
    return {
        f"wlb/{tag}/min": min(per_rank),
        f"wlb/{tag}/mean": _mean(per_rank),
        f"wlb/{tag}/p95": percentile(per_rank, 95),
        f"wlb/{tag}/max": max(per_rank),
        f"wlb/{tag}/max_rank": float(per_rank.index(max(per_rank))),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of the values do not exceed."""
    return sorted(values)[max(math.ceil(percent / 100 * len(values)) - 1, 0)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

"""A step's records as TensorBoard scalars below ``wlb/``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from titan_wlb.records import (
    IDLE,
    Layout,
    MicroBatchCost,
    StepRecord,
    cost_error,
    cost_scale,
    measured_imbalance_degree,
)
from titan_wlb.records.axes import imbalance_by_axis
from titan_wlb.records.per_rank import columns, per_rank_rows

MAX_RANKS_ONE_BY_ONE = 64


def scalars(
    records: Sequence[StepRecord],
    layout: Layout,
    *,
    predicted_imbalance_degree: float,
    costs: Sequence[MicroBatchCost],
    delay_iterations: float,
    tokens: int,
    documents_waiting: int = 0,
    lost_ms: Mapping[str, float] | None = None,
    flops: float = 0.0,
    peak_flops: float = 0.0,
    rows: Sequence[Sequence[float]] | None = None,
) -> dict[str, float]:
    """Tags and values of one step, for TorchTitan's ``metrics_processor.logger.log(scalars, step)``.

        wlb/imbalance_degree/measured    1.31        of the micro-batches; /ranks /cp /pp /stages /dp: by axis
        wlb/idle_share                   0.18        split by place: wlb/idle/<place>_ms, means over the ranks
        wlb/lost/<cause>_ms              41.0        what the step would have gained
        wlb/compute_ms/<of>              210.0       min, mean, p95, max over the ranks, and max_rank, who that was
        wlb/rank0003/compute_ms          210.0       up to 64 ranks

    Times are ms; ``wlb/idle_share`` and the cost model's error are fractions, ``wlb/mfu`` a percentage as TorchTitan's
    own.

    Args:
        records: of all ranks.
        predicted_imbalance_degree: of the step's plan.
        costs: of its micro-batches.
        delay_iterations: mean so far (DESIGN's ``delay_iterations_mean``).
        tokens: real tokens of the step.
        documents_waiting: after the step.
        lost_ms: cause -> what the step would have gained, had it been evened out.
        flops: of the whole job in this step, counted from the plan.
        peak_flops: of one device per second; without it there is no ``wlb/mfu``.
        rows: ``per_rank_rows`` of the records, where the caller has them.
    """
    of_ranks = columns(per_rank_rows(records) if rows is None else rows)
    wall_ms = max(of_ranks["wall"])
    values = {
        "wlb/step_ms": wall_ms,
        "wlb/imbalance_degree/predicted": predicted_imbalance_degree,
        "wlb/imbalance_degree/measured": measured_imbalance_degree(records, layout),
        "wlb/micro_batch_cost/measured_over_predicted": cost_scale(costs),
        "wlb/micro_batch_cost/error": cost_error(costs),
        "wlb/delay_iterations": delay_iterations,
        "wlb/documents_waiting": float(documents_waiting),
        "wlb/tokens_per_step": float(tokens),
        "wlb/tokens_per_second": tokens / max(wall_ms / 1e3, 1e-9),
        "wlb/idle_share": sum(of_ranks["idle"]) / max(sum(of_ranks["wall"]), 1e-9),
    }
    values |= {f"wlb/imbalance_degree/{axis}": degree for axis, degree in imbalance_by_axis(records, layout).items()}
    values |= {f"wlb/lost/{cause}_ms": ms for cause, ms in (lost_ms or {}).items()}
    if flops > 0 and peak_flops > 0:
        values["wlb/mfu"] = 100 * flops / (wall_ms / 1e3 * peak_flops * len(records))
    for name in (*IDLE, "cp_transfer", "cp_waiting", "fsdp_transfer", "fsdp_waiting"):
        values[f"wlb/idle/{name}_ms"] = _mean(of_ranks[name])
    for name in ("starved", "blocked", "other"):
        values[f"wlb/{name}_ms"] = _mean(of_ranks[name])
    for name in ("compute", "idle"):
        values |= _of_ranks(f"{name}_ms", of_ranks[name])
    return values


def _of_ranks(tag: str, per_rank: Sequence[float]) -> dict[str, float]:
    values = {
        f"wlb/{tag}/min": min(per_rank),
        f"wlb/{tag}/mean": _mean(per_rank),
        f"wlb/{tag}/p95": percentile(per_rank, 95),
        f"wlb/{tag}/max": max(per_rank),
        f"wlb/{tag}/max_rank": float(per_rank.index(max(per_rank))),
    }
    if len(per_rank) <= MAX_RANKS_ONE_BY_ONE:
        values |= {f"wlb/rank{rank:04d}/{tag}": value for rank, value in enumerate(per_rank)}
    return values


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of the values do not exceed."""
    return sorted(values)[max(math.ceil(percent / 100 * len(values)) - 1, 0)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

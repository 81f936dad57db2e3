"""A run in a few numbers: what the page shows above everything else.

    {"run": "ours", "steps": {"first": 3, "last": 60, "counted": 58}, "eras": [...], "axes": ["pp", ...],
     "headlines": {"idle_share": {"value": 0.12, "before": 0.14, "trend": [[3, 0.15], ...]}, ...},
     "places": {"compute": 41.0, "pipeline": 8.2, ...}, "lost": {"cp": 3.1, ...},
     "slow": {"kind": "same", "ranks": [{"rank": 2, "place": {"dp": 1}, "share_of_steps": 0.97, ...}], ...}}

Values are means over the counted steps of the window: all but the first two of a run, which compile, allocate and
connect. Times are ms. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from titan_wlb.records.per_rank import PLACES
from titan_wlb.report.slow_ranks import slow_ranks
from titan_wlb.tensorboard_plugin.store import Tables, layout_of

WARM_UP_STEPS = 2
TREND_POINTS = 160
SLOW_RANKS_NAMED = 8
STEPS_JUDGED = 256  # who is slow shows in fewer steps than a window may have, and thousands of ranks take their time
CAUSES = ("cp", "pipeline", "dp", "slow_rank", "data")
HEADLINES = {
    "imbalance_degree": "wlb/imbalance_degree/measured",
    "imbalance_degree_predicted": "wlb/imbalance_degree/predicted",
    "idle_share": "wlb/idle_share",
    "step_ms": "wlb/step_ms",
    "tokens_per_second": "wlb/tokens_per_second",
    "delay_iterations": "wlb/delay_iterations",
    "cost_error": "wlb/micro_batch_cost/error",
    "cost_scale": "wlb/micro_batch_cost/measured_over_predicted",
    "lost_rank_hours": "wlb/lost_rank_hours",
    "slow_rank": "wlb/lost/slow_rank",
} | {f"lost_{cause}": f"wlb/lost/{cause}_ms" for cause in CAUSES}
_LAST_COUNTS = ("lost_rank_hours", "slow_rank", "delay_iterations")  # no means over steps: a sum, a name, a mean so far
Series = Sequence[tuple[int, float]]


def overview(tables: Tables, scalars: Mapping[str, Series], last: int) -> dict[str, Any]:
    """The numbers of a run.

    Args:
        tables: of all its logged steps; at least one.
        scalars: per tag of ``HEADLINES`` its series, where the run has it.
        last: steps of the window, 0 for all.
    """
    window = counted(tables).last(last)
    first_step = window.steps[0]
    first, past = window.eras()[-1]
    newest = Tables(window.steps[first:past], window.tables[first:past], window.schemas[first:past])
    means = _means(newest)
    headlines = {}
    for name, tag in HEADLINES.items():
        series = [(step, value) for step, value in scalars.get(tag, ()) if step > WARM_UP_STEPS] or scalars.get(tag, ())
        if series:
            headlines[name] = _headline(series, first_step, name in _LAST_COUNTS)
    lost = {cause: headlines[f"lost_{cause}"]["value"] for cause in CAUSES if f"lost_{cause}" in headlines}
    return {
        "steps": {"first": first_step, "last": window.steps[-1], "counted": len(window.steps)},
        "eras": [_era(tables, *span) for span in tables.eras()],
        "axes": [axis for axis in newest.schemas[0].axes if getattr(layout_of(newest.schemas[0]), axis, 1) > 1],
        "headlines": headlines,
        "wall": means["wall"],
        "places": {place: means.get(place, 0.0) for place in PLACES},
        "lost": lost,
        "slow": _slow(newest),
    }


def counted(tables: Tables) -> Tables:
    """Without the steps that compile, allocate and connect; all, if there are no others."""
    warm = sum(step <= WARM_UP_STEPS for step in tables.steps)
    return tables.last(len(tables.steps) - warm)


def _headline(series: Series, first_step: int, last_counts: bool) -> dict[str, Any]:
    now = [value for step, value in series if step >= first_step] or [series[-1][1]]
    before = [value for step, value in series if step < first_step][-len(now) :]
    value = now[-1] if last_counts else sum(now) / len(now)
    return {
        "value": value,
        "before": sum(before) / len(before) if before else None,
        "trend": _thinned(series),
    }


def _thinned(series: Series) -> list[list[float]]:
    """At most ``TREND_POINTS`` points, each the mean of its neighbours."""
    parts = min(TREND_POINTS, len(series))
    edges = [i * len(series) // parts for i in range(parts + 1)]
    pieces = [series[a:b] for a, b in pairwise(edges)]
    return [[piece[-1][0], sum(value for _, value in piece) / len(piece)] for piece in pieces]


def _means(tables: Tables) -> dict[str, float]:
    """Mean of each field over the steps and ranks of one era."""
    # Table by table, as they lie in memory: field by field takes several times as long at thousands of ranks.
    means = np.stack([table.mean(axis=0) for table in tables.tables]).astype(np.float64).mean(axis=0)
    return {name: float(mean) for name, mean in zip(tables.schemas[0].fields, means, strict=True)}


def _era(tables: Tables, first: int, past: int) -> dict[str, Any]:
    schema = tables.schemas[first]
    layout = layout_of(schema)
    words = " x ".join(f"{axis.upper()} {getattr(layout, axis)}" for axis in ("pp", "dp", "cp", "tp"))
    return {
        "first": tables.steps[first],
        "last": tables.steps[past - 1],
        "num_ranks": len(schema.coordinates),
        "layout": words,
    }


def _slow(tables: Tables) -> dict[str, Any]:
    schema = tables.schemas[0]
    found = slow_ranks(own_ms(tables.thinned(STEPS_JUDGED)), layout_of(schema), SLOW_RANKS_NAMED)
    ranks = [
        {
            "rank": slow.rank,
            "place": dict(zip(schema.axes, schema.coordinates[slow.rank], strict=True)),
            "share_of_steps": slow.share_of_steps,
            "excess_ms": slow.excess_ms,
            "excess": slow.excess,
        }
        for slow in found.ranks
    ]
    return {
        "kind": found.kind,
        "ranks": ranks,
        "share_of_steps": found.share_of_steps,
        "num_same": found.num_same,
    }


def own_ms(tables: Tables) -> np.ndarray:
    """A rank's own time, what others may wait for: compute, and starved, when its core was taken; [steps, ranks]."""
    return np.asarray(tables.field("compute") + np.nan_to_num(tables.field("starved")))

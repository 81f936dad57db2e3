"""Pictures of where time went and how a run went, as SVG. Those of a single step are in ``step_pictures``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import isfinite

import numpy as np
import numpy.typing as npt

from titan_wlb.report.facts import PLACES, RankFacts, RunFacts, evenly
from titan_wlb.report.runs import Run, words_of
from titan_wlb.report.svg import Plot, circle, image, line, polyline, rect, svg, text
from titan_wlb.report.words import CAUSE_WORDS, PLACE_WORDS, duration, percent

WIDTH = 1000
NUM_RUN_COLOURS = 6
_BARS = 64  # ranks one by one; of more, so many groups
_CELLS = 480, 160  # steps and ranks of a heatmap; more are pooled
_FULL = 0.25  # work over the mean from which on a cell has its full colour
_BELOW, _ABOVE = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's blue and vermillion


def run_colour(place: int, num_runs: int) -> str:
    """Class of a run's lines and bars: blue if it is alone, else the baseline is grey."""
    return f"run{place % NUM_RUN_COLOURS if num_runs > 1 else 1}"


def time_bars(runs: Sequence[RunFacts]) -> str:
    """A bar a run, ms per step and rank, by place."""
    left, bar, gap = _name_width([run.name for run in runs]), 34, 18
    longest = max(run.times_ms["wall"] for run in runs)
    plot = Plot(left, 6, WIDTH - left - 110, len(runs) * (bar + gap), (0, longest), (0, 1))
    parts = []
    for place, run in enumerate(runs):
        y = plot.top + place * (bar + gap)
        parts.append(text(left - 12, y + 22, run.name, "label", "end"))
        start = 0.0
        for name in PLACES:
            ms, share = run.times_ms[name], run.share(name)
            x, width = plot.px(start), plot.px(start + ms) - plot.px(start)
            title = f"{run.name}: {PLACE_WORDS[name]} {duration(ms)} ({percent(share)})"
            parts.append(rect(x, y, width, bar, f"at-{name}", title))
            if width > 52:
                parts.append(text(x + width / 2, y + 22, percent(share), f"on on-{name}", "middle"))
            start += ms
        parts.append(text(plot.px(start) + 10, y + 22, duration(run.times_ms["wall"]), "label"))
    return svg(WIDTH, plot.top + plot.height - gap + 6, parts, "Time of a step by place, a bar a run")


def rank_columns(members: Sequence[RankFacts], highest_ms: float) -> str:
    """A column a rank (or place on an axis), by place of its time; of many, groups sorted by compute."""
    ranks, names = _grouped(members)
    is_grouped = len(ranks) < len(members)
    height = 170
    plot = Plot(52, 10, WIDTH / 2 - 62, height, (0, len(ranks)), (0, highest_ms))
    parts = plot.y_axis(lambda ms: f"{ms:,.0f}")
    width = plot.width / len(ranks)
    for place, (rank, name) in enumerate(zip(ranks, names, strict=True)):
        below = 0.0
        for at in PLACES:
            ms = rank[at]
            y = plot.py(below + ms)
            if plot.py(below) - y >= 0.05:
                title = f"{name}: {PLACE_WORDS[at]} {duration(ms)}"
                parts.append(rect(plot.px(place + 0.08), y, 0.84 * width, plot.py(below) - y, f"at-{at}", title))
            below += ms
    for place in [0, len(ranks) - 1] if is_grouped else evenly(len(ranks), 8):
        anchor = "middle" if not is_grouped else "end" if place else "start"
        x = plot.px(place + {"middle": 0.5, "end": 1.0, "start": 0.0}[anchor])
        parts.append(text(x, plot.top + height + 15, names[place], "small", anchor))
    return svg(WIDTH / 2, plot.top + height + 24, parts, "Time of a step by rank and place")


def curves(
    runs: Sequence[RunFacts],
    series: str,
    form: Callable[[float], str],
    *,
    dashed: str = "",
    least: float | None = None,
    scale: float = 1.0,
) -> str:
    """A value over the steps, a line a run.

    Args:
        series: of ``RunFacts.series``.
        form: of the axis.
        dashed: another series, drawn thin.
        least: that the axis begins with; by default at the smallest value.
        scale: that values are multiplied by.
    """
    drawn = [(place, run, name) for place, run in enumerate(runs) for name in (dashed, series) if name]
    known = [value * scale for _, run, name in drawn for value in run.series[name] if value is not None]
    known = [value for value in known if isfinite(value)]
    steps = [float(step) for run in runs for step in run.series["step"] if step is not None]
    if not known:
        return ""
    low, high = min(known) if least is None else least, _high(known)
    low, high = (low - 0.05 * (high - low) if least is None else low), high + 0.05 * (high - low or 1.0)
    plot = Plot(52, 10, WIDTH / 2 - 62, 150, (min(steps), max(max(steps), min(steps) + 1)), (low, high))
    parts = [*plot.y_axis(form), *plot.x_axis(lambda step: f"{step:g}")]
    for era in runs[0].eras[1:] if len(runs) == 1 else ():
        parts.append(line(plot.px(era.first), plot.top, plot.px(era.first), plot.top + plot.height, "era"))
        parts.append(text(plot.px(era.first) + 4, plot.top + 10, era.layout, "small"))
    for place, run, name in drawn:
        points = [
            (plot.px(step or 0), plot.py(min(value * scale, high))) if value is not None and isfinite(value) else None
            for step, value in zip(run.series["step"], run.series[name], strict=True)
        ]
        kind = f"curve {run_colour(place, len(runs))}{' dashed' if name == dashed else ''}"
        parts.append(polyline(_thinned(points), kind))
    return svg(WIDTH / 2, plot.top + plot.height + 24, parts, f"{series.replace('_', ' ')} over the steps")


def heatmap(run: Run) -> str:
    """Ranks by steps: each rank's own work over the mean of its step, the largest of those that share a pixel."""
    num_ranks = max(era.layout.size for era in run.all_eras)
    shown = min(num_ranks, _CELLS[1])
    height = min(max(12 * shown, 60), 320)
    plot = Plot(52, 8, WIDTH - 62, height, (0, len(run.steps)), (0, num_ranks))
    parts = []
    start = 0
    for era in run.all_eras:
        stop = start + len(era.steps)
        own = np.stack([step.own_ms() for step in era.steps], axis=1)
        over = own / np.maximum(own.mean(axis=0, keepdims=True), 1e-9) - 1  # [ranks, steps]
        x, width = plot.px(start), plot.px(stop) - plot.px(start)
        tall = height * era.layout.size / num_ranks
        rows = min(era.layout.size, shown)
        columns = max(min(len(era.steps), int(_CELLS[0] * width / plot.width)), 1)
        parts.append(rect(x, plot.top, width - (1 if stop < len(run.steps) else 0), tall, "cells"))
        parts.append(image(x, plot.top, width, tall, _coloured(_pooled(over, rows, columns))))
        parts.append(text(x, plot.top + height + 15, f"step {era.first}", "small"))
        if len(run.all_eras) > 1 and width > 240:
            parts.append(text(x + width / 2, plot.top + height + 15, words_of(era.layout), "small", "middle"))
        start = stop
    parts.append(text(plot.px(start), plot.top + height + 15, f"step {run.steps[-1].number}", "small", "end"))
    for rank in sorted({0, num_ranks - 1}):
        y = plot.top + height * (rank + 0.5) / num_ranks
        parts.append(text(plot.left - 6, y + 4, f"rank {rank}", "small", "end"))
    return svg(WIDTH, plot.top + height + 24, parts, f"{run.name}: own work of each rank in each step, over the mean")


def cause_bars(runs: Sequence[RunFacts]) -> str:
    """What a step would have gained, a bar a cause and run; "" where no run recorded causes."""
    causes = sorted(
        {cause for run in runs for cause, ms in run.lost_ms.items() if ms >= 5e-4 * run.step_ms},
        key=lambda cause: (-max(run.lost_ms.get(cause, 0.0) for run in runs), cause),
    )
    if not causes:
        return ""
    left, bar = 210, 16
    row = len(runs) * (bar + 2) + 14
    most = max(max(run.lost_ms.get(cause, 0.0) for cause in causes) / max(run.step_ms, 1e-9) for run in runs)
    plot = Plot(left, 4, WIDTH - left - 190, row * len(causes), (0, max(most, 0.01)), (0, 1))
    parts = []
    for i, cause in enumerate(causes):
        y = plot.top + i * row
        parts.append(text(left - 12, y + row / 2, CAUSE_WORDS.get(cause, cause), "label", "end"))
        for place, run in enumerate(runs):
            if cause not in run.lost_ms:
                continue
            ms = run.lost_ms[cause]
            share, top = ms / max(run.step_ms, 1e-9), y + place * (bar + 2)
            parts.append(
                rect(
                    left,
                    top,
                    plot.px(share) - left + 1,
                    bar,
                    run_colour(place, len(runs)),
                    f"{run.name}: {duration(ms)}",
                )
            )
            words = f"{percent(share)} of a step, {duration(ms)}"
            parts.append(text(plot.px(share) + 8, top + 12, words, "small"))
    return svg(WIDTH, plot.top + plot.height, parts, "What a step would have gained, by cause")


def cost_dots(runs: Sequence[RunFacts]) -> str:
    """Measured over predicted cost, a dot a micro-batch; "" where no run recorded them."""
    pairs = [
        (place, predicted * run.cost.scale, measured)
        for place, run in enumerate(runs)
        if run.cost is not None
        for predicted, measured in run.cost.pairs
    ]
    if not pairs:
        return ""
    largest = _high([value for _, *both in pairs for value in both])
    plot = Plot(60, 10, WIDTH / 2 - 76, 230, (0, 1.05 * largest), (0, 1.05 * largest))
    parts = [*plot.y_axis(lambda ms: f"{ms:,g}"), *plot.x_axis(lambda ms: f"{ms:,g}", 5)]
    parts.append(line(plot.px(0), plot.py(0), plot.px(1.05 * largest), plot.py(1.05 * largest), "ideal"))
    parts += [
        circle(
            plot.px(min(predicted, 1.05 * largest)),
            plot.py(min(measured, 1.05 * largest)),
            2.4,
            f"spot {run_colour(i, len(runs))}",
        )
        for i, predicted, measured in pairs
    ]
    parts.append(text(plot.left + plot.width, plot.top + plot.height + 32, "predicted, ms, to scale", "small", "end"))
    parts.append(text(plot.left + 6, plot.top + 12, "measured, ms", "small"))
    return svg(WIDTH / 2, plot.top + plot.height + 38, parts, "Measured over predicted cost of micro-batches")


def _grouped(ranks: Sequence[RankFacts]) -> tuple[list[dict[str, float]], list[str]]:
    """Times and names of ranks, or of groups of alike ones."""
    if len(ranks) <= _BARS:
        return [rank.times_ms for rank in ranks], [rank.name for rank in ranks]
    ordered = sorted(ranks, key=lambda rank: rank.times_ms["compute"])
    edges = [*evenly(len(ordered), _BARS), len(ordered)]
    groups = [ordered[start:stop] for start, stop in pairwise(edges)]
    means = [{at: sum(rank.times_ms[at] for rank in group) / len(group) for at in PLACES} for group in groups]
    names = [f"{len(group)} ranks" for group in groups]
    names[0], names[-1] = "least compute", f"most compute ({ordered[-1].name})"
    return means, names


def _pooled(values: npt.NDArray[np.float32], rows: int, columns: int) -> npt.NDArray[np.float32]:
    """The largest of the cells that share a place, [rows, columns]."""
    values = np.maximum.reduceat(values, evenly(values.shape[0], rows), axis=0)
    return np.maximum.reduceat(values, evenly(values.shape[1], columns), axis=1)


def _coloured(over: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Blue below and vermillion above the mean, the denser the further; the mean is transparent. uint8 [..., 4]."""
    rgba = np.zeros((*over.shape, 4), dtype=np.uint8)
    rgba[..., :3] = np.where((over > 0)[..., np.newaxis], _ABOVE, _BELOW)
    rgba[..., 3] = np.rint(255 * np.minimum(np.abs(np.nan_to_num(over)) / _FULL, 1))
    return rgba


def _high(values: Sequence[float]) -> float:
    """The largest value, unless a few stand far above all others: then these are drawn at the upper edge."""
    ordered = sorted(values)
    usual = ordered[int(0.98 * (len(ordered) - 1))]
    return ordered[-1] if ordered[-1] <= 2 * usual or usual <= 0 else 1.2 * usual


def _thinned(points: Sequence[tuple[float, float] | None]) -> list[tuple[float, float] | None]:
    """At most 1,000 of the points."""
    return [points[place] for place in evenly(len(points), 1000)]


def _name_width(names: Sequence[str]) -> float:
    return min(max(8 * max(map(len, names)) + 24, 80), 260)

"""The table that closes a run, as plain text of at most 100 columns.

rank place        step   compute  pipeline       cp     fsdp     data  starved    idle
   0 pp0 cp0     151.2     118.9      12.1      8.3     10.1      0.2      1.6   20.3%  ██████████████░░░░▒
   1 pp0 cp1     ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from titan_wlb.metrics.history import History
from titan_wlb.metrics.scalars import percentile
from titan_wlb.records import Layout, Totals

WIDTH = 98
MAX_ROWS = 32
_COLUMNS = (
    ("step", "wall"),
    ("compute", "compute"),
    ("pipeline", "pipeline"),
    ("cp", "cp"),
    ("fsdp", "fsdp"),
    ("data", "data"),
    ("starved", "starved"),
)


class _Row(NamedTuple):
    rank: str
    place: str
    values: tuple[float, ...]  # ms, per column
    idle_share: float


def summary_table(
    history: History,
    *,
    packing: str,
    sharding: str,
    predicted: Mapping[str, float],
    delay_iterations: float,
    tensorboard_folder: str | None,
) -> str:
    """What the run was like: time per rank, balance, delay, loss, and how to see more.

    Args:
        history: of the run.
        packing, sharding: what the run used.
        predicted: packing -> predicted imbalance degree over the run's documents, with the run's own cost model; rows
            of the table ("original" and "variable_length", say).
        delay_iterations: mean delay of a token.
        tensorboard_folder: where the event files lie; None where none are written.

    Returns:
        Several lines, the last without a line break.
    """
    lines = [*_time_lines(history), "", *_balance_lines(history, packing, sharding, predicted)]
    if history.num_degrees:
        error = f"{100 * history.cost_error:.1f} %"
        lines.append(_labelled("a micro-batch's cost is predicted to within", error) + " (mean)")
    lines.append(_labelled("mean delay of a token", f"{delay_iterations:.3f}") + " iterations")
    if history.losses:
        (first, first_loss), (last, last_loss) = history.losses[0], history.losses[-1]
        lines.append(_labelled("loss", f"{first_loss:.4f}") + f" (step {first}) -> {last_loss:.4f} (step {last})")
    if tensorboard_folder is not None:
        lines += ["", f"  tensorboard --logdir {tensorboard_folder}"]
    return "\n".join(lines)


def _time_lines(history: History) -> list[str]:
    if not history.steps:
        return ["No step behind the two warm-up steps was logged: there are no times to show."]
    rows = _rows(history)
    place_width = max(len(row.place) for row in rows)
    head = f"{'rank':>6} {'place' if place_width else '':<{place_width}}"
    head += "".join(f"{title:>9}" for title, _ in _COLUMNS) + f"{'idle':>7}"
    bar_width = min(WIDTH - len(head) - 2, 24)
    title = f" Where the time went: ms per step, mean of {history.steps} steps (the first two are left out) "
    lines = [title.center(min(len(head) + 2 + max(bar_width, 0), WIDTH), "─"), head]
    for row in rows:
        line = f"{row.rank:>6} {row.place:<{place_width}}"
        line += "".join(f"{value:>9.1f}" for value in row.values) + f"{100 * row.idle_share:>6.1f}%"
        lines.append(line + (f"  {_bar(row, bar_width)}" if bar_width >= 8 else ""))
    if bar_width >= 8:
        lines.append("█ compute  ░ idle (pipeline, cp, fsdp, data)  ▒ starved and other".rjust(WIDTH - 2))
    return lines + _notes(history)


def _notes(history: History) -> list[str]:
    shares = [
        f"{100 * history.waiting_share(category):.0f} % of {category}"
        for i, category in enumerate(("cp", "fsdp"))
        if any(
            transfer[i] + waiting[i] > 0
            for transfer, waiting in zip(history.transfer_ms, history.waiting_ms, strict=True)
        )
    ]
    notes = []
    if shares:
        notes.append(f"  Waiting for a slower rank: {' and '.join(shares)}; the rest is transfer.")
    blocked = max(totals.mean("blocked") for totals in history.totals)
    # Page faults of a loaded machine cost some, too: what matters is a visible share of the step.
    if blocked >= max(1.0, 0.005 * max(totals.mean("wall") for totals in history.totals)):
        notes.append(
            f"  Up to {blocked:.1f} ms of compute were spent off the core: a wait that no clock knows, or a sleep."
        )
    return notes


def _balance_lines(history: History, packing: str, sharding: str, predicted: Mapping[str, float]) -> list[str]:
    lines = [_labelled("imbalance degree (1 is ideal)", "predicted", "measured")]
    if history.num_degrees:
        degrees = history.predicted_imbalance_degree, history.measured_imbalance_degree
        lines.append(_labelled(f"  this run: {packing}, {sharding}", *(f"{degree:.3f}" for degree in degrees)))
    return lines + [_labelled(f"  same documents: {name}", f"{degree:.3f}") for name, degree in predicted.items()]


def _labelled(label: str, *values: str) -> str:
    return f"  {label:<44}" + "".join(f"{value:>11}" for value in values)


def _rows(history: History) -> list[_Row]:
    rows = [_row(f"{rank}", _place(history.layout, rank), totals) for rank, totals in enumerate(history.totals)]
    if len(rows) == 1:
        return rows
    columns = list(zip(*(row.values for row in rows), strict=True))
    shares = [row.idle_share for row in rows]
    mean = _Row("mean", "", tuple(sum(column) / len(column) for column in columns), history.idle_share)
    if len(rows) <= MAX_ROWS:
        return [*rows, mean]
    slowest = max(rows, key=lambda row: row.values[1])
    return [
        _Row("min", "", tuple(min(column) for column in columns), min(shares)),
        mean,
        _Row("p95", "", tuple(percentile(column, 95) for column in columns), percentile(shares, 95)),
        _Row("max", "", tuple(max(column) for column in columns), max(shares)),
        slowest,  # computes longest
    ]


def _row(rank: str, place: str, totals: Totals) -> _Row:
    values = tuple(totals.mean(name) for _, name in _COLUMNS)
    return _Row(rank, place, values, totals.mean("idle") / max(totals.mean("wall"), 1e-9))


def _place(layout: Layout, rank: int) -> str:
    names, degrees = ("pp", "dp", "cp", "tp"), (layout.pp, layout.dp, layout.cp, layout.tp)
    places = zip(names, degrees, layout.coordinates(rank), strict=True)
    return " ".join(f"{name}{place}" for name, degree, place in places if degree > 1)


def _bar(row: _Row, width: int) -> str:
    wall, compute = max(row.values[0], 1e-9), row.values[1]
    full = round(width * compute / wall)
    idle = min(round(width * row.idle_share), width - full)
    return "█" * full + "░" * idle + "▒" * (width - full - idle)

"""A run, or several beside one another, as plain text of at most 100 columns.

rank place      step  compute pipeline      cp    fsdp    data starved    idle
   0 pp0 cp0   151.2    118.9     12.1     8.3    10.1     0.2     1.6   20.3 %  ██████████████░░░░▒
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import NamedTuple

from titan_wlb.metrics.scalars import percentile
from titan_wlb.report.facts import RankFacts, RunFacts
from titan_wlb.report.words import comparison, comparison_rows, span_words, story

WIDTH = 98
MAX_ROWS = 32
_BAR = 20
COLUMNS = {  # title -> places that it sums up
    "step": ("wall",),
    "compute": ("compute",),
    "pipeline": ("pipeline",),
    "cp": ("cp_waiting", "cp_transfer"),
    "fsdp": ("fsdp_waiting", "fsdp_transfer"),
    "data": ("data",),
    "starved": ("starved",),
}


def text_report(runs: Sequence[RunFacts]) -> str:
    """Several lines, the last without a line break; the first run is the one that others are compared with."""
    lines = [*_compared(runs), ""] if len(runs) > 1 else []
    for facts in runs:
        lines += [*run_text(facts), ""]
    return "\n".join(lines[:-1])


def run_text(facts: RunFacts) -> list[str]:
    """Lines of one run."""
    lines = [f" {facts.name} ".center(WIDTH, "─")]
    for sentence in (*span_words(facts), _speed(facts), *story(facts)):
        lines += wrap(sentence, WIDTH - 2, initial_indent="  ", subsequent_indent="    ")
    era = facts.last_era
    lines += ["", f"  ms per step, mean of steps {era.first} to {era.last}"]
    lines += rank_table(facts.ranks)
    for axis, members in facts.axes.items():
        lines += ["", f"  the same by {axis.upper()} rank", *rank_table(members, legend=False)]
    return lines


def rank_table(ranks: Sequence[RankFacts], *, legend: bool = True) -> list[str]:
    """A row a rank; of more than 32, their distribution and the slowest five."""
    rows = rows_shown(ranks)
    name_width = max(5, *(len(row.name) for row in rows))
    place_width = max(len(row.place) for row in rows)
    head = f"  {'rank':>{name_width}} {'place' if place_width else '':<{place_width}}"
    lines = [head + "".join(f"{title:>9}" for title in COLUMNS) + f"{'idle':>8}"]
    bar = min(WIDTH - len(lines[0]) - 2, _BAR)
    for row in rows:
        line = f"  {row.name:>{name_width}} {row.place:<{place_width}}" + "".join(f"{ms:>9.1f}" for ms in row.values)
        line += f"{100 * row.idle_share:>6.1f} %"
        lines.append(line + (f"  {_bar(row.values, row.idle_share, bar)}" if bar >= 8 else ""))
    if legend and bar >= 8:
        lines.append("█ compute  ░ idle (pipeline, cp, fsdp, data)  ▒ starved and other".rjust(WIDTH))
    return lines


class RowShown(NamedTuple):
    """A row of a table of ranks; ``values`` in ms, as ``COLUMNS``."""

    name: str
    place: str
    values: list[float]
    idle_share: float


def rows_shown(ranks: Sequence[RankFacts]) -> list[RowShown]:
    """A row a rank; of more than 32, their distribution and the five that compute longest."""
    rows = [RowShown(rank.name.removeprefix("rank "), rank.place, _values(rank), rank.idle_share) for rank in ranks]
    if len(rows) <= MAX_ROWS:
        return rows
    columns = [[row.values[i] for row in rows] for i in range(len(COLUMNS))]
    shares = [row.idle_share for row in rows]
    return [
        RowShown("min", "", [min(column) for column in columns], min(shares)),
        RowShown("mean", "", [sum(column) / len(column) for column in columns], sum(shares) / len(shares)),
        RowShown("p95", "", [percentile(column, 95) for column in columns], percentile(shares, 95)),
        RowShown("max", "", [max(column) for column in columns], max(shares)),
        *sorted(rows, key=lambda row: -row.values[1])[:5],
    ]


def _compared(runs: Sequence[RunFacts]) -> list[str]:
    lines = [f" {' / '.join(run.name for run in runs)} "[:WIDTH].center(WIDTH, "─")]
    for sentence in comparison(runs):
        lines += wrap(sentence, WIDTH - 2, initial_indent="  ", subsequent_indent="    ")
    rows = comparison_rows(runs)
    label_width = max(len(row.label) for row in rows)
    most = max((WIDTH - label_width - 2) // len(runs) - 9, 9)  # of a name; behind a value comes a ratio
    names = [run.name if len(run.name) <= most else f"{run.name[: most - 3]}..." for run in runs]
    widths = [max(len(name), 9) for name in names]
    head = (
        f"  {name:>{width}}{' ' * 7 if i else ''}" for i, (name, width) in enumerate(zip(names, widths, strict=True))
    )
    lines += ["", f"  {'':<{label_width}}{''.join(head)}".rstrip()]
    for row in rows:
        cells = [
            f"  {value or '-':>{width}}{'' if i == 0 else f' {ratio:>6}'}"
            for i, (value, ratio, width) in enumerate(zip(row.values, row.ratios, widths, strict=True))
        ]
        lines.append(f"  {row.label:<{label_width}}{''.join(cells)}".rstrip())
    return lines


def _speed(facts: RunFacts) -> str:
    speed = f"{facts.tokens_per_second:,.0f} tokens per second, {facts.step_ms:,.1f} ms per step"
    if facts.losses is None:
        return f"{speed}."
    (first, first_loss), (last, last_loss) = facts.losses
    return f"{speed}; loss {first_loss:.4f} (step {first}) -> {last_loss:.4f} (step {last})."


def _values(rank: RankFacts) -> list[float]:
    return [sum(rank.times_ms[place] for place in places) for places in COLUMNS.values()]


def _bar(values: Sequence[float], idle_share: float, width: int) -> str:
    full = round(width * values[1] / max(values[0], 1e-9))
    idle = min(round(width * idle_share), width - full)
    return "█" * full + "░" * idle + "▒" * (width - full - idle)

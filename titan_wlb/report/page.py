"""A run, or several beside one another, as one HTML file: no script, no network, light and dark, printable."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from titan_wlb.metrics.step_view import MAX_RANKS
from titan_wlb.report.facts import PLACES, RunFacts
from titan_wlb.report.pictures import (
    cause_bars,
    cost_dots,
    curves,
    heatmap,
    rank_columns,
    run_colour,
    time_bars,
)
from titan_wlb.report.runs import Run, document_costs, line_imbalance_degree
from titan_wlb.report.step_pictures import heights, micro_batches, timeline
from titan_wlb.report.style import STYLE
from titan_wlb.report.text import COLUMNS, rows_shown
from titan_wlb.report.words import (
    PLACE_WORDS,
    cause_words,
    comparison,
    comparison_rows,
    percent,
    slow_words,
    span_words,
    story,
)

_LINES_FOR_COSTS = 50  # steps whose documents tell the cost model; it has three numbers


def page(runs: Sequence[Run], facts: Sequence[RunFacts], steps: Sequence[int]) -> str:
    """The whole file.

    Args:
        runs: the first is the one that others are compared with.
        facts: of each.
        steps: one of each that is drawn in full.

    Raises:
        ValueError: a step was not logged.
    """
    title = "Where the time went" + (f": {facts[0].name}" if len(facts) == 1 else "")
    parts = [
        *_head(title, facts),
        *_times(facts),
        *_causes(facts),
        *_slow(runs, facts),
        *_over_the_steps(facts),
        *_packing(runs, facts, steps),
        *_timelines(runs, steps),
        *_numbers(facts),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n' + (
        "\n".join(parts) + "\n</body></html>\n"
    )


def _head(title: str, facts: Sequence[RunFacts]) -> list[str]:
    parts = [f"<h1>{escape(title)}</h1>"]
    for run in facts:
        name = f"{run.name}: " if len(facts) > 1 else ""
        parts.append(f'<p class="soft">{escape(name + " ".join(span_words(run)))}</p>')
    if len(facts) == 1:
        return [*parts, _tiles(facts[0]), *(f'<p class="lead">{escape(words)}</p>' for words in story(facts[0]))]
    parts += [f'<p class="lead">{escape(words)}</p>' for words in comparison(facts)]
    return [*parts, _comparison_table(facts)]


def _tiles(run: RunFacts) -> str:
    tiles = [
        (percent(run.idle_share), "of all rank time is idle"),
        *((f"{degree:.2f}", f"imbalance degree, {kind}") for kind, degree in run.degrees.items()),
        (f"{run.tokens_per_second:,.0f}", "tokens per second"),
        (f"{run.step_ms:,.0f} ms", "per step"),
    ]
    if run.delay_iterations is not None:
        tiles.append((f"{run.delay_iterations:.2f}", "steps that a token waits"))
    if run.losses is not None:
        tiles.append((f"{run.losses[1][1]:.3f}", f"loss at step {run.losses[1][0]}"))
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in tiles
    ) + "</div>"  # fmt: skip


def _comparison_table(facts: Sequence[RunFacts]) -> str:
    head = "".join(
        f"<th>{_swatch(run_colour(i, len(facts)))}{escape(run.name)}</th>{'<th></th>' if i else ''}"
        for i, run in enumerate(facts)
    )
    rows = []
    for row in comparison_rows(facts):
        cells = "".join(
            f"<td>{escape(value)}</td>{f'<td class=ratio>{escape(ratio)}</td>' if i else ''}"
            for i, (value, ratio) in enumerate(zip(row.values, row.ratios, strict=True))
        )
        kind = ' class="inner"' if row.label.startswith(" ") else ""
        rows.append(f"<tr><td{kind}>{escape(row.label.strip())}</td>{cells}</tr>")
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _times(facts: Sequence[RunFacts]) -> list[str]:
    used = [name for name in PLACES if any(run.share(name) >= 0.0005 for run in facts)]
    highest = 1.02 * max(rank.times_ms["wall"] for run in facts for rank in run.ranks)
    parts = ["<h2>Where a rank's time goes</h2>", _key([(f"at-{name}", PLACE_WORDS[name]) for name in used])]
    parts.append(_figure(time_bars(facts), "Mean of all ranks and steps."))
    parts.append('<div class="two">')
    for run in facts:
        era = run.last_era
        steps = f"steps {era.first} to {era.last}"
        parts.append(_figure(rank_columns(run.ranks, highest), f"{run.name}: ms per step, by rank, {steps}"))
        if len(facts) == 1 and run.axes:
            members = [member for axis in run.axes.values() for member in axis]
            parts.append(_figure(rank_columns(members, highest), "The same by place on each axis of the job"))
    return [*parts, "</div>"]


def _causes(facts: Sequence[RunFacts]) -> list[str]:
    picture = cause_bars(facts)
    if not picture:
        return []
    note = (
        "Each bar answers one question: what would the step have gained, had this alone been even? The answers overlap "
        "and need not add up. Where a rank waits (above) is not why it waits."
    )
    parts = ["<h2>Why</h2>", _run_key(facts), _figure(picture, note)]
    if len(facts) > 1:
        parts += [f"<p>{escape(f'{run.name}: {words}')}</p>" for run in facts for words in cause_words(run)[1:]]
    return parts


def _slow(runs: Sequence[Run], facts: Sequence[RunFacts]) -> list[str]:
    if all(len(run.ranks) == 1 for run in facts):
        return []
    ramp = 'own work over the mean of the step: 25 % less<span class="ramp"></span>25 % more'
    parts = ["<h2>Which ranks are slow</h2>", f'<p class="soft">{ramp}</p>']
    for run, of_run in zip(runs, facts, strict=True):
        words = " ".join(slow_words(of_run))
        parts.append(f"<p>{escape(_named(of_run, facts) + words)}</p>")
        parts.append(_figure(heatmap(run), ""))
    return parts


def _over_the_steps(facts: Sequence[RunFacts]) -> list[str]:
    pictures = [
        ("Idle share, %", curves(facts, "idle_share", lambda value: f"{value:g}", least=0.0, scale=100)),
        (
            "Imbalance degree: measured, and predicted (dashed)",
            curves(
                facts, "imbalance_degree_measured", lambda v: f"{v:.3g}", dashed="imbalance_degree_predicted", least=1.0
            ),
        ),
        ("Tokens per second", curves(facts, "tokens_per_second", lambda value: f"{value:,.0f}", least=0.0)),
        ("Loss", curves(facts, "loss", lambda value: f"{value:.3g}")),
    ]
    parts = ["<h2>Over the steps</h2>"]
    parts += [_run_key(facts)] if len(facts) > 1 else []
    return [*parts, '<div class="two">', *(_figure(drawn, title) for title, drawn in pictures if drawn), "</div>"]


def _packing(runs: Sequence[Run], facts: Sequence[RunFacts], steps: Sequence[int]) -> list[str]:
    found = []
    for run, step in zip(runs, steps, strict=True):
        documents = run.documents()
        if documents is not None and step in documents:
            known = documents.steps[:_LINES_FOR_COSTS]
            found.append((run, documents.read(step), document_costs([documents.read(one) for one in known])))
    highest = max((sum(h for _, h in stack) for _, read, costs in found for stack in heights(read, costs)), default=1.0)
    figures = []
    for run, read, costs in found:
        degree = f"step {read['step']}, imbalance degree {line_imbalance_degree(read):.2f}"
        caption = f"{run.name}: {degree}. A column a micro-batch, a block a document, as high as its predicted work"
        figures.append(_figure(micro_batches(read, costs, max(highest, 1.0)), caption))
    dots = cost_dots(facts)
    if dots:
        words = "; ".join(f"{_named(run, facts)}to within {percent(run.cost.error)}" for run in facts if run.cost)
        note = f"Measured over predicted cost of micro-batches, ms, predictions to scale. Predicted {words}"
        figures.append(_figure(dots, note))
    if not figures:
        return []
    return ["<h2>What the packing did</h2>", '<div class="two">', *figures, "</div>"]


def _timelines(runs: Sequence[Run], steps: Sequence[int]) -> list[str]:
    drawn = [(run, step, *run.records(step)) for run, step in zip(runs, steps, strict=True)]
    longest = max(record.ms("wall") for *_, records in drawn for record in records)
    waits = ("pipeline", "cp", "fsdp", "data", "starved", "other")
    used = [name for name in waits if any(record.ms(name) > 0.002 * longest for *_, rs in drawn for record in rs)]
    key = [("shade2", "a micro-batch: F forward, B backward"), ("phase", "before, norm, optimizer")]
    parts = ["<h2>One step</h2>", _key([*key, *((f"at-{name}", name) for name in used)])]
    for run, step, layout, records in drawn:
        share = sum(record.ms("idle") for record in records) / max(sum(record.ms("wall") for record in records), 1e-9)
        some = f"; of {layout.size:,} ranks the slowest pipelines and the fastest" if layout.size > MAX_RANKS else ""
        caption = f"{run.name}: step {step}, {percent(share)} idle{some}"
        parts.append(_figure(timeline(layout, records, longest), caption))
    note = (
        "Every rank's clock starts at 0. Within an action waits are drawn in a fixed order: how long they took was "
        "measured, where in the action they lay was not. tools/report.py --trace writes the step for ui.perfetto.dev."
    )
    return [*parts, f'<p class="soft">{note}</p>']


def _numbers(facts: Sequence[RunFacts]) -> list[str]:
    parts = ["<h2>Numbers</h2>"]
    for run in facts:
        era = run.last_era
        head = "".join(f"<th>{escape(title)}</th>" for title in ("place", *COLUMNS, "idle"))
        body = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(place)}</td>"
            + "".join(f"<td>{value:,.1f}</td>" for value in values)
            + f"<td>{percent(share)}</td></tr>"
            for name, place, values, share in rows_shown(run.ranks)
        )
        caption = f"{run.name}: ms per step, mean of steps {era.first} to {era.last}"
        parts.append(f"<h3>{escape(caption)}</h3>")
        parts.append(f'<div class="wide"><table><tr><th>rank</th>{head}</tr>{body}</table></div>')
    note = (
        "step = compute + pipeline + cp + fsdp + data + starved + other; idle = pipeline + cp + fsdp + data. "
        "Tensor-parallel collectives and launch gaps count as compute. Of cp and fsdp, the least time that any rank of "
        "the group spent in a collective is its transfer, the rest is waiting. Imbalance degree = number of "
        "micro-batches x the largest work / the sum of works."
    )
    return [*parts, f'<p class="soft">{note}</p>']


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}{picture}</figure>"


def _key(entries: Sequence[tuple[str, str]]) -> str:
    return (
        '<div class="key">'
        + "".join(f"<span>{_swatch(kind)}{escape(words)}</span>" for kind, words in entries)
        + "</div>"
    )


def _run_key(facts: Sequence[RunFacts]) -> str:
    return _key([(run_colour(i, len(facts)), run.name) for i, run in enumerate(facts)]) if len(facts) > 1 else ""


def _swatch(kind: str) -> str:
    box = f'<rect width="12" height="12" rx="2" class="{kind}"/>'
    return f'<svg viewBox="0 0 12 12" class="swatch" aria-hidden="true">{box}</svg>'


def _named(run: RunFacts, facts: Sequence[RunFacts]) -> str:
    return f"{run.name}: " if len(facts) > 1 else ""

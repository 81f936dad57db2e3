"""What the facts mean, in sentences: shared by the text and the page. Source: ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titan_wlb.report.facts import RunFacts
from titan_wlb.report.slow_ranks import SLOW_FROM

PLACE_WORDS = {
    "compute": "compute",
    "pipeline": "waiting for another stage",
    "cp_waiting": "waiting for a CP rank",
    "cp_transfer": "K/V transfer",
    "fsdp_waiting": "waiting for an FSDP rank",
    "fsdp_transfer": "FSDP transfer",
    "data": "waiting for the loader",
    "starved": "starved (core taken)",
    "other": "logging, checkpoints",
}
CAUSE_WORDS = {
    "cp": "CP ranks",
    "pipeline": "micro-batches in a pipeline",
    "dp": "DP ranks",
    "slow_rank": "one slow rank",
    "stage": "stages of a pipeline",
    "data": "the loader",
    "starved": "other processes on the cores",
}
_IDLE_PLACES = ("pipeline", "cp_waiting", "cp_transfer", "fsdp_waiting", "fsdp_transfer", "data")
_WAITING_PLACES = ("pipeline", "cp_waiting", "fsdp_waiting", "data")


@dataclass(frozen=True)
class Row:
    """A line of the comparison: a value of each run.

    Args:
        label: what it is.
        values: in words, one a run; "" where it was not recorded.
        ratios: each value over the first run's, "" for the first and where ratios say nothing.
    """

    label: str
    values: tuple[str, ...]
    ratios: tuple[str, ...]


def percent(share: float) -> str:
    """0.1234 -> 12.3 %."""
    return f"{100 * share:.1f} %"


def duration(ms: float) -> str:
    """1234.5 -> "1,234 ms", 1.234 -> "1.23 ms"."""
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"


def span_words(facts: RunFacts) -> list[str]:
    """Which steps these are, and of what ranks."""
    first, last = facts.eras[0].first, facts.eras[-1].last
    left_out = facts.logged - facts.counted
    logged = "" if facts.logged == last - first + 1 else f", {facts.logged} of them logged"
    but = f"; means leave out {left_out} in which processes warmed up" if left_out else ""
    lines = [f"{facts.eras[-1].layout}, steps {first} to {last}{logged}{but}."]
    if len(facts.eras) > 1:
        eras = "; ".join(f"steps {era.first} to {era.last} on {era.layout}" for era in facts.eras)
        lines.append(f"Resumed on another layout: {eras}.")
    if facts.restarts:
        lines.append(f"Taken up again at step {', '.join(map(str, facts.restarts))}: what came later was trained anew.")
    return lines


def story(facts: RunFacts) -> list[str]:
    """A run in some sentences: what was lost, where, by whom, why, and what the packing did."""
    return [
        *_lost(facts),
        *slow_words(facts),
        *cause_words(facts),
        *_balance(facts),
    ]


def slow_words(facts: RunFacts) -> list[str]:
    """Whether it is always the same rank."""
    slow, over = facts.slow, f"{100 * (SLOW_FROM - 1):.0f} %"
    if slow.kind == "alone":
        return []
    if slow.kind == "few":
        return [f"Too few steps to tell a slow rank from chance ({slow.num_steps}; at least 9)."]
    if slow.kind == "same":
        named = ", ".join(
            f"rank {one.rank} (slow in {percent(one.share_of_steps)} of the steps, by {percent(one.excess)})"
            for one in slow.ranks[:4]
        )
        more = f" and {slow.num_same - 4} more" if slow.num_same > 4 else ""
        are = "rank is" if slow.num_same == 1 else "ranks are"
        return [f"Always the same {are} slow, which points to a machine: {named}{more}."]
    if slow.kind == "rotating":
        return [
            f"In {percent(slow.share_of_steps)} of the steps a rank works at least {over} longer than its peers, but "
            "not always the same, which points to the data and not to a machine."
        ]
    return [
        f"No rank is slow: in {percent(1 - slow.share_of_steps)} of the steps all are within {over} of their peers."
    ]


def cause_words(facts: RunFacts) -> list[str]:
    """Why, where the run recorded it."""
    if not facts.lost_ms:
        return []
    lost = [(cause, ms) for cause, ms in facts.lost_ms.items() if ms >= 5e-4 * facts.step_ms]
    lost.sort(key=lambda item: -item[1])
    if not lost:
        return ["No single cause costs a step 0.05 % or more."]
    gains = ", ".join(
        f"{CAUSE_WORDS.get(cause, cause)} {duration(ms)} ({percent(ms / max(facts.step_ms, 1e-9))})"
        for cause, ms in lost
    )
    lines = [f"A step of {duration(facts.step_ms)} would have gained, had only these been even: {gains}."]
    if facts.slow_rank is not None and facts.slow_rank[1] >= 0.5:
        rank, share = facts.slow_rank
        lines.append(f"Rank {rank} is named as the slow one in {percent(share)} of the steps.")
    return lines


def _lost(facts: RunFacts) -> list[str]:
    parts = [(place, facts.share(place)) for place in _IDLE_PLACES]
    named = [f"{percent(share)} {PLACE_WORDS[place]}" for place, share in parts if share >= 0.0005]
    waiting = sum(facts.share(place) for place in _WAITING_PLACES)
    lines = [
        f"{percent(facts.idle_share)} of all rank time is idle{': ' + ', '.join(named) if named else ''}; "
        f"so far {_rank_time(facts.lost_rank_hours)}."
    ]
    if len(facts.ranks) > 1:
        most = max(facts.ranks, key=lambda rank: rank.idle_share)
        least = min(facts.ranks, key=lambda rank: rank.idle_share)
        lines.append(
            f"{percent(waiting)} is waiting for others. {most.name.capitalize()}{_in(most.place)} is idle most "
            f"({percent(most.idle_share)}), {least.name}{_in(least.place)} least ({percent(least.idle_share)})."
        )
    if facts.share("blocked") >= 0.005:
        lines.append(
            f"{percent(facts.share('blocked'))} of the time is counted as compute but was spent off the core: a wait "
            "that no clock knows, or a sleep."
        )
    if facts.share("starved") >= 0.05:
        lines.append(
            f"{percent(facts.share('starved'))} of the time a rank was ready and its core was another process's: "
            "compare such times with care."
        )
    return lines


def _balance(facts: RunFacts) -> list[str]:
    lines = []
    if facts.degrees:
        degrees = " and ".join(f"{value:.3f} {kind}" for kind, value in facts.degrees.items())
        price = "" if facts.delay_iterations is None else f"; a token waits {facts.delay_iterations:.2f} steps"
        lines.append(f"Imbalance degree of the micro-batches (1 is ideal): {degrees}{price}.")
    if facts.cost is not None:
        lines.append(
            f"The cost of a micro-batch is predicted to within {percent(facts.cost.error)}; it takes "
            f"{facts.cost.scale:.2f} times as long as predicted."
        )
    return lines


def comparison(runs: Sequence[RunFacts]) -> list[str]:
    """Each further run against the first, in sentences."""
    first, lines = runs[0], []
    for other in runs[1:]:
        ratio = other.tokens_per_second / max(first.tokens_per_second, 1e-9)
        lines.append(
            f"{other.name} trains {ratio:.2f} times as many tokens a second as {first.name} "
            f"({other.tokens_per_second:,.0f} against {first.tokens_per_second:,.0f})."
        )
        lines.append(
            f"{percent(other.idle_share)} of its rank time is idle, against {percent(first.idle_share)}"
            + (f"; {_degree_words(other, first)}." if other.degrees and first.degrees else ".")
        )
        if other.delay_iterations is not None and first.delay_iterations is not None:
            lines.append(
                f"A token of {other.name} waits {other.delay_iterations:.2f} steps to be trained, against "
                f"{first.delay_iterations:.2f}."
            )
        if other.eras[-1].layout != first.eras[-1].layout:
            lines.append(f"The layouts differ ({other.eras[-1].layout}; {first.eras[-1].layout}): not like with like.")
        starved = max(other.share("starved"), first.share("starved"))
        if starved >= 0.05:
            lines.append(f"Other processes took up to {percent(starved)} of the cores' time: do not trust the ratios.")
    return lines


def comparison_rows(runs: Sequence[RunFacts]) -> list[Row]:
    """The same as a table, with what the sentences leave out."""
    rows = [
        _row("tokens per second", [run.tokens_per_second for run in runs], ",.0f", ratio=True),
        _row("ms per step", [run.step_ms for run in runs], ",.1f", ratio=True),
        _row("ms per step, 95th percentile", [run.step_ms_p95 for run in runs], ",.1f", ratio=True),
        _row("tokens per step", [run.tokens for run in runs], ",.0f", ratio=True),
        _row("idle share, %", [100 * run.idle_share for run in runs], ".1f"),
    ]
    rows += [
        _row(f"  {PLACE_WORDS[place]}, %", [100 * run.share(place) for run in runs], ".1f")
        for place in (*_IDLE_PLACES, "starved")
        if any(run.share(place) >= 0.0005 for run in runs)
    ]
    rows += [
        _row(f"imbalance degree, {kind}", [run.degrees.get(kind) for run in runs], ".3f")
        for kind in ("predicted", "measured")
    ]
    rows += [
        _row(
            "cost predicted to within, %", [None if run.cost is None else 100 * run.cost.error for run in runs], ".1f"
        ),
        _row("delay of a token, steps", [run.delay_iterations for run in runs], ".3f"),
    ]
    causes = dict.fromkeys(cause for run in runs for cause, ms in run.lost_ms.items() if ms >= 5e-4 * run.step_ms)
    rows += [
        _row(f"lost to {CAUSE_WORDS.get(cause, cause)}, ms a step", [run.lost_ms.get(cause) for run in runs], ".1f")
        for cause in causes
    ]
    rows.append(_row("rank-hours lost so far", [run.lost_rank_hours for run in runs], ",.3g"))
    step, losses = common_losses(runs)
    if step is not None:
        rows.append(_row(f"loss at step {step}", losses, ".4f"))
    return [row for row in rows if any(row.values)]


def common_losses(runs: Sequence[RunFacts]) -> tuple[int | None, list[float | None]]:
    """(the last step that all runs logged a loss of, the losses)."""
    known = [
        {
            int(step): loss
            for step, loss in zip(run.series["step"], run.series["loss"], strict=True)
            if step is not None and loss is not None
        }
        for run in runs
    ]
    common = set.intersection(*map(set, known)) if known else set()
    if not common:
        return None, [None for _ in runs]
    return max(common), [losses[max(common)] for losses in known]


def _degree_words(other: RunFacts, first: RunFacts) -> str:
    kinds = [kind for kind in ("predicted", "measured") if kind in other.degrees and kind in first.degrees]
    words = ", ".join(f"{other.degrees[kind]:.2f} against {first.degrees[kind]:.2f} {kind}" for kind in kinds)
    return f"imbalance degree {words}"


def _row(label: str, values: Sequence[float | None], form: str, *, ratio: bool = False) -> Row:
    base = values[0]
    ratios = [
        f"{value / base:.2f}x" if ratio and place and value is not None and base else ""
        for place, value in enumerate(values)
    ]
    return Row(label, tuple("" if value is None else format(value, form) for value in values), tuple(ratios))


def _rank_time(hours: float) -> str:
    return f"{3600 * hours:,.0f} rank-seconds" if hours < 0.1 else f"{hours:,.1f} rank-hours"


def _in(place: str) -> str:
    return f" ({place})" if place else ""

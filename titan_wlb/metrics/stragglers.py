"""Who is slow: a table of the slowest ranks for TensorBoard's Text tab, and a line in the log when one stays slow."""

from __future__ import annotations

from collections.abc import Sequence

from titan_wlb.records import Layout
from titan_wlb.records.per_rank import columns

SLOWEST_SHOWN = 10
NO_RANK = -1


def slowest_table(rows: Sequence[Sequence[float]], layout: Layout, step: int) -> str:
    """The ranks that computed longest in a step, in Markdown; compute over the mean, idle over the rank's wall time.

        **Slowest of 4 ranks in step 10** (compute, mean 25.0 ms)

        | rank | place | compute, ms | over the mean | starved, ms | idle |
        |-----:|-------|------------:|--------------:|------------:|-----:|
        | 3    | pp1 cp1 | 40.0      | 1.60          | 0.0         | 10 % |

    Args:
        rows: of ``per_rank_rows``.
        layout: of the job.
        step: they are of.
    """
    of_ranks = columns(rows)
    compute = of_ranks["compute"]
    mean = sum(compute) / len(compute)
    lines = [
        f"**Slowest of {len(rows)} ranks in step {step}** (compute, mean {mean:.1f} ms)",
        "",
        "| rank | place | compute, ms | over the mean | starved, ms | idle |",
        "|-----:|-------|------------:|--------------:|------------:|-----:|",
    ]
    for rank in sorted(range(len(rows)), key=lambda rank: -compute[rank])[:SLOWEST_SHOWN]:
        idle = 100 * of_ranks["idle"][rank] / max(of_ranks["wall"][rank], 1e-9)
        over = compute[rank] / max(mean, 1e-9)
        numbers = f"{compute[rank]:.1f} | {over:.2f} | {of_ranks['starved'][rank]:.1f} | {idle:.0f} %"
        lines.append(f"| {rank} | {place_name(layout, rank)} | {numbers} |")
    return "\n".join(lines)


def place_name(layout: Layout, rank: int) -> str:
    """Where a rank stands on the axes that have more than one rank: "pp1 cp1"."""
    degrees = (layout.pp, layout.dp, layout.cp, layout.tp)
    places = zip(("pp", "dp", "cp", "tp"), degrees, layout.coordinates(rank), strict=True)
    return " ".join(f"{name}{place}" for name, degree, place in places if degree > 1)


class StragglerLog:
    """Says when a rank is persistently slow, and when that is over; not at every step that it lasts.

        steps 10 ... 80, rank 3 slow from 20 on, logged every 10 steps        lines at 20, 30, 40 and 60

    A line when it begins and at the next logged step, then whenever it has lasted twice as long as at the line before,
    and one when it ends.

    Args:
        layout: of the job.
    """

    def __init__(self, layout: Layout):
        self._layout = layout
        self._rank = NO_RANK
        self._since = self._next = 0  # step in which it began; step from which on it is said again

    def line(self, step: int, slow_rank: int, lost_ms: float = 0.0) -> str | None:
        """What to log at this step; None for nothing.

        Args:
            step: a logged one.
            slow_rank: global rank that is persistently slow; -1 for none.
            lost_ms: what a step would gain if it were as fast as the others.
        """
        before, since = self._rank, self._since
        if slow_rank != before:
            self._rank, self._since, self._next = slow_rank, step, step
        if slow_rank == NO_RANK:
            return None if before == NO_RANK else f"Rank {before} is no longer slow (it was from step {since} on)"
        if step < self._next:
            return None
        self._next = step + max(step - self._since, 1)
        place = place_name(self._layout, slow_rank)
        lasting = f" since step {self._since}" if step > self._since else ""
        return (
            f"Rank {slow_rank}{f' ({place})' if place else ''} is persistently slow{lasting}: as fast as the others it "
            f"would save {lost_ms:.0f} ms a step. Documents change from step to step; look at this rank's machine"
        )

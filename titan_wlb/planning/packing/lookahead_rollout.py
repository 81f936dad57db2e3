"""How many tokens wait if a group is trained now and, from the next step on, always the longest document that can lead.

    N = 2, 16 tokens a step, a document of d tokens costs d^2, short ones twice their tokens

    this step         C 7 waits                                                     7 tokens wait
    next step         E 8 and 8 short tokens arrive: 64 + 49 + 16 are enough
                      for 2 x 64, E leads, with C beside it                         0
    the step after    F 9 and 7 short tokens arrive: F cannot lead                  9
                                                                                   16 is the score

The price of an uneven step counts as waiting tokens. Short documents are a fluid, as dense as they are now.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.packing.lookahead_group import Fluid, Group, Item, Limits, forced, leaders
from titan_wlb.planning.workload import Workload

_LENGTH = itemgetter(0)


class Forecast:
    """The long documents of the stream to come.

    Args:
        lengths: of the next documents, tokens.
        asked: tokens that they were to make up.
        shortest: length from which on a document is a long one.
        workload: what a document costs.

    Attributes:
        num_tokens: of all documents to come that are seen.
        ends: whether these are the last ones.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], asked: int, shortest: int, workload: Workload) -> None:
        places = np.flatnonzero(lengths >= shortest)
        ends = np.cumsum(lengths)
        long = lengths[places]
        self.offsets: list[int] = (ends[places] - long).tolist()  # tokens before each
        self.items = [(length, workload.cost(length)) for length in long.tolist()]
        self.num_tokens = int(ends[-1]) if len(ends) else 0
        shorts = lengths[lengths < shortest]
        tokens, squares = int(shorts.sum()), int((shorts * shorts).sum())
        self.shorts = Fluid(tokens, _work(workload, len(shorts), tokens, squares) / max(tokens, 1))
        self._long_work = sum([work for _, work in self.items])
        self.ends = self.num_tokens < asked

    def arrivals(self, start: tuple[int, int], tokens: int, step: int) -> tuple[list[Item], tuple[int, int]]:
        """Long documents among the next tokens, and where the stream stands then: (tokens, long documents) passed."""
        position, first = start
        stop = bisect_left(self.offsets, position + tokens, first)
        items = [Item(length, work, -1, step) for length, work in self.items[first:stop]]
        return items, (position + tokens, stop)

    def is_over(self, place: tuple[int, int]) -> bool:
        """Whether the data ends before this place."""
        return self.ends and place[0] >= self.num_tokens

    @property
    def density(self) -> float:
        """Work of a token to come."""
        return max(self._long_work + self.shorts.work, 1.0) / max(self.num_tokens, 1)

    def tokens_with_shorts(self, start: tuple[int, int], tokens: float) -> int:
        """How many tokens of the stream it takes to have ``tokens`` of short documents."""
        position, place = start
        end = position + int(tokens)
        while place < len(self.offsets) and self.offsets[place] < end:
            end += self.items[place][0]
            place += 1
        return end - position


def lengths_of_pieces(lengths: npt.NDArray[np.int64], window: int) -> npt.NDArray[np.int64]:
    """Of what documents longer than the window come in: [9, 2] of a window of 4 is [4, 4, 1, 2]."""
    counts = -(-lengths // window)
    found = np.full(int(counts.sum()), window, dtype=np.int64)
    found[np.cumsum(counts) - 1] = lengths - (counts - 1) * window
    return found


def _work(workload: Workload, documents: int, tokens: int, squares: int) -> int:
    """Of documents with these sums of lengths and of their squares."""
    return (
        workload.constant * documents
        + (workload.linear * tokens + workload.quadratic * squares) // workload.denominator
    )


@dataclass(frozen=True, slots=True)
class Rollout:
    """What follows from a choice.

    Args:
        forecast: documents to come.
        limits: of every step.
        step_tokens: N x W, drawn in every step that is not steady.
        num_steps: that are looked ahead.
        price: tokens that may wait a step for an excess of 1 of the largest work over the mean.
        step: that is planned.
        max_age: steps that a document may wait; 0: any number.
    """

    forecast: Forecast
    limits: Limits
    step_tokens: int
    num_steps: int
    price: float
    step: int
    max_age: int

    def score(self, group: Group, shorts: Fluid, held: int = 0) -> float:
        """Tokens that wait after this step and each of the next ones, summed, and the price of the imbalance.

        Args:
            group: that is trained now.
            shorts: at hand now.
            held: documents of this many tokens or more lead later only if the longest does, as companions; 0: none.
        """
        steady = self.limits.step_tokens
        place = (0, 0)
        score = 0.0
        for step in range(self.step + 1, self.step + 1 + self.num_steps):
            rest = max(0.0, shorts.tokens - group.shorts.tokens)
            score += sum([item.length for item in group.waiting]) + rest + self.price * group.excess
            if self.forecast.ends and place[0] >= self.forecast.num_tokens:
                return score  # the data ends
            drawn = self.step_tokens
            if steady:
                drawn = self.forecast.tokens_with_shorts(place, group.shorts.tokens - rest)
            arrived, place = self.forecast.arrivals(place, drawn, step)
            outliers = sorted([*group.waiting, *arrived], key=_LENGTH, reverse=True)
            tokens = rest + max(0, drawn - sum([item.length for item in arrived]))
            shorts = Fluid(tokens, shorts.density)
            due = step - self.max_age if self.max_age else -1
            if self.forecast.ends and place[0] >= self.forecast.num_tokens:
                due = step
            found = leaders(outliers, shorts, self.limits, 1, due, held) or forced(
                outliers, shorts, self.limits, 1, due
            )
            if not found:
                break
            group = found[0]
        rest = max(0.0, shorts.tokens - group.shorts.tokens)
        return score + sum([item.length for item in group.waiting]) + rest + self.price * group.excess

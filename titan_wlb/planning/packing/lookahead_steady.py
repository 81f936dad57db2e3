"""Which group a steady step trains: the first of the best sequence of groups that is found for the next steps.

    N = 2, W = 16, 32 tokens a step, a document of d tokens costs d^2, short ones their tokens

    waiting         A 12, B 12, C 9, D 8; only short documents arrive
    B leads now     B | C D and 3 short tokens: A waits         12 tokens wait
    next step       A finds no partner                          12 again
    A leads now     A | B and 8 short tokens: C and D wait      17
    next step       C | D and 15 short tokens                    0: the better sequence

What waits after a step is what was drawn beyond the tokens trained, so a step should draw little; and a long document
needs others of nearly its length beside it, so it should leave behind what the next ones go with. Neither is seen in a
step alone. A few sequences of groups are extended step by step, and of all that follow from them the best few are kept
(a beam search). A step may draw only what it cannot do without, or also short documents ahead, which bring long ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from operator import itemgetter
from typing import NamedTuple

from titan_wlb.planning.packing.lookahead_group import Fluid, Group, Item, Limits, candidates, forced, lead
from titan_wlb.planning.packing.lookahead_rollout import Forecast

_LENGTH = itemgetter(0)
_SCORE = itemgetter(0)
_AHEAD = 0.5  # of a step's tokens: short ones that may be drawn before it is known which are needed


class Choice(NamedTuple):
    """What a steady step may do.

    Args:
        drawn: tokens of the stream to draw before the group is put together.
        leader: place of the group's leader among the long documents that are at hand then.
    """

    drawn: int
    leader: int


class _State(NamedTuple):
    score: float
    waiting: list[Item]
    rest: float  # tokens of short documents
    place: tuple[int, int]  # in the forecast
    first: Choice


@dataclass(frozen=True, slots=True)
class SteadySearch:
    """The search from one step on.

    Args:
        forecast: documents to come.
        limits: of every step, with the largest tolerance that may be chosen.
        price: tokens that may wait a step for an excess of the largest work over the level by a usual step's mean.
        step: that is planned.
        max_age: steps that a document may wait; 0: any number.
        num_steps: that are planned, this one among them.
        width: sequences that are kept.
        count: leaders that are tried in each.
    """

    forecast: Forecast
    limits: Limits
    price: float
    step: int
    max_age: int
    num_steps: int
    width: int
    count: int

    def ranked(self, outliers: Sequence[Item], shorts: Fluid, due: int) -> list[Choice]:
        """What this step may do, best first; empty where nothing balances it.

        Args:
            outliers: at hand, longest first.
            shorts: at hand.
            due: what arrived in this step or before it has to be trained; -1: nothing has to.
        """
        tokens = shorts.tokens + sum([item.length for item in outliers])
        usual = self.forecast.density * self.limits.step_tokens / self.limits.num_micro_batches
        states = []
        for drawn in self._draws((0, 0), shorts.tokens, tokens):
            for leader, state in self._follow(outliers, shorts, (0, 0), drawn, self.step, due, usual):
                states.append(state._replace(first=Choice(drawn, leader)))
        best = {state.first: state.score for state in states}
        for step in range(self.step + 1, self.step + self.num_steps):
            states = self._kept(states)
            following = []
            for state in states:
                if self.forecast.is_over(state.place):
                    following.append(state)
                    continue
                have = state.rest + sum([item.length for item in state.waiting])
                rest = Fluid(state.rest, self.forecast.shorts.density or shorts.density)
                late = step - self.max_age if self.max_age else -1
                for drawn in self._draws(state.place, state.rest, have):
                    for _, new in self._follow(state.waiting, rest, state.place, drawn, step, late, usual):
                        following.append(new._replace(score=new.score + state.score, first=state.first))
            states = following or states
        order = sorted(best, key=best.__getitem__)
        final = [state.first for state in sorted(states, key=_SCORE)]
        return list(dict.fromkeys([*final, *order]))

    def _kept(self, states: Sequence[_State]) -> list[_State]:
        """The best ones, of those that come to the same the better."""
        best: dict[tuple[int, ...], _State] = {}
        for state in states:
            key = (state.place[1], *map(_LENGTH, state.waiting))
            if key not in best or state.score < best[key].score:
                best[key] = state
        return nsmallest(self.width, best.values(), key=_SCORE)

    def _draws(self, place: tuple[int, int], shorts: float, tokens: float) -> list[int]:
        """How many tokens a step may draw before it chooses: what it has to, and with short ones ahead."""
        needed = max(0, self.limits.step_tokens - int(tokens))
        ahead = self.forecast.tokens_with_shorts(place, max(0.0, _AHEAD * self.limits.step_tokens - shorts))
        return [needed, ahead] if ahead > needed else [needed]

    def _follow(
        self,
        outliers: Sequence[Item],
        shorts: Fluid,
        place: tuple[int, int],
        drawn: int,
        step: int,
        due: int,
        usual: float,
    ) -> Iterator[tuple[int, _State]]:
        """Leaders of a step, and the state that each leaves; its score is of this step alone."""
        forecast, density = self.forecast, shorts.density
        arrived, place = forecast.arrivals(place, drawn, step)
        if arrived:
            outliers = sorted([*outliers, *arrived], key=_LENGTH, reverse=True)
        have = shorts.tokens + max(0, drawn - sum([item.length for item in arrived]))
        shorts = Fluid(have, density)
        if forecast.is_over(place):
            due = step
        found: list[tuple[int, Group]] = []
        for leader in candidates(outliers, shorts, self.limits, self.count, due):
            group = lead(outliers, leader, shorts, self.limits, due)
            if group is not None:
                found.append((leader, group))
        if not found:
            found = [(-1, group) for group in forced(outliers, shorts, self.limits, 2, due)]
        for leader, group in found:
            waiting, rest, then = group.waiting, have - group.shorts.tokens, place
            if rest < 0:
                lacking = forecast.tokens_with_shorts(place, -rest)
                more, then = forecast.arrivals(place, lacking, step)
                rest += max(0, lacking - sum([item.length for item in more]))
                if more:
                    waiting = sorted([*waiting, *more], key=_LENGTH, reverse=True)
            rest = max(rest, 0.0)
            price = self.price * group.excess * group.level / usual  # a heavy step's excess costs more time
            score = rest + sum([item.length for item in waiting]) + price
            yield leader, _State(score, waiting, rest, then, Choice(0, 0))

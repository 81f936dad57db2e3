"""Balance and little delay at once: which long document leads a step is decided by looking ahead (ours).

    N = 2, W = 16, a document of d tokens costs d^2; documents from a quarter of the window on are long

    step 1    arrives  A 12, B 5, C 5, D 3, E 3, F 2, G 2
              A costs 144, all the others 76: it cannot lead, and waits. B leads
              micro-batches  [B D F] [C E G]      work 38 and 38
    step 2    arrives  H 11, I 5, J 4, K 4, P 3, M 3, O 2
              A can lead: with H beside it, the others supply the work that both lack
              micro-batches  [A J P O] [H I K M]  work 173 and 171

The paper's rule releases N outliers of a queue at a time, whatever their lengths. Here long documents wait in one
list. The longest of a step, its leader, sets the work that every micro-batch has to reach; a document can lead where
the shorter ones at hand supply that work under the cap. Per step:

1. Who can lead? Candidates, from the longest that can to none at all (``lookahead_group``).
2. Each is followed through the next steps, whose lengths are known from the index: the candidate counts that leaves the
   fewest tokens waiting over these steps (``lookahead_rollout``).
3. Its micro-batches are filled with short documents (``lookahead_fill``). Where real documents do not balance them as
   well as expected, the next best candidate is taken.

``balance_tolerance`` trades balance for delay. It is an exchange rate: a step may exceed the mean by that much more for
5 % of a global batch waiting a step less. Most steps are balanced far better, some exceed it by more where much waiting
is saved; up to 0.01 the mean excess is less than the tolerance. What it costs: about 1 ms a step at N = 4, and an index
that is eight global batches ahead.

What has reached the age bound is trained, and so is everything at the end of the data. Both are seen coming: a
candidate that keeps companions for such a document is followed, too. Where they are still too few, the step draws up to
two further global batches, a quarter after the other, so that the documents that are due are balanced by documents
instead of by waiting ranks. A bound of one or two steps is kept so, too, at a mean excess of 0.015 and 0.001 on skewed
lengths at N = 4 and with room for two windows; a few steps are far from balanced then, up to 1.4 and 1.1.

A steady step trains N x W tokens: it draws short documents for what its long ones leave of them. More short documents
cannot lift the others to the leader's work then, only long ones of nearly its length can, and these are rare: steady
steps wait longer and exceed the mean by more, on skewed lengths at N = 4 by 0.006 in the mean. What is trained is the
beginning of the best sequence of steps that a search finds (``lookahead_steady``).

Documents longer than the window come as pieces. Of documents of one length the earlier are trained first. Where the cap
binds in every step, the shortest documents wait for one in which it does not; the age bound is what limits that.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from titan_wlb.planning.packing.lookahead_fill import Filled, fill
from titan_wlb.planning.packing.lookahead_group import Fluid, Group, Item, Limits, forced, lead, leaders
from titan_wlb.planning.packing.lookahead_pool import Pool, newest_left_out
from titan_wlb.planning.packing.lookahead_rollout import Forecast, Rollout, lengths_of_pieces
from titan_wlb.planning.packing.lookahead_steady import SteadySearch
from titan_wlb.planning.packing.packer import Stream, Waiting
from titan_wlb.planning.plan import Segment
from titan_wlb.planning.workload import Workload

NUM_STEPS = 8  # looked ahead; twice as many leave no fewer tokens waiting
_NUM_LEADERS = 8  # candidates
_NUM_PLACED = 4096  # long documents placed for the candidates: there are fewer of these where very many wait
_NUM_FILLED = 4  # candidates filled with real documents
_NUM_EXTRA, _EXTRA_PARTS = 2, 4  # global batches, in quarters, that a step may draw beside its own for what is due
_MOST_WAITING = 4  # global batches at hand with which a steady step draws no more
_PRICE = 0.05  # of a global batch that waits a step longer is as bad as an excess of one tolerance
_WIDEST = 40  # tolerances: no step exceeds the mean by more, unless it is forced to
_LEAST_TOLERANCE = 1e-4  # to which real documents balance a step
_NEARLY = 2  # tolerances by which real documents may miss what is expected of a group
# Likewise where steps are steady. What another group would draw waits, which is worse than a group not quite as even.
# The more micro-batches, the fewer steps are even: with N's bits the price falls and the widest tolerance grows.
_STEADY_PRICE, _STEADY_WIDEST, _STEADY_NEARLY = 0.04, 40, 30
_USUAL_SHORTS = 0.7  # of a steady step's tokens are short documents


class Lookahead:
    """Balances the work of N micro-batches, and lets as few tokens wait as that allows.

    Args:
        num_micro_batches: N.
        context_window: W, tokens.
        max_tokens: hard cap on a micro-batch's tokens, at least W.
        workload: what a document costs.
        balance_tolerance: exchange rate of balance for delay, as a share of the mean work, see above; at least 0.0001.
        max_age_iterations: steps that a document may wait; 0: any number. Kept as long as what is due in a step has at
            most N x (max_tokens - W) tokens.
        steady_tokens: whether every step trains N x W tokens, to within about the shortest document at hand.
        targets: per micro-batch what its work is in proportion to, with mean 1, the largest first; () for equal works.
    """

    def __init__(
        self,
        num_micro_batches: int,
        context_window: int,
        max_tokens: int,
        workload: Workload,
        *,
        balance_tolerance: float = 0.001,
        max_age_iterations: int = 0,
        steady_tokens: bool = False,
        targets: tuple[float, ...] = (),
    ) -> None:
        assert max_tokens >= context_window, "a piece must fit into an empty micro-batch"
        self.num_micro_batches = num_micro_batches
        self.context_window = context_window
        self.max_tokens = max_tokens
        self.workload = workload
        self.balance_tolerance = max(balance_tolerance, _LEAST_TOLERANCE)
        self.max_age_iterations = max_age_iterations
        self.steady_tokens = steady_tokens
        self._step_tokens = num_micro_batches * context_window
        steady = self._step_tokens if steady_tokens else 0
        targets = targets or (1.0,) * num_micro_batches
        self._limits = Limits(num_micro_batches, max_tokens, self.balance_tolerance, targets, steady)
        price, widest, self._nearly = _PRICE, _WIDEST, _NEARLY
        if steady_tokens:
            bits = min(num_micro_batches.bit_length(), 5)
            price, self._nearly = _STEADY_PRICE / (2 * bits - 1), _STEADY_NEARLY
            widest = _STEADY_WIDEST * bits
        self._price = price * self._step_tokens / self.balance_tolerance
        self._widest = replace(self._limits, tolerance=self.balance_tolerance * widest)

    def empty(self) -> Waiting:
        """What waits before the first step: nothing."""
        return Waiting()

    def pack(self, waiting: Waiting, stream: Stream) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """N micro-batches of what waits and of what the stream brings.

        A steady step draws what its group lacks; any other N x W tokens, and more where what is due needs it.
        """
        pool = Pool(waiting.left_over, self.context_window, self.workload)
        if not self.steady_tokens:
            pool.add(stream.draw(self._step_tokens))
        elif pool.num_tokens < self._step_tokens:
            pool.add(stream.draw_more(self._step_tokens - pool.num_tokens))
        while len(pool.segments) < self.num_micro_batches and not stream.exhausted:
            pool.add(stream.draw_more(self._step_tokens))
        groups = self._steady_groups(pool, stream) if self.steady_tokens else self._groups(pool, stream)
        micro_batches = self._fill_best(groups, pool, stream)
        packed, left = pool.take(micro_batches)
        return packed, Waiting(tuple(left))

    def _groups(self, pool: Pool, stream: Stream) -> list[Group]:
        """Groups that can be trained, best first, after what has to be drawn beside the global batch."""
        groups = self._ranked(pool, stream)
        # What waits has to be trained before it falls due, too.
        most = self.num_micro_batches * (self.max_tokens - self.context_window) * max(self.max_age_iterations, 1)
        tokens = self._step_tokens // _EXTRA_PARTS
        for _ in range(_NUM_EXTRA * _EXTRA_PARTS):
            due = self._due(stream)
            late = any(item.arrival <= due for item in pool.outliers)
            widest = self.balance_tolerance if late else self._widest.tolerance
            balanced = not groups or groups[0].excess <= widest
            if balanced or stream.exhausted or pool.num_tokens - groups[0].tokens + tokens > most:
                break
            pool.add(stream.draw_more(tokens))
            groups = self._ranked(pool, stream)
        return groups

    def _steady_groups(self, pool: Pool, stream: Stream) -> list[Group]:
        """Groups that can be trained, best first, after what has to be drawn before it is known which are possible."""
        pool.make_long(self._due(stream))
        forecast, search = self._search(pool, stream)
        choices = search.ranked(pool.outliers, self._shorts_of_step(pool, forecast), self._due(stream))
        drawn = choices[0].drawn if choices else 0
        if drawn:
            pool.add(stream.draw_more(drawn))
            pool.make_long(self._due(stream))
        places = [choice.leader for choice in choices if choice.drawn == drawn and choice.leader <= len(pool.outliers)]
        shorts = self._shorts_of_step(pool, forecast)
        groups = [lead(pool.outliers, place, shorts, self._widest, self._due(stream)) for place in places]
        return [group for group in groups if group is not None]

    def _search(self, pool: Pool, stream: Stream) -> tuple[Forecast, SteadySearch]:
        """Less thorough, the more long documents there are: the more alike are the steps, too."""
        number = max(len(pool.outliers), 1)
        num_steps = 2 if number > _NUM_PLACED // 4 else 3
        width = max(1, min(4, 128 // number))
        count = max(3, min(12, self.num_micro_batches + 2, _NUM_PLACED // number))
        tokens = (num_steps + 1) * self._step_tokens
        lengths = lengths_of_pieces(stream.peek(tokens), self.context_window)
        forecast = Forecast(lengths, tokens, pool.shortest, self.workload)
        age = self.max_age_iterations
        search = SteadySearch(forecast, self._widest, self._price, stream.step, age, num_steps, width, count)
        return forecast, search

    def _shorts_of_step(self, pool: Pool, forecast: Forecast) -> Fluid:
        """Those at hand; as dense as they are with those to come that a step usually needs."""
        tokens, density = pool.shorts
        lacking = max(_USUAL_SHORTS * self._step_tokens - tokens, 0.0) if forecast.shorts.tokens else 0.0
        if lacking:
            density = (pool.shorts.work + lacking * forecast.shorts.density) / (tokens + lacking)
        return Fluid(tokens, density)

    def _draw_short(self, tokens: float, pool: Pool, stream: Stream) -> bool:
        """Whether documents were drawn, since there are fewer than ``tokens`` of short ones: until there are as many.

        Where hardly any document is short, a step has fewer tokens rather than let ever more long ones wait.
        """
        lacking = int(tokens - pool.shorts.tokens)
        most = _MOST_WAITING * self._step_tokens - pool.num_tokens
        if lacking <= 0 or stream.exhausted or most <= 0:
            return False
        lengths = stream.peek(min(2 * lacking, most))
        short = np.cumsum(np.where(lengths < pool.shortest, lengths, 0))
        count = int(np.searchsorted(short, lacking)) + 1
        pool.add(stream.draw_more(int(lengths[:count].sum())))
        return True

    def _ranked(self, pool: Pool, stream: Stream) -> list[Group]:
        """Groups that can be trained now, best first."""
        due = self._due(stream)
        pool.make_long(due)
        count = max(3, min(_NUM_LEADERS, _NUM_PLACED // max(len(pool.outliers), 1)))
        groups = leaders(pool.outliers, pool.shorts, self._limits, count, due)
        wide = leaders(pool.outliers, pool.shorts, self._widest, max(2, count // 2), due)
        groups += [group for group in wide if group.excess > self.balance_tolerance]
        groups = groups or forced(pool.outliers, pool.shorts, self._widest, count, due)
        if len(groups) < 2:
            return groups
        tokens = NUM_STEPS * self._step_tokens
        forecast = Forecast(stream.peek(tokens), tokens, pool.shortest, self.workload)
        age = self.max_age_iterations
        rollout = Rollout(forecast, self._limits, self._step_tokens, NUM_STEPS, self._price, stream.step, age)
        scores = [rollout.score(group, pool.shorts) for group in groups]
        if age or forecast.ends:
            kept = [max((item.length for item in group.trained), default=pool.shortest - 1) + 1 for group in groups]
            held = [rollout.score(group, pool.shorts, length) for group, length in zip(groups, kept, strict=True)]
            scores = list(map(min, scores, held))
        return [groups[place] for place in sorted(range(len(groups)), key=scores.__getitem__)]

    def _fill_best(self, groups: Sequence[Group], pool: Pool, stream: Stream) -> list[list[Item]]:
        """The micro-batches of the best group that real short documents balance as expected."""
        tried: list[Filled] = []
        for group in groups[:_NUM_FILLED]:
            tried.append(self._fill(group, pool, stream))
            if tried[-1].excess <= group.excess + self._nearly * self.balance_tolerance:
                return tried[-1].micro_batches
        groups = forced(pool.outliers, pool.shorts, self._widest, _NUM_LEADERS, self._due(stream))
        for group in sorted(groups, key=lambda group: group.excess)[:_NUM_FILLED]:
            tried.append(self._fill(group, pool, stream))
        if not tried:  # there is nothing left to train
            return [[] for _ in range(self.num_micro_batches)]
        return min(tried, key=lambda filled: filled.excess).micro_batches

    def _fill(self, group: Group, pool: Pool, stream: Stream) -> Filled:
        """A group with short documents; a steady step draws those that it lacks."""
        if not self.steady_tokens:
            return fill(group, pool.short, self._limits)
        while self._draw_short(group.shorts.tokens, pool, stream):
            pass
        return fill(group, newest_left_out(pool.short, int(group.shorts.tokens)), self._limits)

    def _due(self, stream: Stream) -> int:
        """What arrived in this step or before it has to be trained; -1 where nothing has to."""
        if stream.exhausted:
            return stream.step
        return stream.step - self.max_age_iterations if self.max_age_iterations else -1

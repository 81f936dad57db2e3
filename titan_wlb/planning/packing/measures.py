"""How good a packing is: balance and delay, over the steps of a run. The definitions are ours unless said otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import sqrt

from titan_wlb.planning.plan import StepPlan


def imbalance_degree(costs: Sequence[float]) -> float:
    """N x largest work / sum of works of a step's micro-batches; 1 is perfect (paper, table 2)."""
    return len(costs) * max(costs) / sum(costs) if sum(costs) else 1.0


def imbalance_time_weighted(steps: Iterable[Sequence[float]]) -> float:
    """Sum over steps of the largest work / sum of the mean works: what the whole run pays, heavy steps being long.

    steps of works [2, 2] and [30, 10]    (2 + 30) / (2 + 20) = 1.45, where the mean of the degrees is 1.25
    """
    slowest = mean = 0.0
    for costs in steps:
        slowest += max(costs)
        mean += sum(costs) / len(costs)
    return slowest / mean if mean else 1.0


def autocorrelation(values: Sequence[float]) -> float:
    """Of each value with the next, -1 to 1; 0 where nothing varies.

    0 1 0 1 0 1 0 1    -0.875: what goes up comes down
    0 0 0 0 1 1 1 1     0.625: what is up stays up
    """
    mean = sum(values) / max(len(values), 1)
    deviations = [value - mean for value in values]
    variance = sum(deviation * deviation for deviation in deviations)
    covariance = sum(one * following for one, following in pairwise(deviations))
    return covariance / variance if variance else 0.0


def in_flight_tokens(plan: StepPlan, in_flight: int) -> int:
    """The largest number of real tokens that a DP rank's first stage holds activations of at once.

    in_flight = 2, a rank's micro-batches of 5 9 4 3 tokens    5 + 9 = 14, 9 + 4 = 13, 4 + 3 = 7: 14

    Args:
        in_flight: micro-batches that it has run forward and not yet backward, at most: PP under 1F1B; 0: all of a step.
    """
    largest = 0
    for rank in set(plan.dp_ranks):
        tokens = [plan.micro_batches[place].tokens for place in plan.of_dp_rank(rank)]
        count = in_flight or len(tokens)
        sums = (sum(tokens[first : first + count]) for first in range(max(len(tokens) - count, 0) + 1))
        largest = max(largest, *sums)
    return largest


class PackingMeasures:
    """Measures of a run, from the plan of each of its steps.

    Args:
        long_from: tokens from which on a document counts as long.
        in_flight: micro-batches that a first stage holds at once; 0: all of its DP rank's.
    """

    def __init__(self, long_from: int = 0, in_flight: int = 0) -> None:
        self._long_from, self._in_flight = long_from, in_flight
        self._costs: list[tuple[int, ...]] = []
        self._tokens: list[int] = []
        self._long_shares: list[float] = []
        self._waiting_tokens = 0
        self._delay_trained = 0
        self.oldest_waiting = 0
        self.micro_batch_tokens_max = 0
        self.in_flight_tokens_max = 0

    def add(self, plan: StepPlan) -> None:
        """Counts one more step."""
        self._costs.append(tuple(micro_batch.cost for micro_batch in plan.micro_batches))
        self._tokens.append(plan.tokens)
        self._waiting_tokens += plan.waiting_tokens
        self._delay_trained += plan.delay_trained
        self.oldest_waiting = max(self.oldest_waiting, plan.oldest_waiting)
        tokens = [micro_batch.tokens for micro_batch in plan.micro_batches]
        self.micro_batch_tokens_max = max(self.micro_batch_tokens_max, *tokens)
        self.in_flight_tokens_max = max(self.in_flight_tokens_max, in_flight_tokens(plan, self._in_flight))
        lengths = [length for micro_batch in plan.micro_batches for length in micro_batch.lengths]
        long = sum(length for length in lengths if length >= self._long_from)
        self._long_shares.append(long / max(plan.tokens, 1))

    @property
    def num_steps(self) -> int:
        """Steps counted."""
        return len(self._costs)

    @property
    def imbalance_degree_mean(self) -> float:
        """Mean of the steps' imbalance degrees."""
        return sum(map(imbalance_degree, self._costs)) / max(len(self._costs), 1)

    @property
    def imbalance_degree_p95(self) -> float:
        """The imbalance degree that at least 95 % of the steps do not exceed."""
        degrees = sorted(map(imbalance_degree, self._costs))
        return degrees[-(-len(degrees) * 95 // 100) - 1] if degrees else 1.0

    @property
    def imbalance_time_weighted(self) -> float:
        """See the function of this name."""
        return imbalance_time_weighted(self._costs)

    @property
    def delay_iterations_mean(self) -> float:
        """Mean over steps of the tokens that wait after the step / mean tokens trained per step, in steps."""
        return self._waiting_tokens / max(sum(self._tokens), 1)

    @property
    def delay_trained_mean(self) -> float:
        """Mean over trained tokens of the steps from arrival to training (the paper's delay per token)."""
        return self._delay_trained / max(sum(self._tokens), 1)

    @property
    def tokens_per_step(self) -> float:
        """Mean real tokens of a step."""
        return sum(self._tokens) / max(len(self._tokens), 1)

    @property
    def tokens_per_step_cv(self) -> float:
        """Standard deviation of the tokens of a step over their mean."""
        mean = self.tokens_per_step
        variance = sum((tokens - mean) ** 2 for tokens in self._tokens) / max(len(self._tokens), 1)
        return sqrt(variance) / max(mean, 1.0)

    @property
    def tokens_per_step_max(self) -> int:
        """Real tokens of the largest step."""
        return max(self._tokens, default=0)

    @property
    def long_share_autocorrelation(self) -> float:
        """Of the share of tokens in long documents, step to step; length-sorted training shows as a value near 1."""
        return autocorrelation(self._long_shares)

    @property
    def work_per_token(self) -> float:
        """Mean work of a trained token, nanoseconds: less where documents are cut, which removes attention."""
        return sum(map(sum, self._costs)) / max(sum(self._tokens), 1)

    @property
    def time_per_token(self) -> float:
        """Sum over steps of N x largest work / tokens, nanoseconds: what a token costs if all wait for the slowest."""
        return sum(len(costs) * max(costs) for costs in self._costs) / max(sum(self._tokens), 1)

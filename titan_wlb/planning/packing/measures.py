"""How good a packing is: balance and delay, over the steps of a run. The definitions are ours unless said otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


class PackingMeasures:
    """Measures of a run, from the plan of each of its steps."""

    def __init__(self) -> None:
        self._costs: list[tuple[int, ...]] = []
        self._tokens: list[int] = []
        self._waiting_tokens = 0
        self._delay_trained = 0
        self.oldest_waiting = 0

    def add(self, plan: StepPlan) -> None:
        """Counts one more step."""
        self._costs.append(tuple(micro_batch.cost for micro_batch in plan.micro_batches))
        self._tokens.append(plan.tokens)
        self._waiting_tokens += plan.waiting_tokens
        self._delay_trained += plan.delay_trained
        self.oldest_waiting = max(self.oldest_waiting, plan.oldest_waiting)

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

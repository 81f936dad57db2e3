"""A run in a few numbers, so far: what runs are compared by."""

from __future__ import annotations

from titan_wlb.metrics.history import History

_MS_PER_HOUR = 3_600_000


class RunMeans:
    """Means over this process's logged steps, but for its first two steps, which compile, allocate and connect."""

    def __init__(self) -> None:
        self._tokens = 0
        self._ms = 0.0
        self._num_degrees = 0

    def add(self, history: History, tokens: int, step_ms: float) -> dict[str, float]:
        """After a logged step.

        Args:
            history: of the run, this step included.
            tokens: real tokens of the step.
            step_ms: its time.

        Returns:
            ``wlb/run/imbalance_degree`` (measured), ``wlb/run/idle_share`` and ``wlb/run/tokens_per_second``; and
            ``wlb/lost_rank_hours``, what all ranks together idled so far, in steps that were not logged, too. Nothing
            before the third step.
        """
        if history.num_degrees == self._num_degrees:
            return {}
        self._num_degrees = history.num_degrees
        self._tokens += tokens
        self._ms += step_ms
        idle_ms = sum(totals.steps * totals.mean("idle") for totals in history.totals)
        return {
            "wlb/run/imbalance_degree": history.measured_imbalance_degree,
            "wlb/run/idle_share": history.idle_share,
            "wlb/run/tokens_per_second": self._tokens / max(self._ms / 1e3, 1e-9),
            "wlb/lost_rank_hours": idle_ms / _MS_PER_HOUR,
        }

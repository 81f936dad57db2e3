"""What a run measured so far: sums, which grow with the ranks and not with the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from titan_wlb.records import Layout, MicroBatchCost, StepRecord, Totals, cost_error, measured_imbalance_degree


@dataclass
class History:
    """Kept by the rank that logs, for the table that closes the run.

    Args:
        layout: of the job.
        totals: per rank the sums over all steps but the first two of the process, up to the last logged one.
        transfer_ms: per rank the sums of (cp, fsdp) transfer over logged steps.
        waiting_ms: per rank the sums of (cp, fsdp) waiting over logged steps.
        num_degrees: logged steps that entered the sums of transfer, waiting and degrees (all behind the first two).
        predicted, measured: sums of the imbalance degrees over these steps.
        cost_errors: sum of the cost model's errors over these steps.
        losses: (step, loss) of the first and of the last logged step.
    """

    layout: Layout
    totals: list[Totals] = field(default_factory=list)
    transfer_ms: list[list[float]] = field(default_factory=list)
    waiting_ms: list[list[float]] = field(default_factory=list)
    num_degrees: int = 0
    predicted: float = 0.0
    measured: float = 0.0
    cost_errors: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)

    def add(
        self,
        records: Sequence[StepRecord],
        *,
        predicted_imbalance_degree: float,
        costs: Sequence[MicroBatchCost],
        loss: float | None = None,
    ) -> None:
        """A logged step.

        Args:
            records: of all ranks; nothing happens without (on ranks that do not log).
            costs: of the step's micro-batches.
        """
        if not records:
            return
        if not self.totals:
            self.totals = [Totals() for _ in records]
            self.transfer_ms, self.waiting_ms = [[0.0, 0.0] for _ in records], [[0.0, 0.0] for _ in records]
        if loss is not None:
            self.losses[1:] = [(records[0].times.step, loss)]
        if not records[0].times.totals.steps:
            return
        for rank, record in enumerate(records):
            self.totals[rank] += record.times.totals
            for i, category in enumerate(("cp", "fsdp")):
                self.transfer_ms[rank][i] += record.ms(f"{category}_transfer")
                self.waiting_ms[rank][i] += record.ms(f"{category}_waiting")
        self.num_degrees += 1
        self.predicted += predicted_imbalance_degree
        self.measured += measured_imbalance_degree(records, self.layout)
        self.cost_errors += cost_error(costs)

    @property
    def steps(self) -> int:
        """Steps that the means stand for."""
        return self.totals[0].steps if self.totals else 0

    @property
    def predicted_imbalance_degree(self) -> float:
        """Mean over the logged steps."""
        return self.predicted / max(self.num_degrees, 1)

    @property
    def measured_imbalance_degree(self) -> float:
        """Mean over the same steps."""
        return self.measured / max(self.num_degrees, 1)

    @property
    def cost_error(self) -> float:
        """Mean over the same steps of the cost model's error."""
        return self.cost_errors / max(self.num_degrees, 1)

    @property
    def idle_share(self) -> float:
        """Idle / wall over all ranks and steps."""
        wall = sum(totals.mean("wall") for totals in self.totals)
        return sum(totals.mean("idle") for totals in self.totals) / max(wall, 1e-9)

    def waiting_share(self, category: str) -> float:
        """Of the exposed time of cp or fsdp, over all ranks and logged steps: what was waiting, not transfer."""
        i = ("cp", "fsdp").index(category)
        waiting, transfer = sum(ms[i] for ms in self.waiting_ms), sum(ms[i] for ms in self.transfer_ms)
        return waiting / max(waiting + transfer, 1e-9)

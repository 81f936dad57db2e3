"""What a run tells of itself: scalars, tables and records of logged steps, and a table at its end.

log(step 10)             every rank posts its record and trains on
observe(step 11), ...    on the rank that logs: whatever step has all its records by now is written
finish()                 the rest is waited for, and the closing table shown
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.tools.logging import logger

from titan_wlb.compat.event_writer import tensorboard_writer
from titan_wlb.compat.store import store_with_queues
from titan_wlb.compat.trainer import metrics_rank, tensorboard_folder
from titan_wlb.data.index import Index
from titan_wlb.metrics.budget import Budget
from titan_wlb.metrics.causes import LostTime
from titan_wlb.metrics.event_file import EventFile
from titan_wlb.metrics.gather import gather_records, groups_of
from titan_wlb.metrics.history import History
from titan_wlb.metrics.jsonl import RecordWriter
from titan_wlb.metrics.mailbox import Mailbox
from titan_wlb.metrics.run_means import RunMeans
from titan_wlb.metrics.scalars import scalars
from titan_wlb.metrics.step_view import actions_text, plan_text
from titan_wlb.metrics.stragglers import StragglerLog, slowest_table
from titan_wlb.metrics.summary import summary_table
from titan_wlb.planning.lengths import FirstSegments
from titan_wlb.planning.packing.measures import in_flight_tokens
from titan_wlb.planning.plan import StepPlan
from titan_wlb.planning.planner import Pipeline, Planner, PlannerConfig
from titan_wlb.planning.sharding import CHOSEN
from titan_wlb.planning.workload import ModelShape
from titan_wlb.records import Layout, MicroBatchCost, StepRecord, StepTimes, micro_batch_costs
from titan_wlb.records.per_rank import per_rank_rows
from titan_wlb.records.transfer import with_transfer

# Planning a run again under both packings, for the closing table, looks at no more steps and micro-batches than these:
# the other ranks wait for the table, inside a collective that can time out.
MAX_STEPS_COMPARED = 500
MAX_MICRO_BATCHES_COMPARED = 20_000
FLUSH_S = 5.0  # that a checkpoint waits for its step's records at most
SLOWEST_TABLE_EVERY = 10  # logged steps, from the first on
RECORDED_SECTIONS = (
    4096  # of records.jsonl, per logged step on the mean: a rank's step has some dozens, of 85 bytes each
)

# (records of all ranks, the step's plan) -> (cause -> ms that the step would have gained, persistently slow rank or -1)
Causes = Callable[[Sequence[StepRecord], StepPlan], tuple[Mapping[str, float], int]]


@dataclass(frozen=True)
class _Logged:
    """A logged step whose records are under way."""

    plan: StepPlan
    loss: float
    delay_iterations: float


class Reporter:
    """Gathers what every rank measured and writes it, on the rank that has TorchTitan's logger.

    Args:
        metrics_processor: TorchTitan's, whose logger also takes our scalars.
        shape: of the model, for the operations of packed documents.
        index: what is trained on.
        planner_config: in force at the start of the run.
        pipeline: that micro-batches run through.
        rank_ms: from a micro-batch's predicted cost in ns to what each of its ranks computes, in ms.
        causes: finds a step's lost time by cause, called in the order of the logged steps; by default ``LostTime``.
    """

    def __init__(
        self,
        job_config: Any,
        parallel_dims: Any,
        layout: Layout,
        metrics_processor: Any,
        *,
        shape: ModelShape,
        index: Index,
        planner_config: PlannerConfig,
        pipeline: Pipeline,
        rank_ms: Callable[[int], float],
        device: torch.device,
        causes: Causes | None = None,
    ):
        self.layout, self.device, self.shape, self.index = layout, device, shape, index
        self.config, self._pipeline, self._rank_ms = planner_config, pipeline, rank_ms
        self.processor = metrics_processor
        self.groups = groups_of(parallel_dims)
        self.rank = metrics_rank(layout.size, layout.pp)
        self.history = History(layout)
        self._run_means = RunMeans()
        self._waiting_tokens = self._tokens = self._last_step = self._num_written = 0
        self._strategies: Counter[str] = Counter()
        wires = "independent" if device.type == "cpu" else "in_order"
        self._causes = causes or LostTime(layout, pipeline, planner_config.workload, rank_ms, wires=wires)
        self._stragglers = StragglerLog(layout)
        is_writer = dist.get_rank() == self.rank
        self.records = RecordWriter(f"{job_config.job.dump_folder}/wlb/records.jsonl") if is_writer else None
        self._recording = Budget(RECORDED_SECTIONS)
        self._events = EventFile(tensorboard_writer(metrics_processor) if is_writer else None, layout)
        self._under_way: dict[int, _Logged] = {}
        store = store_with_queues()
        self._mailbox = None if store is None else Mailbox(store, dist.get_rank(), layout.size, is_receiver=is_writer)
        self._dp_shard = parallel_dims.dp_shard

    def observe(self, plan: StepPlan) -> None:
        """Counts a step, logged or not, and writes what has arrived of logged ones."""
        self._waiting_tokens += plan.waiting_tokens
        self._tokens += plan.tokens
        self._strategies.update(shard.strategy for shard in plan.shards)
        self._last_step = plan.step
        if self._mailbox is not None:
            self._write_arrived(self._mailbox.take())

    @property
    def delay_iterations(self) -> float:
        """Mean over this process's steps of the tokens that wait after the step / mean tokens trained per step."""
        return self._waiting_tokens / max(self._tokens, 1)

    def log(self, times: StepTimes, plan: StepPlan, loss: float) -> None:
        """A logged step; all ranks call it. It is written as soon as all records have arrived, by ``observe``."""
        if self.records is not None:
            self._under_way[plan.step] = _Logged(plan, loss, self.delay_iterations)
        if self._mailbox is None:
            records = gather_records(times, self.groups, metrics_rank=self.rank, device=self.device)
            if records:
                self._write(records, self._under_way.pop(plan.step))
            return
        self._mailbox.post(times)
        if self.records is not None:
            self._mailbox.expect(plan.step)

    def flush(self) -> None:
        """Writes what is still under way: a checkpoint's step must not be missing from the records of a killed run."""
        give_up_at = time.monotonic() + FLUSH_S
        while self._mailbox is not None and self._under_way and time.monotonic() < give_up_at:
            self._write_arrived(self._mailbox.take())
            time.sleep(0.001)

    def _write_arrived(self, steps: Sequence[tuple[int, Sequence[StepRecord]]]) -> None:
        for step, records in steps:
            logged = self._under_way.pop(step)
            if len(records) == self.layout.size:
                self._write(with_transfer(records, self.layout, self._dp_shard), logged)
                continue
            missing = sorted(set(range(self.layout.size)) - {record.rank for record in records})
            names = ", ".join(map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
            logger.warning(f"Step {step} is not in the dashboards: no record came from rank {names}")

    def _write(self, records: Sequence[StepRecord], logged: _Logged) -> None:
        plan, loss = logged.plan, logged.loss
        costs = micro_batch_costs(records, self.layout, self._predicted_ms(plan))
        self.history.add(records, predicted_imbalance_degree=plan.imbalance_degree, costs=costs, loss=loss)
        lost_ms, slow_rank = self._causes(records, plan)
        rows = per_rank_rows(records)
        values = scalars(
            records,
            self.layout,
            predicted_imbalance_degree=plan.imbalance_degree,
            costs=costs,
            delay_iterations=logged.delay_iterations,
            tokens=plan.tokens,
            documents_waiting=plan.waiting_documents,
            lost_ms=lost_ms,
            flops=sum(self.shape.flops(length) for micro_batch in plan.micro_batches for length in micro_batch.lengths),
            peak_flops=self.processor.gpu_peak_flops,
            rows=rows,
        )
        values["wlb/tokens_in_flight"] = float(in_flight_tokens(plan, self._pipeline.in_flight))
        if self.layout.pp > 1:
            values["wlb/step_time_over_balanced/predicted"] = self._pipeline.step_time_over_balanced(plan)
        if self._chooses_sharding:
            chosen = [shard.strategy for shard in plan.shards]
            values |= {f"wlb/sharding/{name}": chosen.count(name) / len(chosen) for name in CHOSEN}
        values["wlb/lost/slow_rank"] = float(slow_rank)
        values |= self._run_means.add(self.history, plan.tokens, values["wlb/step_ms"])
        self.processor.logger.log(values, plan.step)
        self._write_tables(records, plan, costs, rows)
        line = self._stragglers.line(plan.step, slow_rank, lost_ms.get("slow_rank", 0.0))
        if line is not None:
            logger.warning(line)
        if self.records is not None and self._recording.is_due():
            listed = [
                [each.dp_rank, each.place, round(each.predicted_ms, 3), round(each.measured_ms, 3)] for each in costs
            ]
            self.records.write(records, self.layout, values | {"loss": loss, "micro_batches": listed})
            self._recording.spend(sum(len(record.times.sections) for record in records))

    def _write_tables(
        self,
        records: Sequence[StepRecord],
        plan: StepPlan,
        costs: Sequence[MicroBatchCost],
        rows: Sequence[Sequence[float]],
    ) -> None:
        """What TensorBoard gets beside scalars."""
        packing, window = self.config.packing, self.config.context_window
        if not self._num_written:
            self._events.describe_run(self._settings())
        if self._num_written % SLOWEST_TABLE_EVERY == 0:
            self._events.write_text("wlb/slowest_ranks", slowest_table(rows, self.layout, plan.step), plan.step)
        self._num_written += 1
        self._events.write_step(
            plan.step,
            rows,
            lambda: (
                plan_text(plan, costs, packing=packing, context_window=window),
                actions_text(records, self.layout),
            ),
        )

    def _settings(self) -> dict[str, str | int]:
        """What runs are compared by in TensorBoard's HParams tab."""
        return {
            "packing": self.config.packing,
            "sharding": self.config.sharding,
            "micro_batches": self.config.num_micro_batches,
            "context_window": self.config.context_window,
            "layout": f"pp{self.layout.pp} dp{self.layout.dp} cp{self.layout.cp} tp{self.layout.tp}",
        }

    def finish(self) -> None:
        """The closing table, on every rank's output (launchers show one); all ranks call it after the last step."""
        if self._mailbox is not None:
            self._write_arrived(self._mailbox.finish())
        if not self._last_step:
            logger.info("Nothing was trained: the checkpoint had reached training.steps")
            return
        table = [self._table() if dist.get_rank() == self.rank else None]
        dist.broadcast_object_list(table, src=self.rank, device=self.device)
        logger.info("The run in short\n\n%s\n", table[0])

    def close(self) -> None:
        """Closes the files."""
        if self._mailbox is not None:
            self._mailbox.close()
        if self.records is not None:
            self.records.close()

    def _predicted_ms(self, plan: StepPlan) -> dict[tuple[int, int], float]:
        return {
            (dp_rank, place): self._rank_ms(plan.micro_batches[i].cost)
            for dp_rank in range(self.layout.dp)
            for place, i in enumerate(plan.of_dp_rank(dp_rank))
        }

    @property
    def _chooses_sharding(self) -> bool:
        return self.config.sharding == "adaptive" and self.layout.cp > 1

    def _sharding(self) -> str:
        """What was configured, or what was chosen for how many of the micro-batches."""
        if not self._chooses_sharding:
            return self.config.sharding
        number = sum(self._strategies.values())
        return ", ".join(f"{100 * times / number:.0f} % {name}" for name, times in self._strategies.most_common())

    def _table(self) -> str:
        packings = dict.fromkeys(("original", "variable_length", self.config.packing))
        return summary_table(
            self.history,
            packing=self.config.packing,
            sharding=self._sharding(),
            predicted={packing: self._predicted_degree(packing) for packing in packings},
            delay_iterations=self.delay_iterations,
            tensorboard_folder=tensorboard_folder(self.processor),
        )

    def _predicted_degree(self, packing: str) -> float:
        """Mean imbalance degree of the run's first steps, had it packed this way."""
        known = FirstSegments(self.index, len(self.index.opened))  # waits for no further one
        planner = Planner(known, self.config.packed_by(packing), dp=1, cp=1)
        most = max(1, MAX_MICRO_BATCHES_COMPARED // self.config.num_micro_batches)
        steps = min(self._last_step, MAX_STEPS_COMPARED, most)
        return sum(planner.plan().imbalance_degree for _ in range(steps)) / max(steps, 1)

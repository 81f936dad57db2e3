"""What a run tells of itself: scalars and records at logged steps, and a table at its end."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.tools.logging import logger

from titan_wlb.compat.trainer import metrics_rank, tensorboard_folder
from titan_wlb.data.index import Index
from titan_wlb.metrics.gather import gather_records, groups_of
from titan_wlb.metrics.history import History
from titan_wlb.metrics.jsonl import RecordWriter
from titan_wlb.metrics.scalars import scalars
from titan_wlb.metrics.summary import summary_table
from titan_wlb.planning.lengths import FirstSegments
from titan_wlb.planning.packing.measures import in_flight_tokens
from titan_wlb.planning.plan import StepPlan
from titan_wlb.planning.planner import Pipeline, Planner, PlannerConfig
from titan_wlb.planning.sharding import CHOSEN
from titan_wlb.planning.workload import ModelShape
from titan_wlb.records import Layout, StepTimes, micro_batch_costs

# Planning a run again under both packings, for the closing table, looks at no more steps and micro-batches than these:
# the other ranks wait for the table, inside a collective that can time out.
MAX_STEPS_COMPARED = 500
MAX_MICRO_BATCHES_COMPARED = 20_000


class Reporter:
    """Gathers what every rank measured and writes it, on the rank that has TorchTitan's logger.

    Args:
        metrics_processor: TorchTitan's, whose logger also takes our scalars.
        shape: of the model, for the operations of packed documents.
        index: what is trained on.
        planner_config: in force at the start of the run.
        pipeline: that micro-batches run through.
        rank_ms: from a micro-batch's predicted cost in ns to what each of its ranks computes, in ms.
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
    ):
        self.layout, self.device, self.shape, self.index = layout, device, shape, index
        self.config, self._pipeline, self._rank_ms = planner_config, pipeline, rank_ms
        self.processor = metrics_processor
        self.groups = groups_of(parallel_dims)
        self.rank = metrics_rank(layout.size, layout.pp)
        self.history = History(layout)
        self._waiting_tokens = self._tokens = self._last_step = 0
        self._strategies: Counter[str] = Counter()
        is_writer = dist.get_rank() == self.rank
        self.records = RecordWriter(f"{job_config.job.dump_folder}/wlb/records.jsonl") if is_writer else None

    def observe(self, plan: StepPlan) -> None:
        """Counts a step, logged or not."""
        self._waiting_tokens += plan.waiting_tokens
        self._tokens += plan.tokens
        self._strategies.update(shard.strategy for shard in plan.shards)
        self._last_step = plan.step

    @property
    def delay_iterations(self) -> float:
        """Mean over this process's steps of the tokens that wait after the step / mean tokens trained per step."""
        return self._waiting_tokens / max(self._tokens, 1)

    def log(self, times: StepTimes, plan: StepPlan, loss: float) -> None:
        """A logged step; all ranks call it."""
        records = gather_records(times, self.groups, metrics_rank=self.rank, device=self.device)
        if not records:
            return
        costs = micro_batch_costs(records, self.layout, self._predicted_ms(plan))
        values = scalars(
            records,
            self.layout,
            predicted_imbalance_degree=plan.imbalance_degree,
            costs=costs,
            delay_iterations=self.delay_iterations,
            tokens=plan.tokens,
            flops=sum(self.shape.flops(length) for micro_batch in plan.micro_batches for length in micro_batch.lengths),
            peak_flops=self.processor.gpu_peak_flops,
        )
        values["wlb/tokens_in_flight"] = float(in_flight_tokens(plan, self._pipeline.in_flight))
        if self.layout.pp > 1:
            values["wlb/step_time_over_balanced/predicted"] = self._pipeline.step_time_over_balanced(plan)
        if self._chooses_sharding:
            chosen = [shard.strategy for shard in plan.shards]
            values |= {f"wlb/sharding/{name}": chosen.count(name) / len(chosen) for name in CHOSEN}
        self.processor.logger.log(values, plan.step)
        assert self.records is not None
        rows = [[cost.dp_rank, cost.place, round(cost.predicted_ms, 3), round(cost.measured_ms, 3)] for cost in costs]
        self.records.write(records, self.layout, values | {"loss": loss, "micro_batches": rows})
        self.history.add(records, predicted_imbalance_degree=plan.imbalance_degree, costs=costs, loss=loss)

    def finish(self) -> None:
        """The closing table, on every rank's output (launchers show one); all ranks call it after the last step."""
        if not self._last_step:
            logger.info("Nothing was trained: the checkpoint had reached training.steps")
            return
        table = [self._table() if dist.get_rank() == self.rank else None]
        dist.broadcast_object_list(table, src=self.rank, device=self.device)
        logger.info("The run in short\n\n%s\n", table[0])

    def close(self) -> None:
        """Closes the files."""
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

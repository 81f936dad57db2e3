"""TorchTitan's Trainer over balanced micro-batches of different lengths.

One step: the loader's thread has planned it, compared the plan over all ranks and read this rank's tokens; here they
run through the pipeline (or, without one, one after the other with a single gradient reduction), the gradient is
clipped, the optimizer steps, and the clock's record of the step is gathered and written.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.distributed import utils as dist_utils
from torchtitan.tools.logging import logger
from torchtitan.train import Trainer

from titan_wlb.agreement import PlanAgreement
from titan_wlb.build import assumed_flops_per_second, cost_model, latency_model, model_shape, planner_config
from titan_wlb.clocks import build_clock
from titan_wlb.compat.fsdp_waits import install_fsdp_waits
from titan_wlb.compat.pipeline_waits import install_pipeline_waits
from titan_wlb.compat.pipelining import run_micro_batches, stages_of
from titan_wlb.compat.trainer import hide_loss_visibility_warning
from titan_wlb.context_parallel.kernels import pick_backend
from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.data.dataloader import BalancedDataLoader, StepBatch
from titan_wlb.data.from_config import growing_index_from_config
from titan_wlb.documents_log import DocumentsLog
from titan_wlb.gradient_norm import clip_grad_norm_
from titan_wlb.job_config import JobConfig
from titan_wlb.metrics.gather import layout_of
from titan_wlb.metrics.reporter import Reporter
from titan_wlb.planning.planner import Pipeline, Planner, PlannerConfig
from titan_wlb.planning.sharding import LatencyModel
from titan_wlb.tuned import tune
from titan_wlb.validate import data_parallel_degree


class WLBTrainer(Trainer):
    """Trains balanced packed documents in any TP x CP x PP x DP layout."""

    def __init__(self, job_config: JobConfig):
        hide_loss_visibility_warning()
        dp = data_parallel_degree(job_config, int(os.environ["WORLD_SIZE"]))
        per_dp_rank = job_config.training.global_batch_size // dp
        # TorchTitan's batch is rows of one tensor; here it is the schedule's number of micro-batches, or one row.
        pipelined = job_config.parallelism.pipeline_parallel_degree > 1
        job_config.training.local_batch_size = per_dp_rank if pipelined else 1
        super().__init__(job_config)

        parallel_dims = self.parallel_dims
        self.layout = layout_of(parallel_dims)
        self.micro_batches_per_step = per_dp_rank
        self.cp_mesh = parallel_dims.get_optional_mesh("cp")
        self.pp_mesh = parallel_dims.get_optional_mesh("pp")
        self.loss_mesh = parallel_dims.get_optional_mesh("loss")
        self.backend = pick_backend(job_config.wlb.attention_backend, self.device)
        self.stages = stages_of(self.pp_schedule) if self.pp_mesh is not None else []
        self.clock = build_clock(self.device)
        for stage in self.stages:
            stage.clock = self.clock
        install_fsdp_waits(self.model_parts, self.clock)
        install_pipeline_waits(self.clock)
        self._between_steps: Any = None
        if job_config.checkpoint.create_seed_checkpoint:
            return

        self.index = growing_index_from_config(job_config, self.tokenizer)
        shape = model_shape(self.model_args)
        costs = cost_model(job_config, shape, assumed_flops_per_second(self.metrics_processor), self.layout)
        logger.info(f"Predicted cost of a document: {costs.note}")
        config = tune(planner_config(job_config, costs.workload), job_config.wlb, self.index)
        device = "cpu" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        latency = latency_model(job_config, shape, device, self.layout)
        if latency is not None:
            logger.info(f"Predicted latency of attention: {latency.profile.device} ({latency.profile.origin})")
        self.dataloader = self._build_dataloader(config, latency)
        self.checkpointer.states["dataloader"] = self.dataloader
        self.reporter = Reporter(
            job_config,
            parallel_dims,
            self.layout,
            self.metrics_processor,
            shape=shape,
            index=self.index,
            planner_config=self.dataloader.planner.config,
            pipeline=self.pipeline,
            rank_ms=costs.rank_ms,
            device=self.device,
        )
        self.documents_log = (
            DocumentsLog(job_config.job.dump_folder) if job_config.wlb.log_documents and dist.get_rank() == 0 else None
        )

    def _build_dataloader(self, config: PlannerConfig, latency: LatencyModel | None) -> BalancedDataLoader:
        layout = self.layout
        _, dp_rank, cp_rank, _ = layout.coordinates(dist.get_rank())
        schedule = self.job_config.parallelism.pipeline_parallel_schedule
        self.pipeline = Pipeline(schedule, layout.pp, max(len(self.stages), 1))
        planner = Planner(self.index, config, dp=layout.dp, cp=layout.cp, pipeline=self.pipeline, latency=latency)
        return BalancedDataLoader(
            planner,
            self.index,
            dp_rank=dp_rank,
            cp_rank=cp_rank,
            tp=layout.tp,
            make_metadata=build_metadata,
            agree=PlanAgreement(),
            last_step=self.job_config.training.steps,
        )

    def batch_generator(self, data_iterable: Any) -> Iterator[StepBatch]:
        """One item a step: the plan and this rank's micro-batches, still on the CPU."""
        for batch in data_iterable:
            self.ntokens_seen += batch.plan.tokens
            self.metrics_processor.ntokens_since_last_log += batch.plan.tokens // self.layout.dp
            yield batch
        raise DataloaderExhaustedError()

    def train_step(self, data_iterator: Iterator[StepBatch]) -> None:
        """One optimizer step. Time since the last step (checkpoint, logging) belongs to this step's ``other``."""
        if self._between_steps is None:
            self.clock.begin(self.step)
        else:
            self._between_steps.__exit__(None, None, None)
        self.optimizers.zero_grad()
        learning_rate = self.lr_schedulers.schedulers[0].get_last_lr()[0]
        waiting_from = time.perf_counter()
        with self.clock.wait("data"):
            batch = next(data_iterator)
        self.metrics_processor.data_loading_times.append(time.perf_counter() - waiting_from)

        loss = self._forward_backward(batch)
        grad_norm = clip_grad_norm_(
            [parameter for part in self.model_parts for parameter in part.parameters()],
            self.job_config.training.max_norm,
            self.clock,
            pp_mesh=self.pp_mesh,
        )
        with self.clock.wait("other"):
            self.checkpointer.maybe_wait_for_staging()
        self.optimizers.step()
        self.lr_schedulers.step()
        self.clock.end()

        self.clock.begin(self.step + 1)
        self._between_steps = self.clock.wait("other")
        self._between_steps.__enter__()
        if self.documents_log is not None:
            self.documents_log.append(batch.plan)
        self.reporter.observe(batch.plan)
        if self.metrics_processor.should_log(self.step):
            self._log(batch, loss, grad_norm, learning_rate)

    def _forward_backward(self, batch: StepBatch) -> torch.Tensor:
        """Runs this rank's micro-batches; returns its share of the step's mean loss (0 off the last stage)."""
        self.loss_fn.num_labels = batch.plan.num_labels
        micro_batches = batch.micro_batches
        assert len(micro_batches) == self.micro_batches_per_step, "the plan and the schedule disagree"
        inputs = [micro_batch.tokens.to(self.device, non_blocking=True) for micro_batch in micro_batches]
        labels = [micro_batch.labels.to(self.device, non_blocking=True) for micro_batch in micro_batches]
        kwargs = [
            {
                "attention_masks": micro_batch.metadata.to(self.device)
                .bind(self.cp_mesh, self.backend, self.clock)
                .argument,
                "positions": micro_batch.positions.to(self.device, non_blocking=True),
            }
            for micro_batch in micro_batches
        ]
        with self.train_context():
            if self.stages:
                rows = [micro_batch.padded_tokens // self.layout.tp for micro_batch in micro_batches]
                losses = self._run_pipeline(inputs, kwargs, labels, rows)
            else:
                losses = self._accumulate(inputs, kwargs, labels)
        loss = torch.stack(losses).sum() if losses else torch.zeros((), device=self.device)
        return loss.full_tensor() if isinstance(loss, DTensor) else loss  # of loss parallel: the same on all TP ranks

    def _run_pipeline(
        self,
        inputs: list[torch.Tensor],
        kwargs: list[dict[str, Any]],
        labels: list[torch.Tensor],
        rows: list[int],
    ) -> list[torch.Tensor]:
        for stage in self.stages:
            stage.expect(rows)
        losses: list[torch.Tensor] = []
        run_micro_batches(
            self.pp_schedule,
            [(tokens,) if self.pp_has_first_stage else () for tokens in inputs],
            kwargs,
            labels if self.pp_has_last_stage else None,
            losses if self.pp_has_last_stage else None,
        )
        return [loss.detach() for loss in losses]

    def _accumulate(
        self, inputs: list[torch.Tensor], kwargs: list[dict[str, Any]], labels: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Without a pipeline: micro-batches one after the other, gradients reduced once, at the last."""
        (model,) = self.model_parts
        keeps_parameters = self.job_config.parallelism.fsdp_reshard_after_forward == "never"
        losses = []
        for i, (tokens, arguments, targets) in enumerate(zip(inputs, kwargs, labels, strict=True)):
            is_last = i == len(inputs) - 1
            if isinstance(model, FSDPModule):
                model.set_is_last_backward(is_last)
                model.set_requires_gradient_sync(is_last)
                model.set_reshard_after_backward(is_last or not keeps_parameters)
            self.clock.mark("F", 0, i)
            with self.maybe_enable_amp:
                loss = self.loss_fn(model(tokens, **arguments), targets)
            self.clock.mark("B", 0, i)
            loss.backward()
            losses.append(loss.detach())
        return losses

    def _log(self, batch: StepBatch, loss: torch.Tensor, grad_norm: torch.Tensor, learning_rate: float) -> None:
        """TorchTitan's scalars, and ours beside them. Every rank sees the loss, whatever stage it holds."""
        if self.pp_mesh is not None:
            dist.all_reduce(loss, group=self.pp_mesh.get_group())
        labels = sum(micro_batch.num_labels for micro_batch in batch.micro_batches)
        local_mean = loss * batch.plan.num_labels / max(labels, 1)
        if self.loss_mesh is not None:
            mean_loss = dist_utils.dist_sum(loss, self.loss_mesh)
            max_loss = dist_utils.dist_max(local_mean, self.loss_mesh)
        else:
            mean_loss, max_loss = loss.item(), local_mean.item()
        self.metrics_processor.log(
            self.step,
            mean_loss,
            max_loss,
            grad_norm.item(),
            extra_metrics={"n_tokens_seen": self.ntokens_seen, "lr": learning_rate},
        )
        self.reporter.config = self.dataloader.planner.config  # a checkpoint's packing stays in force
        self.reporter.log(self.clock.read(), batch.plan, mean_loss)
        checkpoint = self.job_config.checkpoint
        if checkpoint.enable and self.step % checkpoint.interval == 0:
            self.reporter.flush()

    def train(self) -> None:
        """TorchTitan's loop, closed by a table of where the time went."""
        super().train()
        self.reporter.finish()

    def close(self) -> None:
        """Stops the loader's thread and closes what is open."""
        if isinstance(self.dataloader, BalancedDataLoader):
            self.dataloader.close()
            self.index.close()
            self.reporter.close()
        super().close()

"""Values that lie outside what is possible, or that TorchTitan would only find when a run is under way."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from titan_wlb.job_config import JobConfig

__all__ = ["AT_LEAST", "OR_MINUS_ONE", "value_problems"]

AT_LEAST = {
    "training.seq_len": 1,
    "training.steps": 1,
    "training.local_batch_size": 1,
    "training.global_batch_size": 1,
    "training.gc_freq": 1,
    "metrics.log_freq": 1,
    "parallelism.data_parallel_replicate_degree": 1,
    "parallelism.data_parallel_shard_degree": 1,
    "parallelism.context_parallel_degree": 1,
    "parallelism.tensor_parallel_degree": 1,
    "parallelism.pipeline_parallel_degree": 1,
    "parallelism.pipeline_parallel_layers_per_stage": 1,
    "parallelism.pipeline_parallel_first_stage_less_layers": 0,
    "parallelism.pipeline_parallel_last_stage_less_layers": 0,
    "checkpoint.interval": 1,
    "checkpoint.keep_latest_k": 0,
    "comm.init_timeout_seconds": 1,
    "comm.train_timeout_seconds": 1,
    "optimizer.lr": 0,
    "optimizer.eps": 0,
    "optimizer.weight_decay": 0,
    "lr_scheduler.warmup_steps": 0,
    "wlb.max_tokens": 0,
    "wlb.segment_tokens": 1,
    "wlb.max_rank_tokens": 0,
    "wlb.packing_window": 1,
    "wlb.max_age_iterations": 0,
}
OR_MINUS_ONE = ("training.local_batch_size", "training.global_batch_size", "parallelism.data_parallel_shard_degree")
OPTIMIZERS = ("Adam", "AdamW")
COMPILED = ("model", "loss")


def value_problems(config: JobConfig) -> Iterator[str]:
    """Single values, and pairs that contradict each other."""
    for key, least in AT_LEAST.items():
        value = attrgetter(key)(config)
        if value is not None and value < least and not (value == -1 and key in OR_MINUS_ONE):
            also = ", or -1" if key in OR_MINUS_ONE else ""
            yield f"{key} = {value} is too small; use {least} or more{also}"
    yield from _optimizer(config)
    yield from _activation_checkpoint(config)
    yield from _compile(config)
    profiling = config.profiling
    if profiling.enable_profiling and profiling.profile_freq < profiling.profiler_warmup + profiling.profiler_active:
        yield (
            f"profiling.profile_freq = {profiling.profile_freq} is below profiler_warmup + profiler_active = "
            f"{profiling.profiler_warmup} + {profiling.profiler_active}; raise it"
        )


def _optimizer(config: JobConfig) -> Iterator[str]:
    optimizer, schedule, steps = config.optimizer, config.lr_scheduler, config.training.steps
    if optimizer.name not in OPTIMIZERS:
        yield f"optimizer.name = {optimizer.name!r} is not one of {', '.join(map(repr, OPTIMIZERS))}"
    for key in ("beta1", "beta2"):
        if not 0 <= getattr(optimizer, key) < 1:
            yield f"optimizer.{key} = {getattr(optimizer, key)} is not at least 0 and below 1"
    if schedule.total_steps is not None and schedule.total_steps < steps:
        yield (
            f"lr_scheduler.total_steps = {schedule.total_steps} is below training.steps = {steps}: the learning rate "
            f"would fall below its end; use at least {steps}, or leave it out"
        )


def _activation_checkpoint(config: JobConfig) -> Iterator[str]:
    checkpoint = config.activation_checkpoint
    option = checkpoint.selective_ac_option
    if checkpoint.mode == "selective" and option != "op" and not (option.isascii() and option.isdigit()):
        yield (
            f"activation_checkpoint.selective_ac_option = {option!r} is not 'op' (what is cheap is computed again) "
            "or a number in quotes ('2': every second layer)"
        )
    if checkpoint.determinism_check not in ("default", "none"):
        yield f"activation_checkpoint.determinism_check = {checkpoint.determinism_check!r} is not 'default' or 'none'"


def _compile(config: JobConfig) -> Iterator[str]:
    compiling, parallelism = config.compile, config.parallelism
    if unknown := [part for part in compiling.components if part not in COMPILED]:
        yield f"compile.components = {compiling.components} holds {unknown[0]!r}; there are {', '.join(COMPILED)}"
    if compiling.enable:
        import torch  # here, since torch.compile's own import is slow

        backends = torch.compiler.list_backends(exclude_tags=())
        if compiling.backend not in backends:
            yield f"compile.backend = {compiling.backend!r} is not one of {', '.join(backends)}"
    if (
        compiling.enable
        and "loss" in compiling.components
        and parallelism.tensor_parallel_degree > 1
        and not parallelism.disable_loss_parallel
    ):
        yield (
            f"compile.components = {compiling.components} holds 'loss', which torch 2.13 cannot compile for changing "
            "lengths under tensor parallelism; use ['model'], or parallelism.disable_loss_parallel = true"
        )
    is_compiled = compiling.enable and "model" in compiling.components
    if parallelism.enable_async_tensor_parallel and parallelism.tensor_parallel_degree > 1 and not is_compiled:
        yield (
            "parallelism.enable_async_tensor_parallel = true needs compile.enable = true and 'model' in "
            "compile.components; set them, or remove it"
        )

"""Refuses configurations that cannot run, before any process group exists, in one line each.

The line names the key, its value, what is allowed and what to do. TorchTitan checks neither types nor choices of TOML
values; ours, and those of its keys that decide whether a layout can run, are checked here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from titan_wlb.data.tokenizer import NO_ASSETS, holds_tokenizer
from titan_wlb.job_config import WLB, JobConfig
from titan_wlb.models.llama3_wlb.flavors import FLAVORS

SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B")


class ConfigError(ValueError):
    """A configuration that cannot run; its text is one line for the person who wrote it."""


def check_config(config: JobConfig, world_size: int) -> None:
    """Raises :class:`ConfigError` for the first thing wrong with a configuration.

    Args:
        config: as parsed; not changed.
        world_size: ranks of the job.
    """
    for problem in _problems(config, world_size):
        raise ConfigError(problem)


def data_parallel_degree(config: JobConfig, world_size: int) -> int:
    """dp_replicate x dp_shard, with the leftover ranks where dp_shard is -1."""
    parallelism = config.parallelism
    shard = parallelism.data_parallel_shard_degree
    if shard == -1:
        shard = world_size // (parallelism.data_parallel_replicate_degree * _model_parallel_degree(config))
    return parallelism.data_parallel_replicate_degree * shard


def _model_parallel_degree(config: JobConfig) -> int:
    parallelism = config.parallelism
    return (
        parallelism.context_parallel_degree
        * parallelism.tensor_parallel_degree
        * parallelism.pipeline_parallel_degree
    )


def _problems(config: JobConfig, world_size: int) -> Iterator[str]:
    yield from _types(config)
    yield from _not_supported(config)
    yield from _layout(config, world_size)
    yield from _batches(config, data_parallel_degree(config, world_size))
    yield from _model(config)
    if config.parallelism.pipeline_parallel_degree > 1:
        yield from _pipeline(config, data_parallel_degree(config, world_size))


def _types(config: JobConfig) -> Iterator[str]:
    hints = get_type_hints(WLB)
    for entry in fields(WLB):
        value, hint = getattr(config.wlb, entry.name), hints[entry.name]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                allowed = ", ".join(repr(choice) for choice in get_args(hint))
                yield f"wlb.{entry.name} = {value!r} is not one of {allowed}"
        elif hint == list[int]:
            if not isinstance(value, list) or not all(_is_int(item) and item > 0 for item in value):
                yield f"wlb.{entry.name} = {value!r} is not a list of positive integers"
            elif value and value[-1] > config.training.seq_len:
                yield (
                    f"wlb.{entry.name} = {value!r} goes beyond training.seq_len = {config.training.seq_len}: no document "
                    "is longer than that; lower it"
                )
            elif value != sorted(set(value)):
                yield f"wlb.{entry.name} = {value!r} does not ascend; write {sorted(set(value))}"
        elif not (_is_int(value) if hint is int else isinstance(value, hint)):
            yield f"wlb.{entry.name} = {value!r} is not of type {hint.__name__}"
    integers = (
        ("training", "seq_len", 1),
        ("training", "steps", 1),
        ("training", "local_batch_size", -1),
        ("training", "global_batch_size", -1),
        ("metrics", "log_freq", 1),
        ("parallelism", "data_parallel_replicate_degree", 1),
        ("parallelism", "data_parallel_shard_degree", -1),
        ("parallelism", "context_parallel_degree", 1),
        ("parallelism", "tensor_parallel_degree", 1),
        ("parallelism", "pipeline_parallel_degree", 1),
    )
    for section, key, least in integers:
        value = getattr(getattr(config, section), key)
        if not _is_int(value) or value < least or value == 0:
            allowed = "a positive integer" + (" or -1" if least == -1 else "")
            yield f"{section}.{key} = {value!r} is not {allowed}"
    if not isinstance(config.training.dataset, str) or not config.training.dataset:
        yield f"training.dataset = {config.training.dataset!r} is not the name of a dataset"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _not_supported(config: JobConfig) -> Iterator[str]:
    """TorchTitan options that this package does not honour yet."""
    refused = (
        (config.validation.enable, "validation.enable = true", "TorchTitan's validator shards sequences its own way"),
        (
            config.comm.mode != "default",
            f"comm.mode = {config.comm.mode!r} (COMM_MODE)",
            "plans are compared over real ranks",
        ),
        (config.fault_tolerance.enable, "fault_tolerance.enable = true", "replicas would plan different steps"),
        (config.memory_estimation.enable, "memory_estimation.enable = true", "it needs a fake process group"),
        (
            config.parallelism.expert_parallel_degree > 1,
            f"parallelism.expert_parallel_degree = {config.parallelism.expert_parallel_degree}",
            "the model has no experts",
        ),
        (bool(config.model.converters), f"model.converters = {config.model.converters}", "not proven with our layers"),
        (config.training.enable_cpu_offload, "training.enable_cpu_offload = true", "not proven with our gradient norm"),
        (
            config.optimizer.early_step_in_backward,
            "optimizer.early_step_in_backward = true",
            "gradients are accumulated over micro-batches and clipped",
        ),
        (
            config.training.dataloader.num_workers != 0,
            f"training.dataloader.num_workers = {config.training.dataloader.num_workers}",
            "the balanced loader reads ahead in a thread of its own",
        ),
        (
            config.activation_checkpoint.mode == "memory_budget",
            "activation_checkpoint.mode = 'memory_budget'",
            "not proven with the attention op",
        ),
    )
    for is_set, key, why in refused:
        if is_set:
            yield f"{key} is not supported ({why}); remove it"


def _layout(config: JobConfig, world_size: int) -> Iterator[str]:
    parallelism = config.parallelism
    degrees = (
        f"dp_replicate {parallelism.data_parallel_replicate_degree} x dp_shard "
        f"{parallelism.data_parallel_shard_degree} x cp {parallelism.context_parallel_degree} x tp "
        f"{parallelism.tensor_parallel_degree} x pp {parallelism.pipeline_parallel_degree}"
    )
    model = _model_parallel_degree(config) * parallelism.data_parallel_replicate_degree
    if parallelism.data_parallel_shard_degree == -1:
        if world_size % model or world_size < model:
            yield f"parallelism: {degrees} needs a multiple of {model} ranks, there are {world_size}; change NGPU"
    elif model * parallelism.data_parallel_shard_degree != world_size:
        needed = model * parallelism.data_parallel_shard_degree
        yield f"parallelism: {degrees} needs {needed} ranks, there are {world_size}; change NGPU or a degree"
    sharded = data_parallel_degree(config, world_size) // parallelism.data_parallel_replicate_degree
    if parallelism.data_parallel_replicate_degree > 1 and sharded * parallelism.context_parallel_degree == 1:
        yield (
            f"parallelism.data_parallel_replicate_degree = {parallelism.data_parallel_replicate_degree} alone (DDP) "
            "is not supported, it would average gradients; use data_parallel_shard_degree (FSDP), or both (HSDP)"
        )


def _batches(config: JobConfig, dp: int) -> Iterator[str]:
    training, wlb = config.training, config.wlb
    micro_batches = training.global_batch_size
    if micro_batches == -1:
        yield (
            "training.global_batch_size = -1 is not supported: give the number of micro-batches of a step over all "
            f"ranks, a multiple of the data-parallel degree {dp}"
        )
    if micro_batches % dp:
        yield (
            f"training.global_batch_size = {micro_batches} does not divide by the data-parallel degree {dp}; "
            f"use {-(-micro_batches // dp) * dp}"
        )
    if training.local_batch_size not in (-1, micro_batches // dp):
        yield (
            f"training.local_batch_size = {training.local_batch_size} contradicts global_batch_size / data-parallel "
            f"degree = {micro_batches} / {dp} = {micro_batches // dp}; remove it"
        )
    if wlb.max_tokens and wlb.max_tokens < training.seq_len:
        yield (
            f"wlb.max_tokens = {wlb.max_tokens} is below training.seq_len = {training.seq_len}: a document that fills "
            f"the window would never fit; use at least {training.seq_len}, or 0 for {2 * training.seq_len}"
        )


def _model(config: JobConfig) -> Iterator[str]:
    model, tp = config.model, config.parallelism.tensor_parallel_degree
    if model.name != "llama3_wlb":
        yield f"model.name = {model.name!r} is not one of 'llama3_wlb'"
    if model.flavor not in FLAVORS:
        yield f"model.flavor = {model.flavor!r} is not one of {', '.join(repr(name) for name in FLAVORS)}"
    args = FLAVORS[model.flavor]
    for what, number in (("heads", args.n_heads), ("K/V heads", args.n_kv_heads or args.n_heads)):
        if number % tp:
            yield (
                f"parallelism.tensor_parallel_degree = {tp} does not divide the {number} {what} of "
                f"model.flavor = {model.flavor!r}"
            )
    if model.hf_assets_path not in NO_ASSETS and not holds_tokenizer(model.hf_assets_path):
        yield (
            f"model.hf_assets_path = {model.hf_assets_path!r} holds no tokenizer.json; name a folder that does, or "
            "'' for the built-in tokenizer"
        )


def _pipeline(config: JobConfig, dp: int) -> Iterator[str]:
    parallelism = config.parallelism
    schedule, pp = parallelism.pipeline_parallel_schedule, parallelism.pipeline_parallel_degree
    micro_batches = config.training.global_batch_size // dp
    if parallelism.pipeline_parallel_schedule_csv:
        yield f"parallelism.pipeline_parallel_schedule_csv = {parallelism.pipeline_parallel_schedule_csv!r} is not supported; remove it"
    if schedule not in SCHEDULES:
        yield f"parallelism.pipeline_parallel_schedule = {schedule!r} is not one of {', '.join(map(repr, SCHEDULES))}"
    if parallelism.pipeline_parallel_microbatch_size != 1:
        yield (
            f"parallelism.pipeline_parallel_microbatch_size = {parallelism.pipeline_parallel_microbatch_size} is not "
            "supported: a micro-batch is one row of packed documents; remove it"
        )
    if os.environ.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        yield (
            "TORCH_DISTRIBUTED_DEBUG = DETAIL is not supported with a pipeline: torch then demands equal lengths of "
            "all micro-batches; use INFO"
        )
    stages = pp * stages_per_rank(config)
    if schedule == "1F1B" and micro_batches < stages:
        yield (
            f"training.global_batch_size = {config.training.global_batch_size} gives a pipeline {micro_batches} "
            f"micro-batches, 1F1B needs at least its {stages} stages; use {stages * dp} or more"
        )
    if schedule == "Interleaved1F1B":
        rounds = max(1, micro_batches // pp)
        if micro_batches % rounds:
            yield (
                f"training.global_batch_size = {config.training.global_batch_size} gives a pipeline {micro_batches} "
                f"micro-batches, which Interleaved1F1B cannot run in {rounds} equal rounds; "
                f"use {-(-micro_batches // pp) * pp * dp}"
            )
    layers = FLAVORS[config.model.flavor].n_layers
    first, last = (
        parallelism.pipeline_parallel_first_stage_less_layers,
        parallelism.pipeline_parallel_last_stage_less_layers,
    )
    if (layers + first + last) // stages < max(first, last, 1):
        yield (
            f"parallelism.pipeline_parallel_degree = {pp} makes {stages} stages of {schedule}, too many for the "
            f"{layers} layers of model.flavor = {config.model.flavor!r}"
        )


def stages_per_rank(config: JobConfig) -> int:
    """Virtual stages of each pipeline rank, as TorchTitan's ``pipeline_llm`` counts them."""
    parallelism = config.parallelism
    if parallelism.pipeline_parallel_layers_per_stage is None:
        return 2 if parallelism.pipeline_parallel_schedule == "Interleaved1F1B" else 1
    layers = (
        FLAVORS[config.model.flavor].n_layers
        + parallelism.pipeline_parallel_first_stage_less_layers
        + parallelism.pipeline_parallel_last_stage_less_layers
    )
    stages = -(-layers // parallelism.pipeline_parallel_layers_per_stage)
    return max(1, stages // parallelism.pipeline_parallel_degree)

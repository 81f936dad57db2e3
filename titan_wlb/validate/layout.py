"""Which degrees of parallelism, numbers of micro-batches and schedules can run together."""

from __future__ import annotations

from collections.abc import Iterator

from titan_wlb.job_config import JobConfig
from titan_wlb.models.llama3_wlb.flavors import FLAVORS

__all__ = [
    "SCHEDULES",
    "batch_problems",
    "data_parallel_degree",
    "layout_problems",
    "model_problems",
    "pipeline_problems",
    "stages_per_rank",
]

SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B")


def data_parallel_degree(config: JobConfig, world_size: int) -> int:
    """dp_replicate x dp_shard, with the leftover ranks where dp_shard is -1."""
    parallelism = config.parallelism
    shard = parallelism.data_parallel_shard_degree
    if shard == -1:
        shard = world_size // (parallelism.data_parallel_replicate_degree * _model_parallel_degree(config))
    return parallelism.data_parallel_replicate_degree * shard


def stages_per_rank(config: JobConfig) -> int:
    """Virtual stages of each pipeline rank, as TorchTitan's ``pipeline_llm`` counts them."""
    parallelism = config.parallelism
    if parallelism.module_fqns_per_model_part is not None:
        return max(1, len(parallelism.module_fqns_per_model_part) // parallelism.pipeline_parallel_degree)
    if parallelism.pipeline_parallel_layers_per_stage is not None:
        return max(1, _stages_of_layers(config) // parallelism.pipeline_parallel_degree)
    return 2 if parallelism.pipeline_parallel_schedule == "Interleaved1F1B" else 1


def layout_problems(config: JobConfig, world_size: int) -> Iterator[str]:
    """Degrees whose product is not the number of ranks, or that cannot run together."""
    parallelism, checkpoint = config.parallelism, config.checkpoint
    if checkpoint.create_seed_checkpoint and world_size != 1:
        yield (
            f"checkpoint.create_seed_checkpoint = true needs one rank, there are {world_size}; start with NGPU=1 and "
            "every degree of [parallelism] 1"
        )
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


def batch_problems(config: JobConfig, dp: int) -> Iterator[str]:
    """A number of micro-batches that the data-parallel ranks cannot share."""
    training = config.training
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


def model_problems(config: JobConfig) -> Iterator[str]:
    """An unknown model, or one that does not divide by the degree of tensor parallelism."""
    model, tp = config.model, config.parallelism.tensor_parallel_degree
    if model.name != "llama3_wlb":
        yield f"model.name = {model.name!r} is not one of 'llama3_wlb'"
    if model.flavor not in FLAVORS:
        yield f"model.flavor = {model.flavor!r} is not one of {', '.join(map(repr, FLAVORS))}"
    args = FLAVORS[model.flavor]
    for what, number in (("heads", args.n_heads), ("K/V heads", args.n_kv_heads or args.n_heads)):
        if number % tp:
            yield (
                f"parallelism.tensor_parallel_degree = {tp} does not divide the {number} {what} of "
                f"model.flavor = {model.flavor!r}; use a divisor"
            )


def pipeline_problems(config: JobConfig, dp: int) -> Iterator[str]:
    """A schedule or a split into stages that cannot run, by the rules of torch and TorchTitan."""
    parallelism = config.parallelism
    schedule, pp = parallelism.pipeline_parallel_schedule, parallelism.pipeline_parallel_degree
    if schedule not in SCHEDULES:
        yield f"parallelism.pipeline_parallel_schedule = {schedule!r} is not one of {', '.join(map(repr, SCHEDULES))}"
    yield from _stages(config)
    batch = f"training.global_batch_size = {config.training.global_batch_size}"
    micro_batches = config.training.global_batch_size // dp
    stages = pp * stages_per_rank(config)
    if schedule == "1F1B" and micro_batches < stages:
        yield (
            f"{batch} gives a pipeline {micro_batches} micro-batches, 1F1B needs at least its {stages} stages; "
            f"use {stages * dp} or more"
        )
    if schedule == "Interleaved1F1B":
        rounds = max(1, micro_batches // pp)
        if micro_batches % rounds:
            yield (
                f"{batch} gives a pipeline {micro_batches} micro-batches, which Interleaved1F1B cannot run in "
                f"{rounds} equal rounds; use {-(-micro_batches // pp) * pp * dp}"
            )


def _model_parallel_degree(config: JobConfig) -> int:
    parallelism = config.parallelism
    return (
        parallelism.context_parallel_degree * parallelism.tensor_parallel_degree * parallelism.pipeline_parallel_degree
    )


def _stages_of_layers(config: JobConfig) -> int:
    """Stages that ``pipeline_parallel_layers_per_stage`` makes; the embedding and the output count as layers."""
    parallelism = config.parallelism
    layers = (
        FLAVORS[config.model.flavor].n_layers
        + parallelism.pipeline_parallel_first_stage_less_layers
        + parallelism.pipeline_parallel_last_stage_less_layers
    )
    return -(-layers // parallelism.pipeline_parallel_layers_per_stage)


def _stages(config: JobConfig) -> Iterator[str]:
    parallelism = config.parallelism
    pp, schedule = parallelism.pipeline_parallel_degree, parallelism.pipeline_parallel_schedule
    parts, layers_per_stage = parallelism.module_fqns_per_model_part, parallelism.pipeline_parallel_layers_per_stage
    if parts is not None:
        yield from _parts(config)
        key, stages = "parallelism.module_fqns_per_model_part", len(parts)
    elif layers_per_stage is not None:
        key, stages = f"parallelism.pipeline_parallel_layers_per_stage = {layers_per_stage}", _stages_of_layers(config)
    else:
        key, stages = f"parallelism.pipeline_parallel_degree = {pp}", pp * stages_per_rank(config)
    if stages % pp:
        yield f"{key} makes {stages} stages, which {pp} pipeline ranks cannot share equally; change it"
    if schedule == "Interleaved1F1B" and stages < 2 * pp:
        yield f"{key} makes {stages} stages, Interleaved1F1B needs 2 or more on each of {pp} pipeline ranks; change it"
    if schedule != "Interleaved1F1B" and stages != pp:
        yield f"{key} makes {stages} stages, {schedule} needs one on each of {pp} pipeline ranks; change it"
    if parts is not None:
        return
    layers = FLAVORS[config.model.flavor].n_layers
    first = parallelism.pipeline_parallel_first_stage_less_layers
    last = parallelism.pipeline_parallel_last_stage_less_layers
    if (layers + first + last) // stages < max(first, last, 1):
        yield (
            f"{key} makes {stages} stages of {schedule}, too many for the {layers} layers of model.flavor = "
            f"{config.model.flavor!r} and {first} + {last} in place of embedding and output; use fewer stages"
        )


def _parts(config: JobConfig) -> Iterator[str]:
    """TorchTitan leaves out of the model, silently, whatever no part names."""
    layers = [f"layers.{i}" for i in range(FLAVORS[config.model.flavor].n_layers)]
    modules = ["tok_embeddings", *layers, "norm", "output"]
    parts = config.parallelism.module_fqns_per_model_part
    assert parts is not None
    if [name for part in parts for name in part] != modules or not all(parts):
        yield (
            "parallelism.module_fqns_per_model_part does not cut the model into parts: name each of tok_embeddings, "
            f"layers.0 to {layers[-1]}, norm and output once, in this order"
        )

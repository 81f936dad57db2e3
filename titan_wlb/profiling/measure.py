"""A profile of the configuration's model on the devices at hand.

The attention op alone by length and number of documents, one layer and what stands around the layers by tokens; then,
as a test of what is fitted to those, micro-batches of mixed lengths through as much of the model as is quick to run.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from titan_wlb.build import model_shape
from titan_wlb.job_config import JobConfig
from titan_wlb.planning.profile import Measurement, Profile
from titan_wlb.planning.workload import ModelShape
from titan_wlb.profiling.fit import fit
from titan_wlb.profiling.grid import Documents, attention_grid, check_grid, token_grid
from titan_wlb.profiling.site import Site
from titan_wlb.profiling.stopwatch import Stopwatch, stopwatch_for
from titan_wlb.profiling.subjects import Subject, attention_subject, layer_subject, model_subject

__all__ = ["attention_runs", "checkpoint_period", "device_name", "measure_profile"]

# Weights of a model that is run whole as a test; of a larger one two layers are.
MAX_WEIGHTS_RUN_WHOLE = 200_000_000


@dataclass(frozen=True)
class _Case:
    part: str
    layers: int
    documents: Documents
    subject: Subject


def measure_profile(
    config: JobConfig, model_args: Any, site: Site, *, longest: int, repeats: int, progress: bool = True
) -> Profile:
    """Measures, fits and tests.

    Args:
        model_args: of the flavor, with the context window in ``max_seq_len``.
        longest: tokens of the longest document measured.
        repeats: per micro-batch; the median counts. They come in rounds over all micro-batches, so that a machine that
            slows down for a while slows all alike.
        progress: whether to show a bar.

    Raises:
        ValueError: not even the smallest micro-batches fit into the device's memory; one line.
    """
    shape = model_shape(model_args)
    stopwatch = stopwatch_for(site.device)
    measured = _measure(_cases(config, model_args, site, shape, longest), site, stopwatch, repeats, progress)
    runs = attention_runs(config)
    attention, rest, head = fit(measured, runs)
    return Profile(
        shape=shape,
        tp=site.tp,
        cp=site.cp,
        device=device_name(site.device),
        clock=stopwatch.clock,
        settings=_settings(config, site),
        versions={name: version(name) for name in ("torch", "torchtitan")} | {"python": platform.python_version()},
        attention_runs=runs,
        attention=attention,
        rest=rest,
        head=head,
        measured=tuple(measured),
    )


def _cases(config: JobConfig, model_args: Any, site: Site, shape: ModelShape, longest: int) -> list[_Case]:
    most = min(2 * longest, _tokens_of_logits(site, shape))
    period = checkpoint_period(config)
    by_tokens = token_grid(longest, most)
    attention = attention_subject(config, model_args, site)
    layer = layer_subject(config, model_args, site, period)
    head = model_subject(config, model_args, site, 0)
    num_layers = shape.n_layers if shape.matmul_params <= MAX_WEIGHTS_RUN_WHOLE else min(shape.n_layers, 2 * period)
    model = model_subject(config, model_args, site, num_layers)
    return [
        *(_Case("attention", 1, documents, attention) for documents in sorted({*attention_grid(longest), *by_tokens})),
        *(_Case("layer", period, documents, layer) for documents in by_tokens),
        *(_Case("head", 0, documents, head) for documents in by_tokens),
        *(_Case("model", num_layers, documents, model) for documents in check_grid(longest, most)),
    ]


def _measure(cases: list[_Case], site: Site, stopwatch: Stopwatch, repeats: int, progress: bool) -> list[Measurement]:
    """Per case that fits into memory its median times; a first round warms up and does not count."""
    laps: list[list[list[int]]] = [[] for _ in cases]
    too_large: set[int] = set()
    rounds = [place for _ in range(repeats + 1) for place in range(len(cases))]
    for place in tqdm(rounds, desc="measuring", unit="micro-batch", disable=None if progress else True, leave=False):
        if place in too_large:
            continue
        case = cases[place]
        try:
            laps[place].append(stopwatch.laps(case.subject(case.documents)))
        except torch.OutOfMemoryError:
            if site.tp * site.cp > 1:  # the others would wait for this rank
                raise
            too_large.add(place)
        if place in too_large:  # behind the handler, which holds on to the tensors
            torch.cuda.empty_cache()
    measured = []
    for place, case in enumerate(cases):
        if place not in too_large:
            times = (round(median(times)) for times in zip(*laps[place][1:], strict=True))
            forward, backward = site.slowest(list(times))
            measured.append(Measurement(case.part, case.layers, case.documents, forward, backward))
    if missing := {case.part for case in cases} - {line.part for line in measured}:
        raise ValueError(
            f"no micro-batch of part {', '.join(sorted(missing))} fits into the memory of {device_name(site.device)}; "
            "lower --longest"
        )
    return measured


def attention_runs(config: JobConfig) -> float:
    """How often a layer's attention runs forward: checkpointing of whole layers repeats it, that of ops keeps it."""
    checkpoint = config.activation_checkpoint
    if checkpoint.mode == "full":
        return 2.0
    if checkpoint.mode == "selective" and checkpoint.selective_ac_option.isdecimal():
        return 1.0 + 1.0 / checkpoint_period(config)
    return 1.0


def checkpoint_period(config: JobConfig) -> int:
    """Layers after which it repeats which of them are checkpointed; a measured stack of layers is a multiple of it."""
    checkpoint = config.activation_checkpoint
    if checkpoint.mode == "selective" and checkpoint.selective_ac_option.isdecimal():
        return max(int(checkpoint.selective_ac_option), 1)
    return 1


def _tokens_of_logits(site: Site, shape: ModelShape) -> int:
    """Tokens whose logits and their gradients, in float32, fill a quarter of the device's memory."""
    if site.device.type != "cuda":
        return 1 << 62
    memory = torch.cuda.get_device_properties(site.device).total_memory
    return max(memory // 4 * site.tp // (12 * shape.vocab_size), 1024) * site.cp


def _settings(config: JobConfig, site: Site) -> dict[str, str]:
    checkpoint = config.activation_checkpoint
    option = f" {checkpoint.selective_ac_option}" if checkpoint.mode == "selective" else ""
    return {
        "dtype": config.training.mixed_precision_param,
        "kernel": site.backend,
        "sharding": config.wlb.sharding,
        "activation_checkpoint": checkpoint.mode + option,
        "compile": ", ".join(config.compile.components) if config.compile.enable else "off",
    }


def device_name(device: torch.device) -> str:
    """What the machine calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

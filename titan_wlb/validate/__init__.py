"""Refuses configurations that cannot run, before any process group exists, in one line each.

    values from a file     types.py         unknown keys, types and choices, from the annotations of the sections
    the configuration      unsupported.py   TorchTitan's options that would do nothing or something else here
                           values.py        ranges, and values that TorchTitan would only find in the middle of a run
                           layout.py        degrees, micro-batches, the pipeline's schedule and its stages
                           data.py          datasets, tokenizers, folders
                           checkpoints.py   what is loaded and saved
    this machine           device.py        kernels and tools that this rank's device does not have

The line names the key, its value, what is allowed and what to do. ``docs/torchtitan_options.md`` tells users the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from titan_wlb.job_config import JobConfig
from titan_wlb.validate.checkpoints import checkpoint_problems
from titan_wlb.validate.data import dataset_problems, folder_problems, tokenizer_problems
from titan_wlb.validate.device import device_problems
from titan_wlb.validate.layout import (
    batch_problems,
    data_parallel_degree,
    layout_problems,
    model_problems,
    pipeline_problems,
    stages_per_rank,
)
from titan_wlb.validate.packing import packing_problems
from titan_wlb.validate.types import toml_problems, type_problems
from titan_wlb.validate.unsupported import unsupported_problems
from titan_wlb.validate.values import value_problems

__all__ = [
    "ConfigError",
    "check_config",
    "check_device",
    "check_toml",
    "data_parallel_degree",
    "stages_per_rank",
]


class ConfigError(ValueError):
    """A configuration that cannot run; its text is one line for the person who wrote it."""


def check_toml(values: dict, sections: type) -> None:
    """Raises :class:`ConfigError` for the first unknown key, or value of a wrong type, in what a TOML file says.

    Args:
        values: as read.
        sections: the dataclass of the configuration.
    """
    _refuse_first(toml_problems(values, sections))


def check_config(config: JobConfig, world_size: int) -> None:
    """Raises :class:`ConfigError` for the first thing wrong with a configuration.

    Args:
        config: as parsed; not changed.
        world_size: ranks of the job.
    """
    _refuse_first(_problems(config, world_size))


def check_device(config: JobConfig, device_type: str, local_rank: int) -> None:
    """Raises :class:`ConfigError` for what this rank's device cannot do; runs the attention kernel once on a GPU.

    Args:
        config: one that ``check_config`` let pass.
        device_type: "cuda" or "cpu".
        local_rank: of this machine's ranks.
    """
    _refuse_first(device_problems(config, device_type, local_rank))


def _refuse_first(problems: Iterator[str]) -> None:
    for problem in problems:
        raise ConfigError(problem)


def _problems(config: JobConfig, world_size: int) -> Iterator[str]:
    """One after the other: each check may rely on those before it."""
    yield from type_problems(config)
    yield from unsupported_problems(config)
    yield from value_problems(config)
    yield from layout_problems(config, world_size)
    dp = data_parallel_degree(config, world_size)
    yield from batch_problems(config, dp)
    yield from model_problems(config)
    if config.parallelism.pipeline_parallel_degree > 1:
        yield from pipeline_problems(config, dp)
    yield from packing_problems(config)
    yield from tokenizer_problems(config)
    yield from dataset_problems(config)
    yield from checkpoint_problems(config)
    yield from folder_problems(config)

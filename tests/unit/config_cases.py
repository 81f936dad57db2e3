"""A configuration that passes every check, and changes to it."""

from functools import reduce
from typing import Any

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
from titan_wlb.job_config import JobConfig

ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def config_with(settings: dict[str, Any] | None = None) -> JobConfig:
    """The demo model on the standard library, one rank, four micro-batches, with other values for some keys."""
    config = JobConfig()
    plain = {
        "model.name": "llama3_wlb",
        "model.hf_assets_path": "",
        "training.global_batch_size": 4,
        "training.seq_len": 512,
        "training.steps": 10,
    }
    for key, value in {**plain, **(settings or {})}.items():
        *sections, name = key.split(".")
        section = reduce(getattr, sections, config)
        assert hasattr(section, name), key
        setattr(section, name, value)
    return config

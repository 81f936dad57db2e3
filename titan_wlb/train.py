"""Entry point of a rank: ``torchrun ... -m titan_wlb.train --job.config_file FILE [--section.key value ...]``.

``./run_train.sh`` starts it. What is wrong with the configuration is said in one line, before any process group
exists, and the process ends with :data:`titan_wlb.launch.REFUSED`.
"""

import os
import sys
import warnings
from typing import NoReturn

import titan_wlb.compat.cpu  # noqa: F401  (before torchtitan)
import torch
from torchtitan.components.checkpoint import CheckpointManager  # noqa: F401  (imported early, it is slow)
from torchtitan.config import ConfigManager
from torchtitan.tools.logging import init_logger, logger

from titan_wlb import models
from titan_wlb.agreement import PlanMismatch
from titan_wlb.data.dataloader import ResumeError
from titan_wlb.job_config import JobConfig
from titan_wlb.launch import REFUSED
from titan_wlb.trainer import WLBTrainer
from titan_wlb.validate import ConfigError, check_config


def main() -> None:
    """Trains, or creates the seed checkpoint, as TorchTitan's own ``main`` does."""
    init_logger()
    _silence_what_does_not_matter()
    config = _parse(sys.argv[1:])
    models.register()
    trainer: WLBTrainer | None = None
    try:
        trainer = WLBTrainer(config)
        if config.checkpoint.create_seed_checkpoint:
            trainer.checkpointer.save(curr_step=0, last_step=True)
            logger.info("Created seed checkpoint")
        else:
            trainer.train()
    except (ConfigError, PlanMismatch, ResumeError) as error:
        _refuse(str(error))
    finally:
        if trainer is not None:
            trainer.close()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _silence_what_does_not_matter() -> None:
    """Warnings that torch and TorchTitan give on every sound run of ours, and that tell a user nothing."""
    for message in (
        "Set timeout is now only supported",  # TorchTitan sets one on its placeholders for axes of one rank
        "In CPU autocast",  # float32 training on CPUs: autocast has nothing to do
        "DTensor random operators may not have complete support on cpu",  # parameters are initialised all the same
    ):
        warnings.filterwarnings("ignore", message=f"[\\s\\S]*{message}")
    logger.addFilter(lambda record: "HF assets path  does not exist" not in record.getMessage())


def _parse(args: list[str]) -> JobConfig:
    try:
        config = ConfigManager(config_cls=JobConfig).parse_args(args)
        check_config(config, int(os.environ.get("WORLD_SIZE", "1")))
    except (ValueError, OSError) as error:  # TorchTitan raises these for unknown keys and unreadable files
        _refuse(" ".join(str(error).split()))
    except SystemExit as stop:  # tyro has printed what is wrong, or the help
        raise SystemExit(REFUSED if stop.code else 0) from None
    return config


def _refuse(line: str) -> NoReturn:
    """Ends this rank at once: other ranks may be inside a collective that will never end."""
    print(f"titan_wlb: {line}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(REFUSED)


if __name__ == "__main__":
    main()

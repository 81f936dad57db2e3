"""Entry point of a rank: ``torchrun ... -m titan_wlb.train --job.config_file FILE [--section.key value ...]``.

``./run_train.sh`` starts it. What is wrong with the configuration is said in one line, before any process group
exists, and the process ends with :data:`titan_wlb.launch.REFUSED`. So it does where data, tokenizer or checkpoint turn
out not to fit, and where ranks plan different steps.
"""

import contextlib
import os
import sys
import time
import warnings

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
import torch
from torchtitan.tools.logging import init_logger, logger
from torchtitan.tools.utils import device_type

from titan_wlb import models
from titan_wlb.command_line import parse
from titan_wlb.data.tokenizer import NO_ASSETS
from titan_wlb.job_config import JobConfig
from titan_wlb.refusal import line_of, refuse
from titan_wlb.trainer import WLBTrainer
from titan_wlb.validate import ConfigError, check_device

# The launcher stops all ranks when one has ended; it looks ten times a second.
SECONDS_UNTIL_STOPPED = 2.0


def main() -> None:
    """Trains, or creates the seed checkpoint, as TorchTitan's own ``main`` does."""
    init_logger()
    _silence_what_does_not_matter()
    try:
        config = parse(sys.argv[1:], os.environ)
        check_device(config, device_type, int(os.environ["LOCAL_RANK"]))
    except ConfigError as error:
        refuse(str(error))
    models.register()
    _train(config)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _train(config: JobConfig) -> None:
    trainer: WLBTrainer | None = None
    try:
        trainer = WLBTrainer(config)
        if config.checkpoint.create_seed_checkpoint:
            trainer.checkpointer.save(curr_step=0, last_step=True)
            logger.info("Created seed checkpoint")
        else:
            trainer.train()
    except Exception as error:
        line = line_of(error)
        if line is not None:
            _write_out(trainer)
            refuse(line)
        if int(os.environ["WORLD_SIZE"]) > 1:
            # Where another rank refused, this one has only lost a connection: the other's line is what matters.
            time.sleep(SECONDS_UNTIL_STOPPED)
        _close(trainer)
        raise
    trainer.close()


def _write_out(trainer: WLBTrainer | None) -> None:
    """Writes what was measured so far; waits for no other rank."""
    if trainer is not None:
        with contextlib.suppress(Exception):
            trainer.metrics_processor.close()


def _close(trainer: WLBTrainer | None) -> None:
    """Closes what is open without hiding the error on its way."""
    if trainer is not None:
        with contextlib.suppress(Exception):
            trainer.close()


def _silence_what_does_not_matter() -> None:
    """Warnings that torch and TorchTitan give on every sound run of ours, and that tell a user nothing."""
    for message in (
        "Set timeout is now only supported",  # TorchTitan sets one on its placeholders for axes of one rank
        "In CPU autocast",  # float32 training on CPUs: autocast has nothing to do
        "DTensor random operators may not have complete support on cpu",  # parameters are initialised all the same
    ):
        warnings.filterwarnings("ignore", message=f"[\\s\\S]*{message}")
    no_assets = [f"HF assets path {path} does not exist!" for path in NO_ASSETS]
    logger.addFilter(lambda record: record.getMessage() not in no_assets)


if __name__ == "__main__":
    main()

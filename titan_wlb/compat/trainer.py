"""Where TorchTitan's Trainer offers no hook. Read in torchtitan 0.2.2."""

from typing import Any

import torchtitan.train
from torchtitan.components.metrics import TensorBoardLogger


def hide_loss_visibility_warning() -> None:
    """TorchTitan warns that under a pipeline only some ranks see the loss; our trainer gives it to all of them."""
    torchtitan.train.ensure_pp_loss_visible = lambda *args: None


def metrics_rank(world_size: int, pp: int) -> int:
    """The rank whose logger writes: the first one of the last pipeline stage (``metrics._get_metrics_rank``)."""
    return world_size // pp * (pp - 1)


def tensorboard_folder(metrics_processor: Any) -> str | None:
    """Where a MetricsProcessor's TensorBoard logger writes; None where it has none."""
    for child in getattr(metrics_processor.logger, "_loggers", ()):
        if isinstance(child, TensorBoardLogger):
            return child.writer.log_dir
    return None

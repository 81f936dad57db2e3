"""TorchTitan's TensorBoard writer. Read in torchtitan 0.2.2."""

from typing import Any

from torchtitan.components.metrics import TensorBoardLogger


def tensorboard_writer(metrics_processor: Any) -> Any | None:
    """The ``SummaryWriter`` of a MetricsProcessor; None where TensorBoard is off, or on ranks that do not log."""
    for child in getattr(metrics_processor.logger, "_loggers", ()):
        if isinstance(child, TensorBoardLogger):
            return child.writer
    return None

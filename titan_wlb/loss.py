"""The loss: cross-entropy summed over this rank's labels, divided by the labels of the whole step."""

from collections.abc import Callable

import torch
from torchtitan.components.loss import build_cross_entropy_loss
from torchtitan.config import JobConfig


class NormalisedLoss:
    """Sum of the cross-entropies of a micro-batch's labels / ``num_labels``.

    The divisor stands inside the loss that pipelining differentiates, so gradients are final when backward ends and do
    not depend on the layout; TorchTitan 0.2.2 divides after the pipeline's backward, which leaves them unnormalised
    and gives clipping another meaning.

    Attributes:
        num_labels: labels in the whole step over all ranks, from the plan; set before every step.
    """

    def __init__(self, cross_entropy_sum: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        self.cross_entropy_sum = cross_entropy_sum
        self.num_labels = 1

    def __call__(self, pred: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Scalar loss of one micro-batch: logits [1, T, vocabulary], int64 labels [1, T] with -100 where none."""
        # a step of documents of one token has no label, and no gradient
        return self.cross_entropy_sum(pred, labels) / max(self.num_labels, 1)


def build_normalised_loss(job_config: JobConfig, **kwargs: object) -> NormalisedLoss:
    """TorchTitan's (possibly compiled) cross-entropy sum, normalised by the step's labels."""
    return NormalisedLoss(build_cross_entropy_loss(job_config, **kwargs))

"""Stock TorchTitan's Llama on the documents of a plan, one at a time: no packing, no mask, no code of ours.

Tokens come from the text itself and labels are shifted here, so that an error of the index or of the loader shows too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torchtitan.components.loss import cross_entropy_loss
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import build_optimizers
from torchtitan.distributed.utils import clip_grad_norm_
from torchtitan.models.llama3 import Transformer

BOS, EOS = 256, 257


def train_stock(
    config: Any, model_args: Any, plans: Sequence[Any], parallel_dims: Any
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """(loss per step, gradient norm per step, gradients of step 1 before clipping) from the same seed checkpoint.

    Args:
        plans: which tokens of which documents each step trains, and by how many labels its loss is divided.
    """
    model = Transformer(model_args)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=config.checkpoint.initial_load_path)
    model.load_state_dict(state)
    optimizer = build_optimizers([model], config.optimizer, parallel_dims)
    schedule = build_lr_schedulers(optimizer, config.lr_scheduler, config.training.steps)
    documents = tokenised(Path(config.training.dataset_path))

    losses, norms, gradients = [], [], {}
    for plan in plans:
        optimizer.zero_grad()
        segments = [segment for micro_batch in plan.micro_batches for segment in micro_batch.segments]
        total, num_labels = 0.0, 0
        for segment in segments:
            document = documents[segment.document.id]
            tokens = document[segment.start : segment.stop]
            labels = document[segment.start + 1 : segment.stop + 1]
            num_labels += len(labels)
            logits = model(tokens[None])[:, : len(labels)]
            loss = cross_entropy_loss(logits, labels[None])
            (loss / plan.num_labels).backward()
            total += loss.item()
        assert num_labels == plan.num_labels
        if not gradients:
            gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        norms.append(clip_grad_norm_(model.parameters(), config.training.max_norm).item())
        losses.append(total / num_labels)
        optimizer.step()
        schedule.step()
    return losses, norms, gradients


def tokenised(path: Path) -> list[torch.Tensor]:
    """Documents in the order of the file, which numbers them."""
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [torch.tensor([BOS, *text.encode("utf-8"), EOS]) for text in texts]

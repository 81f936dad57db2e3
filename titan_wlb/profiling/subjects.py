"""What is measured, as it is trained: the attention op, decoder layers, and what stands around them.

A subject takes a micro-batch (documents) and gives ``run(mark)``: mark, forward, mark, backward, mark.
Gradients accumulate from run to run, as they do over the micro-batches of a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor.parallel import loss_parallel

from titan_wlb.context_parallel.metadata import AttentionMetadata, build_metadata
from titan_wlb.context_parallel.op import attention
from titan_wlb.job_config import JobConfig
from titan_wlb.loss import build_normalised_loss
from titan_wlb.models.llama3_wlb import WLBTransformer
from titan_wlb.models.llama3_wlb.parallelize import parallelize_llama_wlb
from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding import shard
from titan_wlb.profiling.grid import Documents
from titan_wlb.profiling.site import Site

__all__ = ["Run", "Subject", "attention_subject", "layer_subject", "model_subject"]

Run = Callable[[Callable[[], None]], None]
Subject = Callable[[Documents], Run]


@dataclass(frozen=True)
class _Inputs:
    """What the model is told about a micro-batch, and this rank's rows of it with padding.

    Holds the metadata itself: older versions of torch take a handle, which does not keep it alive.
    """

    metadata: AttentionMetadata
    positions: torch.Tensor
    rows: int

    @property
    def arguments(self) -> dict[str, Any]:
        return {"attention_masks": self.metadata.argument, "positions": self.positions}


def attention_subject(config: JobConfig, model_args: Any, site: Site) -> Subject:
    """The attention op of a layer alone, with this rank's heads and rows; keys and values are exchanged over CP."""
    head_dim = model_args.dim // model_args.n_heads
    num_heads = model_args.n_heads // site.tp
    num_kv_heads = (model_args.n_kv_heads or model_args.n_heads) // site.tp

    def of(documents: Documents) -> Run:
        inputs = _inputs(config, documents, site)

        def normal(heads: int) -> torch.Tensor:
            return torch.randn(1, inputs.rows, heads, head_dim, device=site.device, dtype=site.dtype)

        q, k, v = (normal(heads).requires_grad_() for heads in (num_heads, num_kv_heads, num_kv_heads))
        gradient = normal(num_heads)

        def run(mark: Callable[[], None]) -> None:
            mark()
            out = attention(q, k, v, inputs.metadata.argument, head_dim**-0.5)
            mark()
            torch.autograd.grad(out, (q, k, v), gradient)
            mark()

        return run

    return of


def layer_subject(config: JobConfig, model_args: Any, site: Site, num_layers: int) -> Subject:
    """Decoder layers, with the configuration's compilation and activation checkpointing."""
    model = _model(config, model_args, site, num_layers, around=False)

    def of(documents: Documents) -> Run:
        inputs = _inputs(config, documents, site)
        shape = 1, inputs.rows // site.tp, model_args.dim
        hidden = torch.randn(shape, device=site.device, dtype=site.dtype).requires_grad_()
        gradient = torch.randn(shape, device=site.device, dtype=site.dtype)

        def run(mark: Callable[[], None]) -> None:
            mark()
            out = model(hidden, **inputs.arguments)
            mark()
            out.backward(gradient)
            mark()

        return run

    return of


def model_subject(config: JobConfig, model_args: Any, site: Site, num_layers: int) -> Subject:
    """Embedding, layers, output and loss; without layers what stands around them."""
    model = _model(config, model_args, site, num_layers, around=True)
    loss_fn = build_normalised_loss(config)
    shards_loss = site.tp_enabled and not config.parallelism.disable_loss_parallel

    def of(documents: Documents) -> Run:
        inputs = _inputs(config, documents, site)
        tokens = torch.randint(model_args.vocab_size, (1, inputs.rows), device=site.device)
        labels = torch.randint(model_args.vocab_size, (1, inputs.rows), device=site.device)

        def run(mark: Callable[[], None]) -> None:
            with loss_parallel() if shards_loss else contextlib.nullcontext():
                loss_fn.num_labels = inputs.rows
                mark()
                loss = loss_fn(model(tokens, **inputs.arguments), labels)
                mark()
                loss.backward()
                mark()

        return run

    return of


def _model(config: JobConfig, model_args: Any, site: Site, num_layers: int, *, around: bool) -> nn.Module:
    """A model of so many layers, with or without what stands around them, made as training makes it."""
    with torch.device("meta"):
        model = WLBTransformer(replace(model_args, n_layers=num_layers))
    if not around:
        model.tok_embeddings = model.norm = model.output = None
    parallelize_llama_wlb(model, site, config)  # type: ignore[arg-type]
    model.to_empty(device=site.device)
    with torch.no_grad():
        model.init_weights(buffer_device=site.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(site.dtype)  # what FSDP's mixed precision computes with
    return model.train()


def _inputs(config: JobConfig, documents: Documents, site: Site) -> _Inputs:
    lengths = tuple(length for number, length in documents for _ in range(number))
    plan = shard(config.wlb.sharding, lengths, site.cp, site.latency)
    rows = plan.padded_tokens(site.tp)
    metadata = build_metadata(plan, site.cp_rank, rows).to(site.device).bind(site.cp_mesh, site.backend)
    return _Inputs(metadata, _positions(plan, site.cp_rank, rows).to(site.device), rows)


def _positions(plan: ShardPlan, cp_rank: int, rows: int) -> torch.Tensor:
    """int64 [1, rows], counted from each document's first token; zero in padding."""
    chunks = [torch.arange(chunk.start, chunk.stop) for chunk in plan.ranks[cp_rank]]
    real = torch.cat([*chunks, torch.empty(0, dtype=torch.int64)])
    return torch.nn.functional.pad(real, (0, rows - len(real))).unsqueeze(0)

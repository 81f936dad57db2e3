"""Activation checkpointing with two micro-batches under way at once, as a pipeline has them."""

from functools import partial

import pytest
import torch
from cp_cases import SCALE, LoopbackExchange, half_cut
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.context_parallel.op import attention, ops_to_save
from titan_wlb.planning.sharding import shard

MICRO_BATCHES = ((9, 4, 18), (30, 1, 2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(16, 4 * 8, bias=False)

    def forward(self, x, metadata):
        q, k, v = self.qkv(x).view(*x.shape[:2], 4, 8).split((2, 1, 1), dim=2)
        return x + attention(q, k, v, metadata, SCALE).flatten(2)


def save(saved, ctx, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.PREFER_RECOMPUTE


def selective(saved):
    return {"context_fn": partial(create_selective_checkpoint_contexts, partial(save, saved))}


MODES = {
    # name: (arguments of checkpoint, gathers of a block and micro-batch)
    "none": (None, 2),
    "full": ({}, 3),
    "selective, op saved": (selective(set(ops_to_save())), 2),
    "selective, op not saved": (selective({torch.ops.aten.mm.default}), 3),
}


def gradients(mode, compiled=False, strategy="per_document"):
    """Gradients of two interleaved micro-batches, and how often keys and values came for each."""
    block = Block()
    options, _ = MODES[mode]
    metadatas, outs, xs = [], [], []

    def run(x, metadata):
        return block(x, metadata) if options is None else checkpoint(block, x, metadata, use_reentrant=False, **options)

    if compiled:
        torch._dynamo.reset()
        run = torch.compile(run, backend="aot_eager", fullgraph=True)
    for lengths in MICRO_BATCHES:
        plan = half_cut(lengths) if strategy == "hybrid" else shard(strategy, lengths, 2)
        metadata = build_metadata(plan, 1, plan.padded_tokens(4))
        metadata.exchange = LoopbackExchange()
        xs.append(torch.randn(1, metadata.padded_tokens, 16, generator=torch.Generator().manual_seed(len(xs))))
        outs.append(run(xs[-1].requires_grad_(), metadata.argument))
        metadatas.append(metadata)
    for out in outs:
        out.square().sum().backward()
    return [block.qkv.weight.grad, *(x.grad for x in xs)], [fetches(m.exchange) for m in metadatas]


def fetches(exchange):
    return exchange.gathers if exchange.gathers else len(exchange.sent) - 1  # the last one returned gradients


@pytest.mark.parametrize("strategy", ["per_document", "hybrid"])
@pytest.mark.parametrize("mode", MODES)
def test_gives_the_gradients_of_no_checkpointing(mode, strategy):
    found, gathers = gradients(mode, strategy=strategy)
    for x, y in zip(found, gradients("none", strategy=strategy)[0], strict=True):
        assert torch.equal(x, y)
    assert gathers == [MODES[mode][1]] * 2


@pytest.mark.parametrize("mode", MODES)
def test_gives_them_compiled_too(mode):
    found, _ = gradients(mode, compiled=True)
    for x, y in zip(found, gradients("none")[0], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)

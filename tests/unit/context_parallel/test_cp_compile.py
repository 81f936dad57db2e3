"""torch.compile of a block as TorchTitan does it: per block, fullgraph, metadata as an argument. Graphs are counted."""

import pytest
import torch
from cp_cases import SCALE, LoopbackExchange, plan_of
from torch import nn

from titan_wlb.context_parallel.dynamic import mark_dynamic_hook
from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.context_parallel.op import attention
from titan_wlb.planning.sharding import shard

DIM, HEADS, KV_HEADS, HEAD_DIM = 24, 3, 1, 8
MICRO_BATCHES = ((9, 4, 18), (26,), (3, 3, 40, 1), (7, 22, 5), (64,))


class Block(nn.Module):
    """A transformer block's arguments and its use of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(DIM, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.out = nn.Linear(HEADS * HEAD_DIM, DIM, bias=False)

    def forward(self, x, freqs_cis, metadata, positions):
        heads = self.qkv(x).view(*x.shape[:2], -1, HEAD_DIM)
        q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=2)
        rotation = freqs_cis[positions[0]][None, :, None]
        q, k = (
            torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * rotation).flatten(3) for y in (q, k)
        )
        return x + self.out(attention(q, k, v, metadata, SCALE).flatten(2))


class Backend:
    """aot_eager that counts its graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def step(block, lengths, cp, strategy="per_document"):
    """[output, input gradient, weight gradients] of one micro-batch."""
    plan = plan_of(strategy, lengths, cp)
    metadata = build_metadata(plan, 0, plan.padded_tokens(2))
    if cp > 1:
        metadata.exchange = LoopbackExchange()
    generator = torch.Generator().manual_seed(sum(lengths))
    x = torch.randn(1, metadata.padded_tokens, DIM, generator=generator, requires_grad=True)
    positions = torch.arange(metadata.padded_tokens)[None]
    table = torch.polar(torch.ones(128, HEAD_DIM // 2), torch.arange(128.0)[:, None].expand(-1, HEAD_DIM // 2))
    block.zero_grad()
    # as TorchTitan's model calls its blocks
    out = block(x, table, metadata.argument, positions)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad.clone() for p in block.parameters())]


@pytest.mark.parametrize(("marked", "expected"), [(True, [1, 1, 1, 1, 1]), (False, [1, 2, 2, 2, 2])])
@pytest.mark.parametrize("cp", [1, 2])
def test_no_graph_is_compiled_after_the_second_micro_batch(cp, marked, expected):
    torch._dynamo.reset()
    backend = Backend()
    block = torch.compile(Block(), backend=backend, fullgraph=True)
    if marked:
        mark_dynamic_hook(block)
    graphs = []
    for lengths in MICRO_BATCHES:
        results = step(block, lengths, cp)
        graphs.append(backend.graphs)
        for x, y in zip(results, step(Block(), lengths, cp), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    assert graphs == expected


def test_strategies_change_from_micro_batch_to_micro_batch_in_one_graph():
    torch._dynamo.reset()
    backend = Backend()
    block = torch.compile(Block(), backend=backend, fullgraph=True)
    mark_dynamic_hook(block)
    for strategy in ("per_document", "hybrid", "per_sequence", "hybrid"):
        for lengths in MICRO_BATCHES:
            found, expected = step(block, lengths, 2, strategy), step(Block(), lengths, 2, strategy)
            for x, y in zip(found, expected, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    assert backend.graphs == 1


def test_one_local_token_costs_one_more_graph():
    torch._dynamo.reset()
    backend = Backend()
    block = torch.compile(Block(), backend=backend, fullgraph=True)
    mark_dynamic_hook(block)
    for lengths in ((9, 4), (1,), (12, 3), (1,)):
        plan = shard("per_document", lengths, 1)
        metadata = build_metadata(plan, 0, sum(lengths)).bind(None, "cpu")
        table = torch.ones(64, HEAD_DIM // 2, dtype=torch.complex64)
        block(
            torch.randn(1, sum(lengths), DIM), table, metadata.argument, torch.zeros(1, sum(lengths), dtype=torch.int64)
        )
    assert backend.graphs == 2


def test_marks_are_set_whatever_way_a_block_is_called():
    seen = []

    class Probe(nn.Module):
        def forward(self, x, freqs_cis, metadata, positions=None):
            seen.append([getattr(y, "_dynamo_dynamic_indices", set()) for y in (x, positions) if y is not None])

    probe = Probe()
    mark_dynamic_hook(probe)
    table, rows = torch.ones(4, 2), torch.zeros(1, 4, dtype=torch.int64)
    probe(torch.ones(1, 4, 2), table, None, rows.clone())
    probe(torch.ones(1, 4, 2), table, None, positions=rows.clone())
    probe(x=torch.ones(1, 4, 2), freqs_cis=table, metadata=None, positions=rows.clone())
    probe(torch.ones(1, 4, 2), table, None)
    assert seen == [[{1}, {1}], [{1}, {1}], [{1}, {1}], [{1}]]
    assert not hasattr(table, "_dynamo_dynamic_indices")

import pytest
import torch
from cp_cases import (
    HEADS,
    LENGTHS,
    SCALE,
    LoopbackExchange,
    emulate,
    random_case,
    relative_error,
    run_rank,
)

from titan_wlb.compat import opaque
from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.context_parallel.op import attention, define_ops, ops_to_save
from titan_wlb.planning.sharding import shard

NAMES = ("out", "dq", "dk", "dv")


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("strategy", ["per_sequence", "per_document"])
@pytest.mark.parametrize("cp", [1, 2, 4, 8])
def test_equals_dense_attention_forward_and_backward(cp, strategy, lengths, heads):
    case = random_case(sum(lengths), heads)
    plan = shard(strategy, lengths, cp)
    found = emulate(case, plan, plan.padded_tokens(4) + 3)
    for name, x, expected in zip(NAMES, found, case.results(lengths), strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("cp", [1, 4])
def test_is_as_exact_as_the_dtype_allows(cp, dtype, tolerance):
    lengths = LENGTHS["mixed"]
    case = random_case(sum(lengths), HEADS["grouped"], dtype)
    plan = shard("per_document", lengths, cp)
    for x, expected in zip(emulate(case, plan, plan.padded_tokens(4)), case.results(lengths), strict=True):
        assert x.dtype == dtype
        assert relative_error(x, expected) < tolerance


def test_a_shard_s_order_of_chunks_does_not_matter():
    lengths = (9, 4)
    case = random_case(13, (4, 2))
    plan = shard("per_document", lengths, 2)
    turned = type(plan)(plan.strategy, plan.lengths, tuple(tuple(reversed(rank)) for rank in plan.ranks))
    for x, y in zip(emulate(case, plan, 8), emulate(case, turned, 8), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def test_numerical_gradients():
    metadata = build_metadata(shard("per_document", (4, 1, 2), 1), 0, 8).bind(None, "cpu")
    q, k, v = (torch.randn(1, 8, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, metadata.argument, SCALE), (q, k, v))


def test_a_micro_batch_gathers_twice_and_scatters_once():
    lengths = (9, 4)
    plan = shard("per_document", lengths, 2)
    metadata = build_metadata(plan, 0, 8)
    metadata.exchange = LoopbackExchange()
    run_rank(random_case(13, (4, 2)), plan, metadata, 0)
    assert (metadata.exchange.gathers, metadata.exchange.scatters) == (2, 1)


@pytest.mark.parametrize("lengths", [(9, 4), (1,), (1, 1)])
def test_the_op_keeps_its_promises_to_torch(lengths):
    plan = shard("per_document", lengths, 2)
    metadata = build_metadata(plan, 0, plan.padded_tokens(4))
    metadata.exchange = LoopbackExchange()
    q, k, v = (torch.randn(metadata.padded_tokens, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    for op in ops_to_save():
        torch.library.opcheck(op, (q, k, v, metadata.argument, SCALE))


def test_one_token_does_not_alias_its_inputs():
    metadata = build_metadata(shard("per_document", (1,), 1), 0, 1).bind(None, "cpu")
    q, k, v = (torch.randn(1, 1, 2, 8, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, metadata.argument, SCALE)
    out.sum().backward()
    torch.testing.assert_close(out, v)
    assert len({x.untyped_storage().data_ptr() for x in (q, k, v, out, q.grad, k.grad, v.grad)}) == 7


class TestHandles:
    """Where torch lacks opaque objects, an int stands for the metadata."""

    forward = staticmethod(define_ops("attention_by_handle", int))

    def attend(self, q, k, v, metadata, scale):
        return self.forward(q.squeeze(0), k.squeeze(0), v.squeeze(0), metadata, scale)[0].unsqueeze(0)

    def test_give_the_same_results(self):
        lengths = (9, 4)
        case, plan = random_case(13, (4, 2)), shard("per_document", lengths, 1)
        metadata = build_metadata(plan, 0, 16).bind(None, "cpu")

        def attend(q, k, v, _, scale):
            return self.attend(q, k, v, opaque.handle_of(metadata), scale)

        for x, y in zip(run_rank(case, plan, metadata, 0, attend), run_rank(case, plan, metadata, 0), strict=True):
            assert torch.equal(x, y)

    def test_compile_nothing_anew(self):
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        compiled = torch.compile(self.attend, backend=backend, fullgraph=True)
        for lengths in ((9, 4), (7, 6), (13,)):
            metadata = build_metadata(shard("per_document", lengths, 1), 0, 16).bind(None, "cpu")
            q, k, v = (torch.randn(1, 16, 2, 8, requires_grad=True) for _ in range(3))
            out = compiled(q, k, v, opaque.handle_of(metadata), SCALE)
            out.sum().backward()
            torch.testing.assert_close(out, attention(q, k, v, metadata.argument, SCALE))
        assert len(graphs) == 1

    def test_tell_when_their_object_is_gone(self):
        handle = opaque.handle_of(build_metadata(shard("per_document", (3,), 1), 0, 3))
        with pytest.raises(RuntimeError, match="dropped before its micro-batch's backward"):
            opaque.object_of(handle)

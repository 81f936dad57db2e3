import pytest
import torch
from cp_cases import (
    HEADS,
    LENGTHS,
    SCALE,
    LoopbackExchange,
    emulate,
    half_cut,
    hybrid_like,
    plan_of,
    random_case,
    relative_error,
    run_rank,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.compat import opaque
from titan_wlb.context_parallel import attend
from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.context_parallel.op import attention, define_ops, ops_to_save
from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding import shard
from titan_wlb.planning.sharding.hybrid import hybrid
from titan_wlb.planning.sharding.needed import local_first
from titan_wlb.planning.tiles import Tile

NAMES = ("out", "dq", "dk", "dv")


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("strategy", ["per_sequence", "per_document", "hybrid"])
@pytest.mark.parametrize("cp", [1, 2, 3, 4, 8])
def test_equals_dense_attention_forward_and_backward(cp, strategy, lengths, heads):
    case = random_case(sum(lengths), heads)
    plan = plan_of(strategy, lengths, cp)
    found = emulate(case, plan, plan.padded_tokens(4) + 3)
    for name, x, expected in zip(NAMES, found, case.results(lengths), strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("strategy", ["per_document", "hybrid"])
@pytest.mark.parametrize("cp", [1, 4])
def test_is_as_exact_as_the_dtype_allows(cp, strategy, dtype, tolerance):
    lengths = LENGTHS["mixed"]
    case = random_case(sum(lengths), HEADS["grouped"], dtype)
    plan = plan_of(strategy, lengths, cp)
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


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6).map(tuple),
    cp=st.integers(1, 4),
    seed=st.integers(0, 99),
    heads=st.sampled_from(sorted(HEADS.values())),
)
@settings(max_examples=40, deadline=None)
def test_any_plan_of_whole_and_cut_documents_equals_dense_attention(lengths, cp, seed, heads):
    case, plan = random_case(sum(lengths), heads, seed=seed), hybrid_like(lengths, cp, seed)
    for x, expected in zip(emulate(case, plan, plan.padded_tokens(2)), case.results(lengths), strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("cp", [2, 3, 4])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("tolerance", [0.0, 0.4])
def test_the_planner_s_hybrid_plans_equal_dense_attention(cp, ordered, tolerance):
    lengths = (150, 70, 33, 20, 9, 9, 4, 1)
    plan = hybrid(lengths, cp, Tile(8, 8), tolerance)
    if ordered:
        plan = ShardPlan(plan.strategy, plan.lengths, tuple(map(local_first, plan.ranks)))
    case = random_case(sum(lengths), HEADS["grouped"])
    for x, expected in zip(emulate(case, plan, plan.padded_tokens(4)), case.results(lengths), strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-12)


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


def test_a_hybrid_micro_batch_sends_its_needed_rows_twice_and_their_gradients_once():
    plan = ShardPlan("hybrid", (8, 2), ((Chunk(1, 0, 2), Chunk(0, 0, 2), Chunk(0, 6, 8)), (Chunk(0, 2, 6),)))
    metadata = build_metadata(plan, 0, 6)
    metadata.exchange = LoopbackExchange()
    run_rank(random_case(10, (4, 2)), plan, metadata, 0)
    assert metadata.exchange.sent == [(0, 2), (0, 2), (0, 4)]
    assert metadata.exchange.gathers == metadata.exchange.scatters == 0


class TestHeadSlices:
    """Many rows travel in two slices of K/V heads, so that the kernel works on one while the other comes."""

    plan = half_cut((40, 5, 6))

    @pytest.fixture(autouse=True)
    def _few_rows_are_many(self, monkeypatch):
        monkeypatch.setattr(attend, "_LEAST_BYTES", 1)

    @pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
    def test_change_no_result(self, heads):
        case = random_case(51, heads)
        for x, expected in zip(emulate(case, self.plan, 40), case.results(self.plan.lengths), strict=True):
            torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize(("heads", "number"), [((4, 4), 2), ((6, 2), 2), ((4, 1), 1), ((6, 3), 1)])
    def test_send_equally_many_rows_in_each(self, heads, number):
        metadata = build_metadata(self.plan, 1, 40)
        metadata.exchange = LoopbackExchange()
        run_rank(random_case(51, heads), self.plan, metadata, 1)
        assert metadata.exchange.sent == [(10, 0)] * 2 * number + [(17, 0)] * number

    def test_keep_enough_heads_for_a_gpu(self):
        metadata = build_metadata(self.plan, 1, 40)
        q, k = torch.empty(40, 16, 8), torch.empty(40, 8, 8)
        for backend, number in (("cpu", 2), ("flash_attn", 1), ("torch_varlen", 1)):
            metadata.backend = backend
            assert len(attend.head_slices(q, k, metadata)) == number
            assert len(attend.head_slices(torch.empty(40, 32, 8), k, metadata)) == 2

    def test_are_not_made_of_few_bytes(self, monkeypatch):
        metadata = build_metadata(self.plan, 1, 40)
        q, k = torch.empty(40, 4, 8), torch.empty(40, 2, 8)
        travelling = 17 * 2 * 2 * 8 * 4  # rows, keys and values, heads, head dim, bytes
        for least, number in ((travelling // 2, 2), (travelling // 2 + 1, 1)):
            monkeypatch.setattr(attend, "_LEAST_BYTES", least)
            assert len(attend.head_slices(q, k, metadata)) == number

    def test_keep_the_promises_to_torch(self):
        metadata = build_metadata(self.plan, 1, 40)
        metadata.exchange = LoopbackExchange()
        q, k, v = (torch.randn(40, heads, 8, requires_grad=True) for heads in (4, 2, 2))
        for op in ops_to_save():
            torch.library.opcheck(op, (q, k, v, metadata.argument, SCALE))


def test_where_no_rank_needs_anything_no_collective_is_started():
    plan = ShardPlan("hybrid", (4, 3), ((Chunk(0, 0, 4),), (Chunk(1, 0, 3),)))
    for rank in range(2):
        metadata = build_metadata(plan, rank, 4)
        metadata.exchange = LoopbackExchange()
        run_rank(random_case(7, (4, 2)), plan, metadata, rank)
        assert not metadata.exchange.sent


@pytest.mark.parametrize("strategy", ["per_document", "hybrid"])
@pytest.mark.parametrize("lengths", [(9, 4), (1,), (1, 1), (40, 4, 17)])
def test_the_op_keeps_its_promises_to_torch(lengths, strategy):
    plan = plan_of(strategy, lengths, 2)
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

"""Memory grows with the tokens, not with their square."""

import pytest
import torch
from cp_cases import LoopbackExchange, random_case, run_rank
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from titan_wlb.context_parallel.kernels import document_attention, document_attention_backward
from titan_wlb.context_parallel.metadata import build_metadata
from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding import shard


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any op returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_the_cpu_kernel_makes_no_tensor_larger_than_its_keys():
    tokens, before, heads, head_dim = 1024, 1024, 2, 8
    q = torch.randn(tokens, heads, head_dim)
    k, v = torch.randn(2, tokens + before, heads, head_dim)
    segments = (torch.tensor([0, tokens]), torch.tensor([0, tokens + before]), tokens, tokens + before, 0.3)
    with LargestTensor() as largest:
        out, lse = document_attention(q, k, v, *segments, backend="cpu")
        document_attention_backward(q, q, k, v, out, lse, *segments, backend="cpu")
    assert largest.elements == k.numel()


@pytest.mark.parametrize("strategy", ["per_document", "hybrid"])
def test_nothing_that_the_op_allocates_grows_with_the_square(strategy):
    heads, head_dim = 2, 8

    def largest_allocation(tokens: int) -> int:
        plan = shard("per_document", (tokens,), 2)
        plan = ShardPlan(strategy, plan.lengths, plan.ranks)
        metadata = build_metadata(plan, 1, plan.padded_tokens(1))
        metadata.exchange = LoopbackExchange()
        case = random_case(tokens, (heads, heads), torch.float32)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            run_rank(case, plan, metadata, 1)
        return max(event.cpu_memory_usage for event in profiled.events() if event.name == "[memory]")

    tokens = 4096
    # K and V and their gradients of every rank's rows, and the blocks of scores that a CPU kernel keeps per thread
    assert largest_allocation(tokens) <= 4 * tokens * heads * head_dim * 4 + 2**21
    assert largest_allocation(tokens) < tokens * tokens  # bytes: a quarter of one head's scores

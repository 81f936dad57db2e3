"""Context-parallel attention between real processes over gloo: CP 2 and CP 4, process groups started once."""

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from titan_wlb.context_parallel.dynamic import mark_dynamic_hook
from titan_wlb.context_parallel.exchange import Exchange
from titan_wlb.context_parallel.metadata import AttentionMetadata, build_metadata
from titan_wlb.context_parallel.op import attention
from titan_wlb.planning.sharding import shard

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "context_parallel"))
from cp_cases import HEADS, LENGTHS, SCALE, assemble, random_case, run_rank

WORLD = 4
LATE = 0.4  # seconds
CASES = [
    (cp, strategy, name, heads, padding)
    for cp in (2, 4)
    for strategy in ("per_sequence", "per_document")
    for name in LENGTHS
    for heads, padding in (("multi-head", 0), ("grouped", 3))
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What rank 0 found, per check; all checks run in one set of processes."""
    folder = tmp_path_factory.mktemp("cp")
    mp.spawn(worker, (str(folder),), WORLD)
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_equals_dense_attention_forward_and_backward(results, case):
    assert results["errors"][case] < 1e-12


@pytest.mark.parametrize("cp", [2, 4])
def test_bfloat16_is_within_its_rounding(results, cp):
    assert results["errors"]["bfloat16", cp] < 1e-2


@pytest.mark.parametrize("cp", [2, 4])
def test_the_clock_times_two_gathers_and_a_scatter_as_collectives(results, cp):
    assert results["waits"][cp] == [("cp", True)] * 3


@pytest.mark.parametrize("cp", [2, 4])
def test_every_collective_is_the_size_that_the_plan_says(results, cp):
    assert results["exchanged"][cp]


def test_a_late_peer_is_waited_for_inside_the_timed_wait(results):
    assert all(seconds > LATE / 2 for seconds in results["waited"])


def test_without_gradients_nothing_is_still_on_its_way(results):
    assert results["finished"]


@pytest.mark.parametrize("compiled", [False, True])
def test_metadata_passes_through_fsdp_s_mixed_precision_untouched(results, compiled):
    assert results["fsdp"][compiled]["seen"]
    assert results["fsdp"][compiled]["error"] < 2e-2


def test_under_fsdp_one_graph_serves_every_length(results):
    assert results["fsdp"][True]["graphs"] == 1


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    results = {"errors": {}, "waits": {}, "exchanged": {}, "fsdp": {}}
    meshes = {cp: init_device_mesh("cpu", (WORLD // cp, cp), mesh_dim_names=("dp", "cp"))["cp"] for cp in (2, 4)}
    for case in CASES:
        cp, strategy, name, heads, padding = case
        error = parity(meshes[cp], strategy, LENGTHS[name], HEADS[heads], padding, torch.float64)
        results["errors"][case] = error
    for cp, mesh in meshes.items():
        error = parity(mesh, "per_document", LENGTHS["mixed"], HEADS["grouped"], 0, torch.bfloat16)
        results["errors"]["bfloat16", cp] = error
        results["waits"][cp], results["exchanged"][cp] = watch_exchange(mesh)
    rows = torch.full((2, 3), float(rank))
    gathered = Exchange(meshes[WORLD]).all_gather(rows)  # gradients are enabled here, as nothing turned them off
    results["finished"] = type(gathered) is torch.Tensor and gathered[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    results["waited"] = wait_for_a_late_peer(meshes[WORLD])
    for compiled in (False, True):
        results["fsdp"][compiled] = train_under_fsdp(meshes[WORLD], compiled)
    if rank == 0:
        torch.save(results, os.path.join(folder, "results.pt"))
    dist.barrier()
    dist.destroy_process_group()


def parity(mesh, strategy, lengths, heads, padding, dtype) -> float:
    """Largest error of any rank's out, dq, dk and dv against dense float64 attention, relative in norm."""
    case = random_case(sum(lengths), heads, dtype)
    plan = shard(strategy, lengths, mesh.size())
    metadata = build_metadata(plan, mesh.get_local_rank(), plan.padded_tokens(2) + padding).bind(mesh, "cpu")
    local = run_rank(case, plan, metadata, mesh.get_local_rank())
    gathered = [None] * mesh.size()
    dist.all_gather_object(gathered, local, group=mesh.get_group())
    errors = []
    for found, expected in zip(assemble(case, plan, gathered), case.results(lengths), strict=True):
        scale = max(expected.norm().item(), 1.0)  # a lone token's dq and dk are zero
        errors.append((found.double() - expected).norm().item() / scale)
    return max(errors)


class Clock:
    """Notes what is timed."""

    def __init__(self) -> None:
        self.waits: list[tuple[str, bool]] = []

    @contextmanager
    def wait(self, category: str, *, collective: bool = False):
        self.waits.append((category, collective))
        yield


def watch_exchange(mesh) -> tuple[list[tuple[str, bool]], bool]:
    """(what the clock was told, whether every collective moved the padded shape) in one forward and backward."""
    plan, clock = shard("per_document", (1, 9, 4), mesh.size()), Clock()
    metadata = build_metadata(plan, mesh.get_local_rank(), 8).bind(mesh, "cpu", clock)
    shapes = []
    redistribute = metadata.exchange._redistribute

    def watched(rows, source, target):
        result = redistribute(rows, source, target)
        shapes.append((rows.shape[0], result.shape[0]))
        return result

    metadata.exchange._redistribute = watched
    run_rank(random_case(14, (4, 2)), plan, metadata, mesh.get_local_rank())
    whole = 8 * mesh.size()
    return clock.waits, shapes == [(8, whole), (8, whole), (whole, 8)]


def wait_for_a_late_peer(mesh) -> list[float]:
    """Seconds timed in a gather and in a scatter for which the last rank comes late."""
    waited = []

    class Stopwatch:
        @contextmanager
        def wait(self, category: str, *, collective: bool = False):
            start = time.perf_counter()
            yield
            waited.append(time.perf_counter() - start)

    exchange = Exchange(mesh, Stopwatch())
    for collective in (exchange.all_gather, exchange.reduce_scatter):
        dist.barrier()
        if mesh.get_local_rank() == mesh.size() - 1:
            time.sleep(LATE)
        collective(torch.ones(mesh.size(), 2))
    return waited


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(32, 64, bias=False)
        self.out = nn.Linear(32, 32, bias=False)
        self.seen: list[bool] = []

    def forward(self, x, freqs_cis, metadata, positions):
        q, k, v = self.qkv(x).view(*x.shape[:2], 8, 8).split((4, 2, 2), dim=2)
        return x + self.out(attention(q, k, v, metadata, SCALE).flatten(2))


def train_under_fsdp(mesh, compiled: bool) -> dict:
    """Gradients of a block under FSDP over CP in bfloat16, against the whole micro-batch in float32 on one rank."""
    graphs, seen, errors = [], [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    cp_rank, cp = mesh.get_local_rank(), mesh.size()
    reference = Block()
    block = torch.compile(Block(), backend=backend, fullgraph=True) if compiled else Block()
    fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    block.set_gradient_divide_factor(1.0)
    block.set_force_sum_reduction_for_comms(True)
    if compiled:
        mark_dynamic_hook(block)

    def look(module, args):
        seen.append(isinstance(args[2], AttentionMetadata) and args[2].cu_seqlens_q.dtype == torch.int32)

    block.register_forward_pre_hook(look)
    for lengths in ((9, 4, 18), (50, 1, 3), (22,)):
        plan, whole = shard("per_document", lengths, cp), shard("per_document", lengths, 1)
        x = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(len(lengths)))
        metadata = build_metadata(plan, cp_rank, plan.padded_tokens(2)).bind(mesh, "cpu")
        local = torch.zeros(1, metadata.padded_tokens, 32)
        offsets = plan.segment_offsets
        rows = [offsets[c.segment] + row for c in plan.ranks[cp_rank] for row in range(c.start, c.stop)]
        local[0, : len(rows)] = x[rows]
        block.zero_grad()
        block(local, None, metadata.argument, None)[0, : len(rows)].square().sum().backward()
        reference.zero_grad()
        alone = build_metadata(whole, 0, sum(lengths)).bind(None, "cpu")
        reference(x[None], None, alone.argument, None).square().sum().backward()
        for found, expected in zip(block.parameters(), reference.parameters(), strict=True):
            difference = found.grad.full_tensor() - expected.grad
            errors.append((difference.norm() / expected.grad.norm()).item())
    return {"seen": all(seen) and len(seen) == 3, "error": max(errors), "graphs": len(graphs)}

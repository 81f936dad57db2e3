"""Context-parallel attention between real processes over gloo: CP 2, 3 and 4, process groups started once."""

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from titan_wlb.context_parallel import attend
from titan_wlb.context_parallel.dynamic import mark_dynamic_hook
from titan_wlb.context_parallel.exchange import Exchange
from titan_wlb.context_parallel.metadata import AttentionMetadata, build_metadata
from titan_wlb.context_parallel.op import attention
from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding import shard
from titan_wlb.planning.sharding.needed import rows_sent

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "context_parallel"))
from cp_cases import HEAD_DIM, HEADS, LENGTHS, SCALE, assemble, begin_rank, plan_of, random_case, run_rank

WORLD = 4
LATE = 0.4  # seconds
CASES = [
    (cp, strategy, name, heads, padding)
    for cp in (2, 3, 4)
    for strategy in ("per_sequence", "per_document", "hybrid")
    for name in LENGTHS
    for heads, padding in (("multi-head", 0), ("grouped", 3))
]
DTYPES = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
# B whole, A cut in three; nobody needs anything; one rank holds nothing; A's ends travel, and B stays where it is
PLANS = {
    "two ends": ShardPlan("hybrid", (8, 2), ((Chunk(1, 0, 2), Chunk(0, 0, 2), Chunk(0, 6, 8)), (Chunk(0, 2, 6),))),
    "nothing travels": ShardPlan("hybrid", (4, 3), ((Chunk(0, 0, 4),), (Chunk(1, 0, 3),))),
    "one rank empty": ShardPlan(
        "hybrid", (5, 4, 1), ((Chunk(0, 2, 5),), (), (Chunk(2, 0, 1), Chunk(1, 0, 4), Chunk(0, 0, 2)))
    ),
    "one rank does not take part": ShardPlan(
        "hybrid", (5, 4), ((Chunk(0, 2, 5),), (Chunk(1, 0, 4),), (Chunk(0, 0, 2),))
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What rank 0 found, per check; all checks run in one set of processes."""
    folder = tmp_path_factory.mktemp("cp")
    mp.spawn(worker, (str(folder),), WORLD)
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_equals_dense_attention_forward_and_backward(results, case):
    assert results["errors"][case] < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", ["per_document", "hybrid"])
@pytest.mark.parametrize("cp", [2, 3, 4])
def test_other_dtypes_are_within_their_rounding(results, cp, strategy, dtype):
    assert results["errors"][dtype, strategy, cp] < DTYPES[dtype]


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_made_by_hand_equals_dense_attention(results, name):
    assert results["errors"][name] < 1e-12


@pytest.mark.parametrize("cp", [2, 3, 4])
def test_strategies_change_from_micro_batch_to_micro_batch_while_several_are_under_way(results, cp):
    assert results["switching"][cp] < 1e-12


@pytest.mark.parametrize("cp", [2, 3, 4])
def test_rows_may_travel_in_slices_of_heads(results, cp):
    assert results["sliced"][cp] < 1e-12


@pytest.mark.parametrize("name", PLANS)
def test_the_rows_that_travel_are_those_of_the_plan(results, name):
    plan = PLANS[name]
    sent = rows_sent(plan)
    row_bytes = 2 * 2 * HEAD_DIM * 8  # keys and values, two heads, float64
    for rank, (sizes, _) in enumerate(results["watched"][name]):
        there, back = int(sent[rank].sum()), int(sent[:, rank].sum())
        expected = [(there, back), (there, back), (back, there)]
        assert sizes == ([(a * row_bytes, b * row_bytes) for a, b in expected] if sent.any() else [])


@pytest.mark.parametrize("name", PLANS)
def test_every_rank_waits_equally_often_or_none_at_all(results, name):
    expected = [("cp", True)] * 3 if rows_sent(PLANS[name]).any() else []
    assert [waits for _, waits in results["watched"][name]] == [expected] * len(PLANS[name].ranks)


def test_rows_travel_while_their_receiver_computes(results):
    for issued, waited in results["overlapped"]:
        assert issued < LATE / 2, "the start of an exchange must not wait for the peer"
        assert waited < LATE / 2, "what was computed meanwhile must hide the transfer"


@pytest.mark.parametrize("cp", [2, 4])
def test_the_clock_times_two_gathers_and_a_scatter_as_collectives(results, cp):
    assert results["waits"][cp] == [("cp", True)] * 3


@pytest.mark.parametrize("cp", [2, 4])
def test_every_collective_is_the_size_that_the_plan_says(results, cp):
    assert results["exchanged"][cp]


def test_a_late_peer_is_waited_for_inside_the_timed_wait(results):
    assert len(results["waited"]) == 3 and all(seconds > LATE / 2 for seconds in results["waited"])


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
    results = {"errors": {}, "waits": {}, "exchanged": {}, "fsdp": {}, "switching": {}, "sliced": {}, "watched": {}}
    meshes = {cp: init_device_mesh("cpu", (WORLD // cp, cp), mesh_dim_names=("dp", "cp"))["cp"] for cp in (2, 4)}
    three = DeviceMesh("cpu", [0, 1, 2], mesh_dim_names=("cp",))
    if rank < 3:  # this mesh first: what rank 3 does not see must not wait for it
        meshes = {3: three, **meshes}
    for cp, mesh in meshes.items():
        for case in CASES:
            size, strategy, name, heads, padding = case
            if size == cp:
                plan = plan_of(strategy, LENGTHS[name], cp)
                results["errors"][case] = parity(mesh, plan, HEADS[heads], padding, torch.float64)
        for strategy in ("per_document", "hybrid"):
            for dtype in DTYPES:
                plan = plan_of(strategy, LENGTHS["mixed"], cp)
                results["errors"][dtype, strategy, cp] = parity(mesh, plan, HEADS["grouped"], 0, dtype)
        results["switching"][cp] = switch_strategies(mesh)
        with patch.object(attend, "_LEAST_BYTES", 1):
            results["sliced"][cp] = max(
                parity(mesh, plan_of("hybrid", lengths, cp), HEADS["grouped"], 0, torch.float64)
                for lengths in LENGTHS.values()
            )
        for name, plan in PLANS.items():
            if len(plan.ranks) == cp:
                results["errors"][name] = parity(mesh, plan, HEADS["grouped"], 1, torch.float64)
                results["watched"][name] = watch_needed(mesh, plan)
    for cp in (2, 4):
        results["waits"][cp], results["exchanged"][cp] = watch_exchange(meshes[cp])
    rows = torch.full((2, 3), float(rank))
    gathered = Exchange(meshes[WORLD]).all_gather(rows)  # gradients are enabled here, as nothing turned them off
    results["finished"] = type(gathered) is torch.Tensor and gathered[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    results["waited"] = wait_for_a_late_peer(meshes[WORLD])
    results["overlapped"] = compute_meanwhile(meshes[WORLD])
    for compiled in (False, True):
        results["fsdp"][compiled] = train_under_fsdp(meshes[WORLD], compiled)
    if rank == 0:
        torch.save(results, os.path.join(folder, "results.pt"))
    dist.barrier()
    dist.destroy_process_group()


def parity(mesh, plan, heads, padding, dtype) -> float:
    """Largest error of any rank's out, dq, dk and dv against dense float64 attention, relative in norm."""
    case = random_case(sum(plan.lengths), heads, dtype)
    metadata = build_metadata(plan, mesh.get_local_rank(), plan.padded_tokens(2) + padding).bind(mesh, "cpu")
    return error_of(mesh, case, plan, run_rank(case, plan, metadata, mesh.get_local_rank()))


def error_of(mesh, case, plan, local) -> float:
    errors = []
    gathered = gather(mesh, local)
    for found, expected in zip(assemble(case, plan, gathered), case.results(plan.lengths), strict=True):
        scale = max(expected.norm().item(), 1.0)  # a lone token's dq and dk are zero
        errors.append((found.double() - expected).norm().item() / scale)
    return max(errors)


def gather(mesh, value) -> list:
    gathered = [None] * mesh.size()
    dist.all_gather_object(gathered, value, group=mesh.get_group())
    return gathered


def switch_strategies(mesh) -> float:
    """Largest error over micro-batches of all strategies, whose backwards run after all forwards, in turn."""
    names = ("hybrid", "per_document", "per_sequence", "hybrid")
    runs = []
    for name, lengths in zip(names, LENGTHS.values(), strict=False):
        case, plan = random_case(sum(lengths), HEADS["grouped"]), plan_of(name, lengths, mesh.size())
        metadata = build_metadata(plan, mesh.get_local_rank(), plan.padded_tokens(2)).bind(mesh, "cpu")
        runs.append((case, plan, begin_rank(case, plan, metadata, mesh.get_local_rank())))
    finished = [(case, plan, finish()) for case, plan, finish in runs]
    return max(error_of(mesh, case, plan, local) for case, plan, local in finished)


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


def watch_needed(mesh, plan) -> list[tuple[list[tuple[int, int]], list[tuple[str, bool]]]]:
    """Per rank ((bytes sent, bytes received) of each all-to-all, what the clock was told) of a forward and backward."""
    clock, sizes = Clock(), []
    metadata = build_metadata(plan, mesh.get_local_rank(), plan.padded_tokens(2)).bind(mesh, "cpu", clock)
    collective = dist.all_to_all_single

    def watched(output, rows, *args, **kwargs):
        sizes.append((rows.nbytes, output.nbytes))
        return collective(output, rows, *args, **kwargs)

    with patch.object(dist, "all_to_all_single", watched):
        run_rank(random_case(sum(plan.lengths), (4, 2)), plan, metadata, mesh.get_local_rank())
    return gather(mesh, (sizes, clock.waits))


def compute_meanwhile(mesh) -> list[tuple[float, float]]:
    """Per rank (seconds to start an exchange for which the last rank comes late, seconds to wait after a while)."""
    rank, cp = mesh.get_local_rank(), mesh.size()
    rows, arriving = torch.full((cp, 2), float(rank)), torch.empty(cp, 2)
    dist.barrier()
    if rank == cp - 1:
        time.sleep(LATE)
    begun = time.perf_counter()
    under_way = Exchange(mesh).all_to_all(rows, [1] * cp, arriving, [1] * cp)
    issued = time.perf_counter()
    time.sleep(2 * LATE)
    slept = time.perf_counter()
    under_way.wait()
    waited = time.perf_counter() - slept
    assert arriving[:, 0].tolist() == list(range(cp))
    return gather(mesh, (issued - begun, waited))


def wait_for_a_late_peer(mesh) -> list[float]:
    """Seconds timed in a gather, a scatter and an all-to-all for which the last rank comes late."""
    waited = []

    class Stopwatch:
        @contextmanager
        def wait(self, category: str, *, collective: bool = False):
            start = time.perf_counter()
            yield
            waited.append(time.perf_counter() - start)

    exchange = Exchange(mesh, Stopwatch())
    ones = [1] * mesh.size()

    def all_to_all(rows):
        exchange.all_to_all(rows, ones, torch.empty_like(rows), ones).wait()

    for collective in (exchange.all_gather, exchange.reduce_scatter, all_to_all):
        dist.barrier()
        if mesh.get_local_rank() == mesh.size() - 1:
            time.sleep(LATE)
        collective(torch.ones(mesh.size(), 2))
    return waited


def untouched(metadata) -> bool:
    call = metadata.local or metadata.cut
    return isinstance(metadata, AttentionMetadata) and (call is None or call.cu_seqlens_q.dtype == torch.int32)


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
        seen.append(untouched(args[2]))

    block.register_forward_pre_hook(look)
    for strategy, lengths in (("per_document", (9, 4, 18)), ("hybrid", (50, 1, 3)), ("per_sequence", (22,))):
        plan, whole = plan_of(strategy, lengths, cp), shard("per_document", lengths, 1)
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

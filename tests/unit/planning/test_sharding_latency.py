"""Predicted attention latency of a sharding: drawn examples, exchange, overlap, the floor of the deepest tile."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.context_parallel.attend import head_slices
from titan_wlb.planning.kernel_file import default_kernel_profile
from titan_wlb.planning.kernel_profile import COLLECTIVES, KernelProfile, Link, Rates
from titan_wlb.planning.plan import Chunk, ShardPlan
from titan_wlb.planning.sharding import per_document, per_sequence
from titan_wlb.planning.sharding.latency import LatencyModel
from titan_wlb.planning.sharding.needed import rows_sent
from titan_wlb.planning.tiles import Tile

FREE = Link(latency=0, bytes_per_second=1 << 60)
INSTANT = 1 << 60
EXACT = Tile(1, 1)


def model(
    *,
    link: Link = FREE,
    copy_bytes: int = INSTANT,
    launch: int = 0,
    per_exchange: int = 0,
    one_tile: tuple[int, int] = (0, 0),
    tile: Tile = EXACT,
    heads: int = 1,
) -> LatencyModel:
    """A kernel that takes 1 ns a cell and head forward and 2 backward; a row of K and V has 2 bytes."""
    rates = [
        Rates(
            tile=tile,
            square=(rate,),
            rectangle=((rate,),),
            one_tile=alone,
            per_launch=launch,
            per_exchange=per_exchange,
        )
        for rate, alone in zip((4 * 10**9, 5 * 10**9), one_tile, strict=True)
    ]
    profile = KernelProfile(
        origin="assumed", note="", device="", clock="", kernel="", dtype="", versions={}, heads=1, kv_heads=1,
        head_dim=1, queries=(1,), keys=(1,), forward=rates[0], backward=rates[1], exchange_origin="assumed",
        exchange=dict.fromkeys(COLLECTIVES, link), select_bytes=copy_bytes, add_bytes=copy_bytes,
    )  # fmt: skip
    return LatencyModel(profile=profile, heads=heads, kv_heads=1, head_dim=1, element_bytes=1)


def plan(lengths, *ranks, strategy="hybrid") -> ShardPlan:
    return ShardPlan(strategy, tuple(lengths), tuple(tuple(Chunk(*chunk) for chunk in rank) for rank in ranks))


HALVES = plan([4], [(0, 0, 2)], [(0, 2, 4)])
ENDS = plan([4], [(0, 0, 1), (0, 3, 4)], [(0, 1, 3)])


def test_the_drawn_cuts_take_21_and_15_nanoseconds() -> None:
    assert model().of(HALVES).forward == (3, 7) and model().of(HALVES).backward == (6, 14)
    assert (model().latency(HALVES), model().latency(ENDS)) == (21, 15)


def test_a_gathering_plan_waits_for_every_row_and_a_hybrid_hides_what_it_needs() -> None:
    link = Link(latency=4, bytes_per_second=10**9)  # a row of K and V takes 2 ns
    gathered = model(link=link).of(plan([4], [(0, 0, 2)], [(0, 2, 4)], strategy="per_document"))
    assert gathered.forward == (8 + 3, 8 + 7)
    assert gathered.backward == (8 + 6 + 8, 8 + 14 + 8)
    assert gathered.exposed == (24, 24)

    needed = model(link=link).of(HALVES)  # rank 1 needs two rows of rank 0, which computes meanwhile
    assert needed.forward == (8, 8 + 7)
    assert needed.backward == (8 + 8, 8 + 14 + 8)
    assert needed.exposed == (8 - 3 + 8 - 3 + 8 - 3, 8 + 8 + 8)

    with_own = plan([4, 5, 5], [(0, 0, 2)], [(1, 0, 5), (2, 0, 5), (0, 2, 4)])
    hidden = model(link=link).of(with_own)
    assert hidden.forward[1] == 30 + 7 and hidden.backward[1] == 30 + 14 + 30 and hidden.exposed[1] == 0

    whole = model(link=link).of(plan([4, 5], [(0, 0, 2)], [(1, 0, 5), (0, 2, 4)]))
    assert whole.backward[1] == 30 + 14 + 8 and whole.exposed[1] == 8  # one local document is not run in halves


def test_a_plan_that_moves_nothing_calls_no_collective() -> None:
    slow = Link(latency=1000, bytes_per_second=1)
    assert model(link=slow).latency(plan([4, 4], [(0, 0, 4)], [(1, 0, 4)])) == 10 + 20
    for shard in (per_document, per_sequence):
        assert model(link=slow, copy_bytes=1).latency(shard([4, 4], 1)) == 20 + 40


def test_a_receiver_waits_for_a_sender_that_serves_many() -> None:
    link = Link(latency=0, bytes_per_second=10**9)
    cut = plan([9], [(0, 0, 6)], [(0, 6, 7)], [(0, 7, 8)], [(0, 8, 9)])
    assert rows_sent(cut)[0].sum() == 18
    # Rank 0 sends 18 rows of 2 bytes, in both directions; of the gradients rank 3 sends 8, one of them to rank 1.
    assert model(link=link).of(cut).exposed[1] == 2 * 36 + 16


def test_copies_of_keys_are_counted() -> None:
    """At 1 byte a ns, rows of 2 bytes, queries of 1: what is put together, packed, zeroed, added back and joined."""
    copies = model(copy_bytes=10**9)
    gathered = copies.of(plan([4], [(0, 0, 2)], [(0, 2, 4)], strategy="per_sequence"))
    assert gathered.forward == (3 + 2 * (2 + 2), 7 + 2 * (2 + 4))
    assert gathered.backward == (6 + 2 * (2 + 2 + 4 + 2 + 2), 14 + 2 * (2 + 4 + 4 + 2 + 4))
    needed = copies.of(HALVES)  # rank 0 sends two rows; rank 1 packs four
    assert needed.forward == (3 + 2 * (2 + 2), 7 + 2 * (2 + 4))
    assert needed.backward == (6 + 2 * (2 + 2 + 4 + 2 + 2), 14 + 2 * (2 + 4 + 4 + 2 + 4 + 2))
    joined = copies.of(plan([4, 2], [(0, 0, 2)], [(1, 0, 2), (0, 2, 4)]))  # four rows of two calls become one
    assert joined.forward[1] == 3 + 7 + 2 * 4 + 2 * 4 + 4
    assert copies.of(plan([4, 4], [(0, 0, 4)], [(1, 0, 4)])).forward == (10, 10)


def test_each_launch_costs_and_is_no_shorter_than_its_deepest_tile() -> None:
    assert model(launch=100).of(ENDS).forward == (1 + 4 + 200, 5 + 100)
    alone = model(one_tile=(4 * 10**8, 5 * 10**8))  # a tile alone takes ten times as long
    assert alone.of(ENDS).forward == (10 + 40, 30)
    assert alone.of(ENDS).backward == (20 + 20, 40)  # along its queries


def test_what_surrounds_an_exchange_is_hidden_by_nothing() -> None:
    costly = model(per_exchange=50)
    assert costly.of(HALVES).forward == (3 + 50, 7 + 50) and costly.of(HALVES).backward == (6 + 50, 14 + 50)
    assert costly.latency(plan([4], [(0, 0, 2)], [(0, 2, 4)], strategy="per_document")) == 21 + 100
    assert costly.latency(plan([4, 4], [(0, 0, 4)], [(1, 0, 4)])) == 10 + 20


def test_a_large_exchange_travels_in_two_slices_and_the_first_is_used_while_the_second_comes() -> None:
    rows = 2**20  # of 4 bytes
    cut = plan([2 * rows], [(0, 0, rows)], [(0, rows, 2 * rows)])
    cells = rows * rows + rows * (rows + 1) // 2
    made = replace(model(link=Link(latency=0, bytes_per_second=10**9), heads=2), kv_heads=2)
    made = replace(made, profile=replace(made.profile, kernel="cpu"))
    assert made.slices(rows) == 2 and made.slices(rows // 2) == 1 and replace(made, kv_heads=1).slices(rows) == 1
    assert made.of(cut).forward[1] == pytest.approx(2 * rows + 2 * cells, rel=1e-9)
    assert made.of(cut).backward[1] == pytest.approx(2 * rows + 4 * cells + 2 * rows, rel=1e-9)


@pytest.mark.parametrize("kernel", ["cpu", "flash_attn"])
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 8])
@pytest.mark.parametrize("heads", [8, 16, 24, 32])
@pytest.mark.parametrize("most", [1, 1000, 4096, 8191, 20_000])
def test_slices_are_those_of_the_attention_op(kernel, kv_heads, heads, most) -> None:
    made = model()
    made = replace(made, profile=replace(made.profile, kernel=kernel), heads=heads, kv_heads=kv_heads, head_dim=64)
    metadata = SimpleNamespace(is_local=False, needed=SimpleNamespace(most=most), backend=kernel)
    q, k = (torch.empty(1, number, 64, dtype=torch.int8) for number in (heads, kv_heads))
    assert made.slices(most) == len(head_slices(q, k, metadata))


def test_with_few_heads_the_deepest_tile_sets_the_time_of_a_gpu() -> None:
    profile = default_kernel_profile("NVIDIA H100")
    few = LatencyModel.of_model(profile, n_heads=32, n_kv_heads=8, head_dim=128, tp=8)
    assert (few.heads, few.kv_heads, few.row_bytes) == (4, 1, 2 * 128 * 2)
    start, stop = np.array([131_072 - 2048]), np.array([131_072])
    busy = few.kernel_ns("forward", start, stop)[0]
    alone = profile.deepest_tile_ns("forward", start, stop, head_dim=128)[0]
    assert 1.5 * busy < alone  # 4 heads x 16 tiles for 132 multiprocessors
    cut = plan([131_072], *([(0, a, b)] for a, b in pairwise(range(0, 131_073, 8192))))
    assert few.of(cut).forward[-1] >= alone


def test_heads_are_divided_by_tp_and_a_rank_has_at_least_one_of_keys() -> None:
    made = LatencyModel.of_model(model().profile, n_heads=16, n_kv_heads=2, head_dim=4, tp=4, element_bytes=4)
    assert (made.heads, made.kv_heads, made.row_bytes) == (4, 1, 32)


def test_a_rank_without_rows_takes_part_and_computes_nothing() -> None:
    assert model().of(plan([3], [(0, 0, 3)], [])).forward == (6, 0)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    st.integers(1, 8),
    st.sampled_from(["cpu", "NVIDIA H100"]),
    st.randoms(use_true_random=False),
)
def test_latency_depends_on_what_ranks_hold_and_not_on_the_order(lengths, cp, device, random) -> None:
    made = LatencyModel.of_model(default_kernel_profile(device, 64), n_heads=4, n_kv_heads=2, head_dim=64)
    for sharded in (per_document(lengths, cp), per_sequence(lengths, cp)):
        for strategy in ("hybrid", sharded.strategy):
            ranks = [random.sample(rank, len(rank)) for rank in sharded.ranks]
            random.shuffle(ranks)
            ours = made.of(ShardPlan(strategy, sharded.lengths, sharded.ranks))
            theirs = made.of(ShardPlan(strategy, sharded.lengths, tuple(map(tuple, ranks))))
            assert sorted(ours.forward) == sorted(theirs.forward) and sorted(ours.backward) == sorted(theirs.backward)
            assert ours.nanoseconds == max(ours.forward) + max(ours.backward) > 0
            assert all(isinstance(time, int) and time >= 0 for time in ours.forward + ours.backward + ours.exposed)


def test_more_heads_take_proportionally_longer() -> None:
    assert model(heads=3).latency(ENDS) == pytest.approx(3 * model().latency(ENDS))

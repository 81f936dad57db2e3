from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.plan import Chunk
from titan_wlb.planning.sharding import hybrid_repair
from titan_wlb.planning.sharding.hybrid_cut import Cut, Rank, best_cut
from titan_wlb.planning.sharding.hybrid_fill import Filler
from titan_wlb.planning.sharding.hybrid_pool import Piece, Pool, TileCosts
from titan_wlb.planning.sharding.hybrid_repair import even_out, joined
from titan_wlb.planning.tiles import Tile, padded_work

TILE = Tile()


@pytest.mark.parametrize(("cut", "tiles"), [(200, 6), (100, 6), (30, 9)])
def test_the_drawn_cuts_of_a_document_of_300_rows(cut, tiles):
    costs = TileCosts(TILE, 300)
    assert costs.of(0, 300) == 1 + 2 + 3
    assert costs.of(0, cut) + costs.of(cut, 300) == tiles


@given(
    start=st.integers(0, 900), rows=st.integers(0, 900), tile=st.builds(Tile, st.integers(1, 40), st.integers(1, 40))
)
def test_costs_of_single_ranges_are_padded_work(start, rows, tile):
    assert TileCosts(tile, 1800).of(start, start + rows) * tile.cells == padded_work(start, start + rows, tile)


@given(length=st.integers(1, 3000), cuts=st.lists(st.integers(1, 2999), max_size=3))
def test_a_cut_is_free_if_and_only_if_missing_rows_never_grow_fewer(length, cuts):
    bounds = sorted({0, length, *(cut for cut in cuts if cut < length)})
    missing = [-bound % 128 for bound in bounds]
    free = missing == sorted(missing)
    costs = TileCosts(TILE, length)
    extra = sum(costs.of(*pair) for pair in pairwise(bounds)) - costs.of(0, length)
    assert (extra == 0) == free and extra >= 0


@given(length=st.integers(1, 5000))
def test_the_prefix_costs_are_those_of_whole_documents(length):
    costs = TileCosts(TILE, length)
    assert costs.upto[-1] == costs.of(0, length) == costs.of_whole(np.array([length]))


def piece(costs, segment, first, last):
    return Piece(costs.back(last, last - first), segment, first * costs.rows, last * costs.rows)


def test_the_drawn_cuts_of_a_residual():
    costs = TileCosts(Tile(1, 1), 7)
    pool = Pool([(0, 7), (1, 3)], costs)
    assert best_cut(pool, Rank(rows=3, work=13, excess=0, lack=0)) == Cut(
        piece(costs, 0, 0, 7), piece(costs, 0, 0, 7), 0, 3, 0
    )
    rank = Rank(rows=3, work=13, excess=0, lack=0)
    assert Filler(pool)._apply(rank, best_cut(pool, rank)) is None
    assert rank.chunks == [Chunk(0, 0, 1), Chunk(0, 5, 7)] and rank.rows == 0 and rank.work == 13 - 14
    pool = Pool([(1, 3), (0, 6)], costs)
    pool.keep(pool.pieces[1], 2, 6)
    rank = Rank(rows=3, work=12, excess=0, lack=0)
    Filler(pool)._apply(rank, Cut(piece(costs, 1, 0, 3), piece(costs, 0, 2, 6), 0, 2, 0))
    assert rank.chunks == [Chunk(1, 0, 1), Chunk(0, 4, 6)] and rank.work == 0


def test_dust_is_the_first_tile_of_a_document_from_its_end_on():
    pool = Pool([(0, 1000), (1, 200)], TileCosts(TILE, 1000))
    assert pool.dust(28) == [Chunk(0, 100, 128)]
    assert pool.dust(60) == [Chunk(0, 40, 100)]
    assert pool.dust(50) == [Chunk(0, 0, 40), Chunk(1, 118, 128)]
    assert sorted(pool.rest()) == [Chunk(0, 128, 1000), Chunk(1, 0, 118), Chunk(1, 128, 200)]


def test_the_drawn_trade():
    costs = TileCosts(TILE, 1024)
    traded = even_out([[Chunk(0, 0, 1024)], [Chunk(1, 0, 512)]], [0, 0], costs, aim=29, goal=29, max_trades=1)
    assert traded == [[Chunk(0, 0, 896), Chunk(1, 0, 128)], [Chunk(0, 896, 1024), Chunk(1, 128, 512)]]


@given(data=st.data(), cp=st.integers(2, 6))
@settings(max_examples=60)
def test_trades_keep_rows_and_never_raise_the_slowest_rank(data, cp):
    lengths = data.draw(st.lists(st.integers(1, 4000), min_size=cp, max_size=12))
    costs = TileCosts(TILE, max(lengths))
    ranks = [[Chunk(place, 0, lengths[place]) for place in range(rank, len(lengths), cp)] for rank in range(cp)]

    def works(of_ranks):
        return [sum(costs.of(start, stop) for _, start, stop in chunks) for chunks in of_ranks]

    mean = sum(works(ranks)) / cp
    traded = even_out(ranks, [0] * cp, costs, aim=mean, goal=mean, max_trades=20)
    assert [sum(chunk.length for chunk in chunks) for chunks in traded] == [
        sum(chunk.length for chunk in chunks) for chunks in ranks
    ]
    assert max(works(traded)) <= max(works(ranks)) and sum(works(traded)) == sum(works(ranks))


def test_neighbours_are_joined_and_empty_chunks_dropped():
    assert joined([Chunk(1, 4, 4), Chunk(0, 5, 9), Chunk(0, 0, 5), Chunk(1, 0, 2), Chunk(1, 3, 4)]) == [
        Chunk(0, 0, 9),
        Chunk(1, 0, 2),
        Chunk(1, 3, 4),
    ]


@pytest.mark.parametrize("cp", [2, 32])
def test_the_work_of_ten_thousand_documents_is_capped_by_counts(monkeypatch, cp):
    module = import_module("titan_wlb.planning.sharding.hybrid")  # the package gives its name to the function
    pooled, trades = [], []
    make, trade = module.Pool, hybrid_repair._trade
    monkeypatch.setattr(module, "Pool", lambda pieces, costs: pooled.append(len(pieces)) or make(pieces, costs))
    monkeypatch.setattr(hybrid_repair, "_trade", lambda *rest: trades.append(1) or trade(*rest))
    lengths = np.random.default_rng(3).lognormal(5, 1.5, 10_000).astype(int) + 1
    plan = module.hybrid(lengths.tolist(), cp)
    assert pooled == [128] and len(trades) <= 2 * cp
    assert sum(map(len, plan.ranks)) <= 10_000 + 128 + 8 * cp
    assert max(plan.tokens) - min(plan.tokens) <= 1

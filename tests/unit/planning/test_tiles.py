import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.tiles import FLASH_TILE, Tile, causal_work, padded_work

tiles = st.builds(Tile, st.integers(1, 9), st.integers(1, 9))


def counted(start, stop, tile):
    """Cells of the tiles that rows [start, stop) touch, one query tile after the other."""
    cells, row = 0, start
    while row < stop:
        end = min(stop, row + tile.rows)
        cells += -(-end // tile.keys) * tile.cells
        row = end
    return cells


def test_the_drawn_example():
    tile = Tile(2, 2)
    assert padded_work(0, 6, tile) == 6 * 4
    assert padded_work(1, 5, tile) == 5 * 4 and padded_work(0, 4, tile) == 3 * 4


def test_a_chunk_of_sixteen_rows_costs_as_much_as_one_of_a_whole_tile():
    assert padded_work(0, 16) == padded_work(0, 128) == 128 * 128
    assert padded_work(1000, 1016) == 128 * 1024


@given(start=st.integers(0, 60), rows=st.integers(0, 60), tile=tiles)
def test_work_is_that_of_the_query_tiles_one_by_one(start, rows, tile):
    assert padded_work(start, start + rows, tile) == counted(start, start + rows, tile)


@given(chunks=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=20))
def test_many_ranges_at_once_are_each_as_alone(chunks):
    starts = np.array([start for start, _ in chunks], dtype=np.int64)
    stops = starts + np.array([rows for _, rows in chunks], dtype=np.int64)
    found = padded_work(starts, stops, Tile(64, 128))
    assert found.dtype == np.int64
    assert found.tolist() == [counted(start, start + rows, Tile(64, 128)) for start, rows in chunks]


@given(length=st.integers(0, 3000))
def test_padded_work_covers_exact_work(length):
    assert causal_work(length) == sum(range(1, length + 1)) == padded_work(0, length, Tile(1, 1))
    assert padded_work(0, length) >= causal_work(length)


@given(length=st.integers(1, 2000), cuts=st.lists(st.integers(1, 1999), max_size=4))
def test_no_cut_costs_less_than_the_whole_document(length, cuts):
    bounds = np.array(sorted({0, length, *(cut for cut in cuts if cut < length)}))
    assert padded_work(bounds[:-1], bounds[1:]).sum() >= padded_work(0, length)


def test_a_tile_is_read_from_text():
    assert Tile.of_text("64x128") == Tile(64, 128) and str(Tile(64, 128)) == "64x128"
    assert Tile.of_text(str(FLASH_TILE)) == FLASH_TILE == Tile(128, 128)
    for text in ("128", "128x", "0x128", "128x-1", "128*128", "1.5x2", ""):
        with pytest.raises(ValueError, match="must be ROWSxKEYS"):
            Tile.of_text(text)
    with pytest.raises(ValueError, match="at least one row and one key"):
        Tile(0, 128)

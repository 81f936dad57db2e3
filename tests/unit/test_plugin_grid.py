"""The heatmap's pixels: ordered, grouped, pooled."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.tensorboard_plugin.grid import arranged, over_mean, over_peers, pooled


def test_pooling_is_what_the_docstring_draws():
    values = np.ones((4, 6), dtype=np.float32)
    values[3, 3] = 9
    cells, whose, edges = pooled(values, arranged([0] * 6, None, 3), 2)
    assert cells.tolist() == [[1, 1], [1, 9], [1, 1]]
    assert whose.tolist() == [[0, 0], [2, 3], [4, 4]]
    assert edges.tolist() == [0, 2, 4]


def test_rows_are_arranged_as_the_docstring_draws():
    rows = arranged([0, 1, 0, 1], [5, 6, 7, 8], 4)
    assert rows.order.tolist() == [2, 0, 3, 1]
    assert rows.groups == ((0, 0, 2), (1, 2, 4))


def test_one_straggler_in_one_step_among_4096_ranks_stays_visible():
    values = np.ones((1000, 4096), dtype=np.float32)
    values[617, 2049] = 1.5
    cells, whose, edges = pooled(values, arranged([0] * 4096, None, 300), 700)
    (row,), (column,) = np.nonzero(cells > 1)
    assert whose[row, column] == 2049
    assert edges[column] <= 617 < edges[column + 1]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_every_rank_lies_in_one_row_and_no_cell_hides_a_larger_value(data):
    ranks, steps = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    group = data.draw(st.lists(st.integers(-1, 5), min_size=ranks, max_size=ranks))
    seed = data.draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).random((steps, ranks)).astype(np.float32)
    values[values < 0.2] = np.nan
    sort_by = values[0] if data.draw(st.booleans()) else None
    most_rows, most_columns = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 15))
    rows = arranged(group, sort_by, most_rows)
    cells, whose, edges = pooled(values, rows, most_columns)

    assert sorted(rows.order.tolist()) == list(range(ranks))
    assert (np.diff(rows.edges) > 0).all() and rows.edges[0] == 0 and rows.edges[-1] == ranks
    assert len(cells) <= max(most_rows, 0) and cells.shape == whose.shape == (len(rows.edges) - 1, len(edges) - 1)
    of_rows = [np.asarray(group)[rows.order[a:b]] for a, b in pairwise(rows.edges)]
    if len(set(group)) <= most_rows:
        assert all(len(set(of_row.tolist())) == 1 for of_row in of_rows)
    for place, first, past in rows.groups:
        shown = {int(of) for of_row in of_rows[first:past] for of in of_row}
        assert place in shown
    for row, (a, b) in enumerate(pairwise(rows.edges)):
        for column, (c, d) in enumerate(pairwise(edges)):
            part = values[c:d][:, rows.order[a:b]]
            if np.isnan(part).all():
                assert np.isnan(cells[row, column]) and whose[row, column] == -1
            else:
                assert cells[row, column] == np.nanmax(part)
                assert cells[row, column] in values[c:d, whose[row, column]]


def test_ratios_are_of_the_step_and_of_the_stage():
    values = np.array([[10, 30, 100, 300]], dtype=np.float32)
    assert over_mean(values).tolist() == [pytest.approx([10 / 110, 30 / 110, 100 / 110, 300 / 110])]
    assert over_peers(values, [0, 0, 1, 1]).tolist() == [[0.5, 1.5, 0.5, 1.5]]


def test_a_step_without_any_rank_gives_no_value_and_no_warning(recwarn):
    values = np.array([[np.nan, np.nan], [1, 3]], dtype=np.float32)
    assert np.isnan(over_mean(values)[0]).all()
    assert over_peers(values, [0, 0])[1].tolist() == [0.5, 1.5]
    assert not recwarn.list

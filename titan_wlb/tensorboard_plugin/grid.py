"""Ranks x steps as the pixels of a picture: ordered, grouped, and pooled by the maximum, so that one rank in one step
stays visible whatever the size.

    6 ranks, 4 steps, pooled to 3 x 2; the cell holds the largest value and whose it was

    rank 0    1 1 1 1
    rank 1    1 1 1 1        1 1        rank 0  0
    rank 2    1 1 1 1   ->   1 9             2  3
    rank 3    1 1 1 9        1 1             4  4
    rank 4    1 1 1 1
    rank 5    1 1 1 1

Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Which ranks lie in which row.

    Args:
        order: ranks from top to bottom.
        edges: [rows + 1], row i holds order[edges[i] : edges[i + 1]].
        groups: (coordinate, first row, past the last row); neighbours may share a row where groups outnumber rows.
    """

    order: Ints
    edges: Ints
    groups: tuple[tuple[int, int, int], ...]


def arranged(group: npt.ArrayLike, sort_by: npt.ArrayLike | None, most_rows: int) -> Rows:
    """Rows of a picture.

        group 0 1 0 1, sort_by 5 6 7 8, 4 rows      rank 2, rank 0 | rank 3, rank 1

    Args:
        group: per rank, its coordinate on the axis by which ranks are grouped; rows of one group lie together.
        sort_by: per rank; the largest of a group comes first, NaN last. None: by rank.
        most_rows: of the picture; a row holds ranks of one group while there are fewer groups than rows.
    """
    groups = np.asarray(group, dtype=np.int64)
    ranks = np.arange(len(groups))
    keys = ranks if sort_by is None else np.nan_to_num(-np.asarray(sort_by, dtype=np.float64), nan=np.inf)
    order = np.lexsort((ranks, keys, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=np.min(groups, initial=0) - 1))
    ends = np.append(starts[1:], len(groups))
    if len(groups) <= most_rows:
        edges = np.arange(len(groups) + 1)
    elif len(starts) > most_rows:
        edges = np.append(starts, len(groups))[_even(len(starts), most_rows)]
    else:
        rows = 1 + (most_rows - len(starts)) * (ends - starts) // len(groups)
        pieces = [first + _even(last - first, row) for first, last, row in zip(starts, ends, rows, strict=True)]
        edges = np.append(np.concatenate([piece[:-1] for piece in pieces]), len(groups))
    names = groups[order][starts]
    first_rows = np.searchsorted(edges, starts, side="right") - 1
    past_rows = np.searchsorted(edges, ends, side="left")
    spans = zip(names.tolist(), first_rows.tolist(), past_rows.tolist(), strict=True)
    return Rows(order, edges, tuple(spans))


def pooled(values: Floats, rows: Rows, most_columns: int) -> tuple[Floats, npt.NDArray[np.int32], Ints]:
    """The picture.

    Args:
        values: [steps, ranks]; NaN where there is none.
        rows: of the picture.
        most_columns: of the picture.

    Returns:
        float32 [rows, columns], the largest value; int32 [rows, columns], whose it is, the first of equals; and the
        columns' edges [columns + 1] among the steps. NaN and -1 where no value is.
    """
    steps = len(values)
    edges = _even(steps, min(steps, most_columns))
    filled = np.where(np.isnan(values), -np.inf, values).astype(np.float32)
    columns = np.maximum.reduceat(filled, edges[:-1], axis=0) if steps else filled
    by_rank = np.ascontiguousarray(columns.T[rows.order])  # [ranks as shown, columns]
    largest = np.empty((len(rows.edges) - 1, len(columns)), dtype=np.float32)
    whose = np.empty(largest.shape, dtype=np.int32)
    for row, (first, last) in enumerate(pairwise(rows.edges)):
        ranks = rows.order[first:last]
        place = by_rank[first:last].argmax(axis=0)
        largest[row] = by_rank[first + place, np.arange(len(columns))]
        whose[row] = ranks[place]
    none = np.isneginf(largest)
    largest[none], whose[none] = np.nan, -1
    return largest, whose, edges


def over_mean(values: Floats) -> Floats:
    """Each rank's value / the mean of the step's ranks; [steps, ranks]."""
    return _ratio(values, _of_each_step(np.nanmean, values))


def over_peers(values: Floats, peers: Sequence[int]) -> Floats:
    """Each rank's value / the median of its peers in that step.

    Args:
        values: [steps, ranks].
        peers: per rank; ranks with the same number are peers.
    """
    ratio = np.full_like(values, np.nan)
    of_ranks = np.asarray(peers)
    for number in np.unique(of_ranks):
        mine = of_ranks == number
        ratio[:, mine] = _ratio(values[:, mine], _of_each_step(np.nanmedian, values[:, mine]))
    return ratio


def _of_each_step(mean: object, values: Floats) -> Floats:
    """NaN, without a warning, where a step has no value."""
    some = ~np.isnan(values).all(axis=1)
    of_steps = np.full((len(values), 1), np.nan, dtype=np.float32)
    if some.any():
        of_steps[some, 0] = mean(values[some], axis=1)  # type: ignore[operator]
    return of_steps


def _ratio(values: Floats, by: Floats) -> Floats:
    return np.divide(values, by, out=np.full_like(values, np.nan), where=by > 0)


def _even(length: int, parts: int) -> Ints:
    """Edges of so many parts, as equal as can be: [parts + 1]."""
    return np.arange(parts + 1) * length // max(parts, 1)

"""Rows of keys and values that a rank needs and does not hold.

A chunk's queries see their segment's rows below the chunk's ``stop``. Of each segment a rank therefore needs all rows
below its deepest ``stop``; those that it does not own come from the ranks that do, each row once:

    CP = 2, segments A of 8 tokens and B of 2

    A A | A A A A | A A         rank 0 holds  B[0, 2) A[0, 2) A[6, 8)        its rows 0 ... 5
    B B                         rank 1 holds  A[2, 6)                        its rows 0 ... 3

    rank 0 is at depth 8 of A and needs A[2, 6) of rank 1
    rank 1 is at depth 6 of A and needs A[0, 2) of rank 0; of B it needs nothing

    rows_sent = 0 2             rank 0 sends its rows 2 3 to rank 1
                4 0             rank 1 sends its rows 0 1 2 3 to rank 0

Every rank knows the whole plan, so that sizes need no exchange of their own. Source: ours; the paper gathers all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.plan import Chunk, ShardPlan

__all__ = ["NeededRows", "chunk_array", "local_first", "needed_rows", "ranges", "rows_sent"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NeededRows:
    """What one CP rank sends and receives. Of its rows, row 0 is the first one of its first chunk.

    Args:
        send: int64 [rows sent], places among this rank's rows: those for CP rank 0, those for CP rank 1, ...; rising
            for each of them.
        send_counts: rows for each CP rank, 0 for this one.
        receive: int64 [rows received], rows of the packed micro-batch (``ShardPlan.segment_offsets``), in the order in
            which they arrive: CP rank 0's first, and each rank's as it holds them.
        receive_counts: rows from each CP rank, 0 for this one.
    """

    send: Ints
    send_counts: tuple[int, ...]
    receive: Ints
    receive_counts: tuple[int, ...]


def rows_sent(plan: ShardPlan) -> Ints:
    """How many rows of keys and values each rank sends to each other one.

    Returns:
        int64 [cp, cp], rows that rank i sends to rank j in line i and column j; 0 on the diagonal. The same number of
        rows of gradients goes back in backward.
    """
    shared = _shared_chunks(plan)
    before = np.cumsum(_rows_for_each(shared, shared.depths), axis=1)
    before = np.concatenate([np.zeros((len(before), 1), np.int64), before], axis=1)
    bounds = np.searchsorted(shared.rank, np.arange(len(plan.ranks) + 1))
    sent: Ints = np.diff(before[:, bounds], axis=1).T.copy()
    np.fill_diagonal(sent, 0)
    return sent


def needed_rows(plan: ShardPlan, cp_rank: int) -> NeededRows:
    """Which rows a rank sends to whom, and which ones reach it from whom."""
    cp = len(plan.ranks)
    shared = _shared_chunks(plan)
    own = shared.rank == cp_rank

    counts = _rows_for_each(shared, shared.depths)[:, own]
    counts[cp_rank] = 0
    send = ranges(np.tile(shared.place[own], cp), counts.ravel())

    arriving = np.where(own, 0, _rows_for_each(shared, shared.depths[[cp_rank]])[0])
    offsets = np.array(plan.segment_offsets, np.int64)
    receive = ranges(offsets[shared.segment] + shared.start, arriving)
    receive_counts = np.bincount(shared.rank, arriving, minlength=cp).astype(np.int64)
    return NeededRows(send, tuple(counts.sum(axis=1).tolist()), receive, tuple(receive_counts.tolist()))


def local_first(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """A rank's chunks, those at their segment's beginning first, which need no rows of other ranks.

    Attention works on them while the others' keys travel. The order is kept otherwise.
    """
    return (*(chunk for chunk in chunks if chunk.start == 0), *(chunk for chunk in chunks if chunk.start > 0))


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """int64 [sum of lengths]: start, start + 1, ... of each range, one range behind the other."""
    before = np.cumsum(lengths) - lengths
    rows: Ints = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return rows


def chunk_array(chunks: Sequence[Chunk]) -> Ints:
    """int64 [chunks, 3]: segment, start and stop of each chunk."""
    return np.fromiter(chain.from_iterable(chunks), np.int64, 3 * len(chunks)).reshape(-1, 3)


class _SharedChunks(NamedTuple):
    """The chunks of segments that no single chunk covers, rank behind rank; all int64 [chunks] but for the depths.

    Args:
        rank, segment, start, length: of each chunk.
        place: row of its rank at which it starts.
        column: of its segment in ``depths``.
        depths: int64 [cp, shared segments], rows of the segment that a rank needs, 0 where it holds none of it.
    """

    rank: Ints
    segment: Ints
    start: Ints
    length: Ints
    place: Ints
    column: Ints
    depths: Ints


def _shared_chunks(plan: ShardPlan) -> _SharedChunks:
    cp = len(plan.ranks)
    chunks = chunk_array(list(chain.from_iterable(plan.ranks)))
    counts = np.array([len(rank) for rank in plan.ranks], np.int64)
    rank = np.repeat(np.arange(cp), counts)
    segment, start, stop = chunks.T
    length = stop - start
    before = np.concatenate(([0], np.cumsum(length)))
    place = before[:-1] - np.repeat(before[np.cumsum(counts) - counts], counts)

    cut = length < np.array(plan.lengths, np.int64)[segment]
    rank, segment, start, stop, length, place = (x[cut] for x in (rank, segment, start, stop, length, place))
    segments, column = np.unique(segment, return_inverse=True)
    depths = np.zeros((cp, len(segments)), np.int64)
    np.maximum.at(depths.ravel(), rank * len(segments) + column, stop)
    return _SharedChunks(rank, segment, start, length, place, column, depths)


def _rows_for_each(shared: _SharedChunks, depths: Ints) -> Ints:
    """int64 [ranks, chunks]: rows of each chunk that a rank of these depths needs, its own chunks not excepted."""
    rows: Ints = np.clip(depths[:, shared.column] - shared.start, 0, shared.length)
    return rows

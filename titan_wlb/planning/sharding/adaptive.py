"""The sharding of a micro-batch that is predicted to be fastest: the paper's two and a family of hybrids.

    CP = 2, a kernel that works in tiles of 128 x 128

    documents                               exchange     chosen
    2,048 and 2,048                         any          hybrid keeps both whole: no tile is wasted, no row is sent
    4,096 and thirty-two of 64              free         hybrid cuts the long one, equal work; short ones stay whole
    16,384 and four of 4,096                free         hybrid of tolerance 0 cuts the long one
                                            very slow    hybrid of tolerance 0.8 cuts nothing: one rank has more work

Where the exchange hides behind compute, balance is what counts: ``hybrid`` at tolerance 0. Where it does not, a plan
that moves less may be faster although its slowest rank computes more: the hybrids of larger tolerance.

The paper's two are only made where they do not lose already: by what they gather, beside nine tenths of the work of
the uncut documents (a cut one may run at better rates) or, for per_document, the mean work of its chunks, which can be
counted without making them. With thousands of documents fewer hybrids are tried. All of it depends on lengths and
profile alone, so that all ranks choose alike. Source: the paper selects between its two (section 5); the rest is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from titan_wlb.planning.kernel_profile import DIRECTIONS
from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.hybrid import hybrid
from titan_wlb.planning.sharding.latency import LatencyModel
from titan_wlb.planning.sharding.per_document import per_document
from titan_wlb.planning.sharding.per_sequence import per_sequence

__all__ = ["MOST_DOCUMENTS", "TOLERANCES", "adaptive", "family"]

TOLERANCES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
# That the hybrids tried plan for, all together: with ten thousand documents one of them is tried.
MOST_DOCUMENTS = 16_384


def adaptive(lengths: Sequence[int], cp: int, model: LatencyModel) -> ShardPlan:
    """The plan of the family with the least predicted latency; among equals the first.

    Args:
        lengths: tokens of the micro-batch's segments, each at least 1.
        cp: CP ranks.
        model: of the device and the model's heads.

    Returns:
        A plan whose ``strategy`` is the one chosen: "hybrid", "per_sequence" or "per_document".
    """
    if cp == 1 or not lengths:
        return per_document(lengths, cp)  # every document whole
    best, least = None, 0
    for _, make, at_least in _candidates(lengths, cp, model):
        if best is not None and least <= at_least():
            continue
        plan = make()
        latency = model.latency(plan)
        if best is None or latency < least:
            best, least = plan, latency
    assert best is not None
    return best


def family(lengths: Sequence[int], cp: int, model: LatencyModel) -> Iterator[tuple[str, ShardPlan]]:
    """All plans that ``adaptive`` chooses from, by name ("hybrid,tolerance=0.05", ..., "per_document")."""
    for name, make, _ in _candidates(lengths, cp, model):
        yield name, make()


def _candidates(
    lengths: Sequence[int], cp: int, model: LatencyModel
) -> Iterator[tuple[str, Callable[[], ShardPlan], Callable[[], int]]]:
    """(name, makes the plan, its latency at least in ns) of each of the family, in the order of trying."""
    tile = model.profile.forward.tile
    for tolerance in TOLERANCES[: max(MOST_DOCUMENTS // len(lengths), 1)]:
        yield f"hybrid,tolerance={tolerance:g}", partial(hybrid, lengths, cp, tile, tolerance), lambda: 0
    gathering = model.gathering_ns(sum(lengths), cp)
    yield (
        "per_sequence",
        partial(per_sequence, lengths, cp),
        lambda: gathering + _uncut_ns(lengths, model) * 9 // 10 // cp,
    )
    yield "per_document", partial(per_document, lengths, cp), lambda: gathering + _per_document_ns(lengths, cp, model)


def _uncut_ns(lengths: Sequence[int], model: LatencyModel) -> int:
    """Kernel time of the whole documents, forward and backward."""
    stop = np.array(lengths, np.int64)
    return sum(int(model.kernel_ns(direction, np.zeros_like(stop), stop).sum()) for direction in DIRECTIONS)


def _per_document_ns(lengths: Sequence[int], cp: int, model: LatencyModel) -> int:
    """Kernel time of a rank of per_document on the mean, to within its rounding of chunks to whole tokens.

    Of equal lengths one is computed: of S tokens fewer than sqrt(2 S) lengths can differ.
    """
    distinct, number = np.unique(np.array(lengths, np.int64), return_counts=True)
    cuts = np.delete(np.arange(2 * cp + 1), cp)  # the last rank's two chunks are neighbours: one
    bounds = distinct[:, None] * cuts // (2 * cp)
    start, stop = bounds[:, :-1].ravel(), bounds[:, 1:].ravel()
    real = start < stop
    times = number.repeat(2 * cp - 1)[real]
    total = sum(int((model.kernel_ns(name, start[real], stop[real]) * times).sum()) for name in DIRECTIONS)
    return total // cp

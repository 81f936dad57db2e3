"""Which CP rank holds which rows of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.adaptive import adaptive
from titan_wlb.planning.sharding.hybrid import hybrid
from titan_wlb.planning.sharding.latency import LatencyModel
from titan_wlb.planning.sharding.per_document import per_document
from titan_wlb.planning.sharding.per_sequence import per_sequence

__all__ = [
    "CHOSEN",
    "PREDICTING",
    "STRATEGIES",
    "LatencyModel",
    "adaptive",
    "hybrid",
    "per_document",
    "per_sequence",
    "shard",
]

CHOSEN = ("per_sequence", "per_document", "hybrid")  # what a plan's strategy may be
STRATEGIES = (*CHOSEN, "adaptive")
PREDICTING = ("hybrid", "adaptive")  # those that look at the attention kernel


def shard(strategy: str, lengths: Sequence[int], cp: int, model: LatencyModel | None = None) -> ShardPlan:
    """The shards of a micro-batch.

    Args:
        strategy: one of ``STRATEGIES``.
        lengths: tokens of its segments, in the order in which they stand in it; each at least 1.
        cp: CP ranks.
        model: of the attention kernel, for those of ``PREDICTING``: "hybrid" takes its tiles, "adaptive" its latency.
    """
    assert strategy in STRATEGIES, strategy
    if strategy == "per_sequence":
        return per_sequence(lengths, cp)
    if strategy == "per_document" or cp == 1:  # on one rank every document is whole
        return per_document(lengths, cp)
    assert model is not None, f"{strategy} needs a model of the attention kernel"
    return adaptive(lengths, cp, model) if strategy == "adaptive" else hybrid(lengths, cp, model.profile.forward.tile)

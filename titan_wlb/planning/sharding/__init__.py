"""Which CP rank holds which rows of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.per_document import per_document
from titan_wlb.planning.sharding.per_sequence import per_sequence

__all__ = ["STRATEGIES", "per_document", "per_sequence", "shard"]

STRATEGIES = ("per_sequence", "per_document")


def shard(strategy: str, lengths: Sequence[int], cp: int) -> ShardPlan:
    """The shards of a micro-batch.

    Args:
        strategy: one of ``STRATEGIES``.
        lengths: tokens of its segments, in the order in which they stand in it; each at least 1.
        cp: CP ranks.
    """
    assert strategy in STRATEGIES, strategy
    return (per_sequence if strategy == "per_sequence" else per_document)(lengths, cp)

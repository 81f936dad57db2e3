"""A step's plan and the index -> the rows that this rank trains.

A document of five tokens a b c d e, cut after three (``original`` cuts), CP 2, per_document: the first piece is the
segment [0, 3), chunks [0, 1) [1, 2) [2, 3) and an empty one; CP rank 0 holds the first, CP rank 1 the others:

              tokens   labels   positions
    CP rank 0 a        b        0
              0       -100      0            padding
    CP rank 1 b c      c d      1 2          the label of the piece's last token is the document's next token

Nothing is exchanged between ranks: each reads its own tokens, and the next one of each chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from titan_wlb.data.index import Index
from titan_wlb.planning.plan import MicroBatch, ShardPlan, StepPlan

NO_LABEL = -100  # cross entropy ignores it

# (shard plan, cp_rank, padded tokens of a rank) -> what the attention needs to know
MakeMetadata = Callable[[ShardPlan, int, int], Any]


@dataclass(frozen=True, slots=True)
class LocalMicroBatch:
    """One rank's rows of a micro-batch.

    Args:
        place: in ``StepPlan.micro_batches``.
        tokens: int64 ``[1, padded_tokens]`` on the CPU; padding, at the end, is token 0.
        labels: int64, same shape; the document's next token, -100 where it has none and on padding.
        positions: int64, same shape; from 0 in each segment, 0 on padding.
        shard: of the whole micro-batch.
        num_labels: labels of this rank that are not -100.
        padded_tokens: rows of every CP rank, a multiple of TP.
        metadata: what ``make_metadata`` made of it, None without.
    """

    place: int
    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    shard: ShardPlan
    num_labels: int
    padded_tokens: int
    metadata: Any = None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step: the plan of the whole job, and this rank's micro-batches in the order in which it runs them."""

    plan: StepPlan
    micro_batches: tuple[LocalMicroBatch, ...]


def read_step(
    plan: StepPlan, index: Index, *, dp_rank: int, cp_rank: int, tp: int, make_metadata: MakeMetadata | None = None
) -> StepBatch:
    """This rank's part of a step.

    Args:
        tp: rows are padded to a multiple of it.
    """
    places = plan.of_dp_rank(dp_rank)
    return StepBatch(
        plan,
        tuple(
            read_micro_batch(
                place, plan.micro_batches[place], plan.shards[place], index, cp_rank, tp, make_metadata=make_metadata
            )
            for place in places
        ),
    )


def read_micro_batch(
    place: int,
    micro_batch: MicroBatch,
    shard: ShardPlan,
    index: Index,
    cp_rank: int,
    tp: int,
    *,
    make_metadata: MakeMetadata | None = None,
) -> LocalMicroBatch:
    """One CP rank's rows of a micro-batch, chunk behind chunk."""
    padded_tokens = shard.padded_tokens(tp)
    tokens = np.zeros((1, padded_tokens), dtype=np.int64)
    labels = np.full((1, padded_tokens), NO_LABEL, dtype=np.int64)
    positions = np.zeros((1, padded_tokens), dtype=np.int64)
    row = num_labels = 0
    for chunk in shard.ranks[cp_rank]:
        segment = micro_batch.segments[chunk.segment]
        document, first = segment.document, segment.start + chunk.start
        # one more than the chunk holds, where the document goes on
        following = min(first + chunk.length + 1, document.length)
        read = index.tokens(document.id, first, following)
        tokens[0, row : row + chunk.length] = read[: chunk.length]
        labels[0, row : row + len(read) - 1] = read[1:]
        positions[0, row : row + chunk.length] = np.arange(chunk.start, chunk.stop)
        num_labels += len(read) - 1
        row += chunk.length
    return LocalMicroBatch(
        place=place,
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(positions),
        shard=shard,
        num_labels=num_labels,
        padded_tokens=padded_tokens,
        metadata=make_metadata(shard, cp_rank, padded_tokens) if make_metadata is not None else None,
    )

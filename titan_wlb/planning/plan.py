"""The nouns of a training step: what is trained, in which micro-batch, by which rank.

    Document(7, length=9)                    nine tokens of the corpus, numbered by the index
    Segment(document 7, start=0, stop=9)     the tokens that one micro-batch trains of it
    MicroBatch([segment, segment, ...])      what one pipeline unit holds, one row of tokens
    Chunk(segment=1, start=4, stop=6)        rows that one CP rank holds of the micro-batch's segment 1
    ShardPlan                                the chunks of every CP rank
    StepPlan                                 all of it, for one optimizer step of the whole job

Everything here is frozen, counts tokens in plain integers and never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Document:
    """A document of the corpus on its way to be trained.

    Args:
        id: place in the index, the same in every epoch.
        length: tokens, BOS and EOS included.
        arrival: the step (from 1) in which the intake drew it.
        epoch: the epoch (from 0) that it was drawn in; a document of the last epoch may still wait in a later one.
    """

    id: int
    length: int
    arrival: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, stop) of a document: all of it, or a piece.

    A piece comes from a document longer than the context window, or from a cut of the ``original`` packing. It
    attends to itself alone and its positions start at 0; ``start`` only says where its tokens lie.
    """

    document: Document
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Tokens of the segment."""
        return self.stop - self.start

    @property
    def num_labels(self) -> int:
        """Tokens that have a next token in their document: all, but for the document's last one."""
        return self.length - (self.stop == self.document.length)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The segments that run through the model together, one behind the other, in this order.

    Args:
        segments: what is trained; a planner's micro-batches are never empty.
        cost: predicted forward and backward time, integer nanoseconds of the cost model.
    """

    segments: tuple[Segment, ...]
    cost: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each segment."""
        return tuple(segment.length for segment in self.segments)

    @property
    def tokens(self) -> int:
        """Real tokens, without padding."""
        return sum(segment.length for segment in self.segments)

    @property
    def num_labels(self) -> int:
        """Tokens that contribute to the loss."""
        return sum(segment.num_labels for segment in self.segments)


class Chunk(NamedTuple):
    """Rows [start, stop) of a micro-batch's segment, counted from the segment's first row, held by one CP rank.

    A tuple, since a large job's plan holds hundreds of thousands of them.

    Args:
        segment: place in ``MicroBatch.segments``.
    """

    segment: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Rows of the chunk."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Who holds which rows of a micro-batch.

    Args:
        strategy: "per_sequence" or "per_document".
        lengths: tokens of each segment of the micro-batch.
        ranks: per CP rank its chunks, in the order in which the rank holds them. Every row of every segment stands
            in exactly one chunk; chunks are never empty.
    """

    strategy: str
    lengths: tuple[int, ...]
    ranks: tuple[tuple[Chunk, ...], ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Real rows of each CP rank."""
        return tuple(sum(chunk.length for chunk in rank) for rank in self.ranks)

    @property
    def segment_offsets(self) -> tuple[int, ...]:
        """Where each segment starts in the packed micro-batch."""
        return (0, *accumulate(self.lengths))[:-1]

    def padded_tokens(self, multiple: int) -> int:
        """Rows that every CP rank holds after padding at its end to one common multiple of ``multiple`` (TP).

        At least ``multiple``, so that a rank without a real row still takes part in every collective.
        """
        return max(-(-max(self.tokens, default=0) // multiple), 1) * multiple


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step of the whole job: the same object on every rank.

    Args:
        step: from 1.
        epoch: of the intake after it has drawn this step's documents, from 0.
        micro_batches: N of them, as the packer gave them.
        dp_ranks: per micro-batch the DP rank that runs it; a rank runs its own in this order.
        shards: per micro-batch its sharding.
        num_labels: tokens with a label in the whole step: what the loss is divided by.
        arrived: documents that the intake drew in this step.
        waiting_documents: documents drawn but not, or not wholly, trained after this step.
        waiting_tokens: their tokens that are not trained.
        delay_trained: tokens trained in this step times the steps that each waited; mean after division by tokens.
        oldest_waiting: largest age in steps (step - arrival) of a document trained in this step or waiting after it.
        digest: hash of everything above, chained over the steps: equal on all ranks or the run is wrong.
        state: the planner's state after this step, for the checkpoint; independent of DP, CP, PP and TP.
    """

    step: int
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    dp_ranks: tuple[int, ...]
    shards: tuple[ShardPlan, ...]
    num_labels: int
    arrived: int
    waiting_documents: int
    waiting_tokens: int
    delay_trained: int
    oldest_waiting: int
    digest: str
    state: bytes

    @property
    def tokens(self) -> int:
        """Real tokens trained in this step."""
        return sum(micro_batch.tokens for micro_batch in self.micro_batches)

    def of_dp_rank(self, dp_rank: int) -> tuple[int, ...]:
        """Places in ``micro_batches`` of what a DP rank runs, in the order in which it runs them."""
        return tuple(i for i, rank in enumerate(self.dp_ranks) if rank == dp_rank)

    @property
    def imbalance_degree(self) -> float:
        """N x largest predicted cost / sum of predicted costs (paper, Table 2)."""
        costs = [micro_batch.cost for micro_batch in self.micro_batches]
        return len(costs) * max(costs) / max(sum(costs), 1)

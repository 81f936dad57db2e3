"""Micro-batches of other works than equal ones, from the documents that a packer chose for a step.

    targets 1.25 0.75, a document of d tokens costs d

    as the packer gave them     4 4 2 2 | 6 3 3      work 12 and 12
    longest first, each to the least work / target
                                6 4 3 2 | 4 3 2      work 15 and 9

A packer that balances decides which documents a step trains: the longest is no more than a micro-batch of the mean
work, so that it fits below the largest target all the more. Works follow the targets as closely as equal ones would
be met, since most documents are short; what the cap lets in nowhere waits.

Source: ours; the targets are those of ``packing.shape``.
"""

from __future__ import annotations

from collections.abc import Sequence

from titan_wlb.planning.packing.fixed_length import least_work_with_room
from titan_wlb.planning.packing.packer import Packer, Stream, Waiting
from titan_wlb.planning.plan import Segment
from titan_wlb.planning.workload import Workload


class Shaped:
    """Packs what another packer packs, to targets.

    Args:
        packer: chooses the documents of a step.
        max_tokens: hard cap on a micro-batch's tokens.
        workload: what a document costs.
        targets: per micro-batch what its work is in proportion to, the largest first.
    """

    def __init__(self, packer: Packer, max_tokens: int, workload: Workload, targets: Sequence[float]) -> None:
        self.packer = packer
        self.max_tokens = max_tokens
        self.workload = workload
        # 1 / target in whole numbers, so that every process packs the same
        self._weights = [round(1e6 / target) for target in targets]

    def empty(self) -> Waiting:
        """What waits before the first step: nothing."""
        return self.packer.empty()

    def pack(self, waiting: Waiting, stream: Stream) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """A micro-batch for each target, and what waits after them."""
        packed, waiting = self.packer.pack(waiting, stream)
        segments = sorted((segment for held in packed for segment in held), key=_longest_first)
        micro_batches, left_over = least_work_with_room(
            segments, len(packed), self.max_tokens, self.workload, weights=self._weights
        )
        return list(map(tuple, micro_batches)), Waiting((*waiting.left_over, *left_over), waiting.queues)


def _longest_first(segment: Segment) -> tuple[int, int, int, int]:
    """Ties by arrival, whatever order the packer left them in."""
    return -segment.length, segment.document.epoch, segment.document.arrival, segment.document.id

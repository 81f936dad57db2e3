"""The paper's packing: micro-batches of equal work and different lengths, with outliers delayed until they are N.

    N = 2, max_tokens = 12, outliers from 8 tokens on, a document of d tokens costs d^2

    step 1    arrives  A 8, B 3, C 2, D 2     A waits in the queue: one outlier would make one micro-batch heavy
              new      B 3, C 2, D 2          micro-batches [B] [C D], work 9 and 8
    step 2    arrives  E 9, F 2, G 1          the queue holds A, E: N of them, both are released
              new      E 9, A 8, F 2, G 1     micro-batches [E] [A F G], work 81 and 69

Per step, to the letter (paper, section 4, algorithm 1):

1. A document of at least L1 tokens is an outlier and enters queue i with L_i <= length < L_(i+1).
2. Every queue that holds at least N documents releases its N oldest.
3. What is new (not delayed, or released) is sorted by length, longest first; what was left over before goes first.
4. Each goes to the micro-batch of least work if it fits there, else to the shortest if it fits there, else it is left
   over.

Beyond the paper: no document waits for ever. Where the oldest of a queue would exceed ``max_age_iterations``, every
queue releases up to N of what it holds, since outliers are best balanced by outliers; at the end of the data all queues
release everything. What the cap does not let in then goes first in the next step.

    N = 2, outliers from 8 tokens on, max_age_iterations = 1

    step 1    arrives  A 9, B 3, C 2    the queue holds A: one outlier alone
    step 2    arrives  D 4, E 3         A is one step old and is released: [A] [D E]

Documents longer than the context window come as pieces of at most that length, each treated as a document. Ties go to
what came earlier and to the micro-batch of lower number. A queue releases N a step and no more: thresholds so low that
more than N documents of a queue arrive per step make it grow without end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from titan_wlb.planning.packing.packer import Stream, Waiting, pack_drawing_until_filled, pieces
from titan_wlb.planning.plan import Document, Segment
from titan_wlb.planning.workload import Workload


class VariableLength:
    """Balances the work of N micro-batches.

    Args:
        num_micro_batches: N.
        context_window: W, tokens.
        max_tokens: hard cap on a micro-batch's tokens, at least W.
        outlier_thresholds: L1 < L2 < ..., tokens.
        workload: what a document costs.
        max_age_iterations: steps that a document may wait in a queue; 0: any number.
    """

    def __init__(
        self,
        num_micro_batches: int,
        context_window: int,
        max_tokens: int,
        outlier_thresholds: tuple[int, ...],
        workload: Workload,
        max_age_iterations: int = 0,
    ) -> None:
        assert max_tokens >= context_window, "a piece must fit into an empty micro-batch"
        self.num_micro_batches = num_micro_batches
        self.context_window = context_window
        self.max_tokens = max_tokens
        self.outlier_thresholds = outlier_thresholds
        self.workload = workload
        self.max_age_iterations = max_age_iterations
        # Each draw brings at least N pieces. Of Q + 1 draws at most Q * (N - 1) pieces can wait in Q queues of which
        # none holds N, so at least N do not wait; and a queue that holds N releases them. Either fills N micro-batches.
        self._max_extra_draws = len(outlier_thresholds) + 1

    def empty(self) -> Waiting:
        """What waits before the first step: nothing, in a queue per threshold."""
        return Waiting((), ((),) * len(self.outlier_thresholds))

    def pack(self, waiting: Waiting, stream: Stream) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """N micro-batches of what waits and the stream's next N x W tokens."""

        def pack(waiting: Waiting, arrived: Sequence[Document]) -> tuple[list[tuple[Segment, ...]], Waiting]:
            return self.pack_arrived(waiting, arrived, due=self._due(stream))

        tokens = self.num_micro_batches * self.context_window
        return pack_drawing_until_filled(pack, waiting, stream, tokens, self._max_extra_draws)

    def pack_arrived(
        self, waiting: Waiting, arrived: Sequence[Document], due: int = -1
    ) -> tuple[list[tuple[Segment, ...]], Waiting]:
        """N micro-batches of at most ``max_tokens`` tokens, and what is delayed or left over.

        Args:
            due: queues release at least what arrived in this step or before it.
        """
        new, queues = self._delay_outliers(waiting.queues, arrived, due)
        new.sort(key=lambda segment: -segment.length)
        micro_batches, left_over = self._assign((*waiting.left_over, *new))
        return micro_batches, Waiting(tuple(left_over), queues)

    def _due(self, stream: Stream) -> int:
        """The step of arrival from which on a document may wait no longer; -1 where none has to be released."""
        if stream.exhausted:
            return stream.step
        return stream.step - self.max_age_iterations if self.max_age_iterations else -1

    def _delay_outliers(
        self, waiting: Sequence[Sequence[Segment]], arrived: Sequence[Document], due: int
    ) -> tuple[list[Segment], tuple[tuple[Segment, ...], ...]]:
        """(what is trained now if it fits; the queues after that)."""
        fresh: list[Segment] = []
        queues = [list(queue) for queue in waiting]
        for segment in pieces(arrived, self.context_window):
            level = bisect_right(self.outlier_thresholds, segment.length)
            (queues[level - 1] if level else fresh).append(segment)
        # What is due brings along what waits in all queues: outliers are balanced by outliers.
        num_due = [sum(segment.document.arrival <= due for segment in queue) for queue in queues]
        released: list[Segment] = []
        for queue, at_least in zip(queues, num_due, strict=True):
            if len(queue) >= self.num_micro_batches or any(num_due):
                count = max(self.num_micro_batches, at_least)
                released += queue[:count]
                del queue[:count]
        return released + fresh, tuple(map(tuple, queues))

    def _assign(self, segments: Iterable[Segment]) -> tuple[list[tuple[Segment, ...]], list[Segment]]:
        """(micro-batches, left over)."""
        micro_batches: list[list[Segment]] = [[] for _ in range(self.num_micro_batches)]
        work = [0] * self.num_micro_batches
        tokens = [0] * self.num_micro_batches
        # An entry whose tokens are no longer the micro-batch's is out of date. Equal work goes by tokens, so that an
        # empty micro-batch comes before one whose documents cost nothing.
        by_work = [(0, 0, place) for place in range(self.num_micro_batches)]
        by_tokens = [(0, place) for place in range(self.num_micro_batches)]
        left_over = []
        for segment in segments:
            while by_work[0][1] != tokens[by_work[0][2]]:
                heappop(by_work)
            while by_tokens[0][0] != tokens[by_tokens[0][1]]:
                heappop(by_tokens)
            place = by_work[0][2]
            if tokens[place] + segment.length > self.max_tokens:
                place = by_tokens[0][1]
            if tokens[place] + segment.length > self.max_tokens:
                left_over.append(segment)
                continue
            micro_batches[place].append(segment)
            work[place] += self.workload.cost(segment.length)
            tokens[place] += segment.length
            heappush(by_work, (work[place], tokens[place], place))
            heappush(by_tokens, (tokens[place], place))
        return list(map(tuple, micro_batches)), left_over


def default_thresholds(context_window: int) -> tuple[int, ...]:
    """Three outlier queues, from a quarter, a half and three quarters of the window on (ours)."""
    return tuple(sorted({max(1, context_window * quarters // 4) for quarters in (1, 2, 3)}))

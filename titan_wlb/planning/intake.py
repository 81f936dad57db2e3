"""Draws documents in order, and looks at the lengths of those that come next.

N x W = 8 tokens a step, order A 5, B 4, C 2, D 9, E 1

step 1    goal  8    A, B           drawn  9: one token more than asked, which counts for the next step
step 2    goal 16    C, D           drawn 20
step 3    goal 24    E, then the next epoch's order ...

A packer sees this object as its stream: it draws what it needs and may peek without drawing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.order import Block, Order, Position
from titan_wlb.planning.plan import Document


class Intake:
    """Where the stream of documents stands.

    Args:
        order: of the documents.

    Attributes:
        step: that documents are drawn in, set before.
        num_drawn: documents drawn since this object was made or restored.
        drawn: tokens drawn since the first step.
        goal: tokens that were asked for since the first step.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self.step = 1
        self.num_drawn = 0
        self.set_state((0, 0, 0, 0, 0))

    def state(self) -> tuple[int, ...]:
        """(epoch, place of the segment, documents drawn of it, drawn, goal)."""
        return *self._position, self.drawn, self.goal

    def set_state(self, state: Sequence[int]) -> None:
        """Goes to where ``state`` was."""
        *position, self.drawn, self.goal = state
        self._position = self._fetched = Position(*position)  # behind the last document that was drawn, or is ahead
        self._ahead: deque[Block] = deque()
        self._offset = 0  # documents drawn of the first block ahead

    @property
    def epoch(self) -> int:
        """Of the document drawn last, from 0."""
        return self._position.epoch

    @property
    def exhausted(self) -> bool:
        """Whether there is no further document: never while epochs follow one another."""
        return not self._ahead and not self._fetch()

    def draw(self, tokens: int) -> list[Document]:
        """The documents of a step's global batch: in order, until the tokens asked for so far are reached."""
        return self._draw_to(self.goal + tokens)

    def draw_more(self, tokens: int) -> list[Document]:
        """A further global batch for a step that lacks documents: at least ``tokens`` beyond what was drawn."""
        return self._draw_to(max(self.goal, self.drawn) + tokens)

    def peek(self, tokens: int) -> npt.NDArray[np.int64]:
        """Lengths of the documents that come next, the fewest that make up ``tokens``; all there are at the data's end.

        Draws nothing. Waits for an index that still grows rather than show fewer.
        """
        parts = [np.empty(0, dtype=np.int64)]
        found = place = 0
        while found < tokens and (place < len(self._ahead) or self._fetch()):
            parts.append(self._ahead[place].lengths[self._offset if place == 0 else 0 :])
            found += int(parts[-1].sum())
            place += 1
        lengths = np.concatenate(parts)
        return lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]

    def _fetch(self) -> bool:
        """Whether there was a further block."""
        block = self._order.block(self._fetched)
        if block is None:
            return False
        self._ahead.append(block)
        self._fetched = block.end
        return True

    def _draw_to(self, goal: int) -> list[Document]:
        self.goal = goal
        documents: list[Document] = []
        while self.drawn < goal and (self._ahead or self._fetch()):
            documents += self._draw_of_block(self._ahead[0], goal - self.drawn)
        self.num_drawn += len(documents)
        return documents

    def _draw_of_block(self, block: Block, tokens: int) -> list[Document]:
        ids, lengths = block.ids[self._offset :], np.cumsum(block.lengths[self._offset :])
        count = min(int(np.searchsorted(lengths, tokens)) + 1, len(ids))
        drawn = zip(ids[:count].tolist(), block.lengths[self._offset :][:count].tolist(), strict=True)
        self.drawn += int(lengths[count - 1])
        self._offset += count
        self._position = block.position._replace(offset=block.position.offset + self._offset)
        if count == len(ids):
            self._ahead.popleft()
            self._offset = 0
        return [Document(id, length, self.step, self.epoch) for id, length in drawn]

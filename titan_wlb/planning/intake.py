"""Draws documents, in shuffled order, epoch after epoch without end.

N x W = 8 tokens a step, order A 5, B 4, C 2, D 9, E 1

step 1    goal  8    A, B           drawn  9: one token more than asked, which counts for the next step
step 2    goal 16    C, D           drawn 20
step 3    goal 24    E, then the next epoch's order ...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.plan import Document
from titan_wlb.planning.shuffle import Shuffle

_BLOCK = 4096  # documents whose places are computed at once


class Intake:
    """Where the stream of documents stands.

    Args:
        lengths: tokens by document id, int64 [documents].
        seed: of the order.

    Attributes:
        epoch: of the document drawn last, from 0.
        position: documents drawn of this epoch.
        drawn: tokens drawn since the first step.
        goal: tokens that were asked for since the first step.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], seed: int) -> None:
        self._lengths = lengths
        self._seed = seed
        self.set_state((0, 0, 0, 0))

    def state(self) -> tuple[int, int, int, int]:
        """(epoch, position, drawn, goal)."""
        return self.epoch, self.position, self.drawn, self.goal

    def set_state(self, state: Sequence[int]) -> None:
        """Goes to where ``state`` was."""
        self.epoch, self.position, self.drawn, self.goal = state
        self._shuffle = Shuffle(len(self._lengths), self._seed, self.epoch)
        self._block: list[tuple[int, int]] = []
        self._block_start = 0

    def draw(self, tokens: int, *, step: int) -> list[Document]:
        """The documents of a step's global batch: in order, until the tokens asked for so far are reached."""
        return self._draw_to(self.goal + tokens, step)

    def draw_more(self, tokens: int, *, step: int) -> list[Document]:
        """A further global batch for a step that lacks documents: at least ``tokens`` beyond what was drawn."""
        return self._draw_to(max(self.goal, self.drawn) + tokens, step)

    def _draw_to(self, goal: int, step: int) -> list[Document]:
        self.goal = goal
        documents = []
        while self.drawn < self.goal:
            id, length = self._next()
            documents.append(Document(id, length, step, self.epoch))
            self.drawn += length
        return documents

    def _next(self) -> tuple[int, int]:
        """(id, length) of the next document."""
        if self.position == len(self._lengths):
            self.set_state((self.epoch + 1, 0, self.drawn, self.goal))
        if self.position - self._block_start >= len(self._block):
            ids = self._shuffle.ids(self.position, min(self.position + _BLOCK, len(self._lengths)))
            self._block = list(zip(ids.tolist(), self._lengths[ids].tolist(), strict=True))
            self._block_start = self.position
        self.position += 1
        return self._block[self.position - 1 - self._block_start]

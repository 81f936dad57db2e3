"""How often something large may be written so that it takes no more than its share."""

from __future__ import annotations


class Budget:
    """Written at every logged step while it takes its share or less; at three times that, at every third.

    Args:
        share: what a logged step may take on the mean, in any unit.
    """

    def __init__(self, share: int):
        self._share = share
        self._owed = 0

    def is_due(self) -> bool:
        """Whether to write at this logged step; asked once a step."""
        self._owed = max(self._owed - self._share, 0)
        return not self._owed

    def spend(self, amount: int) -> None:
        """What was written at this step took so much."""
        self._owed = max(amount, self._share)

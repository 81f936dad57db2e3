"""A random order of n documents that needs no memory: place k of the order is computed, not looked up.

    n = 7: numbers below 3 x 3 = 9 as pairs (left, right)

    each round    left = (left + mix(right)) mod 3, then the sides change places: invertible whatever mix does
    a result of 7 or 8 is no document: go on from there until it is one (the cycle leads back below 7)

Source: an additive Feistel network with cycle walking (Black and Rogaway, Ciphers with arbitrary finite domains, 2002).
"""

from __future__ import annotations

from hashlib import blake2b
from math import isqrt

import numpy as np
import numpy.typing as npt

_ROUNDS = 8


class Shuffle:
    """A permutation of range(``num_documents``), the same on every machine.

    Args:
        num_documents: n, at least 1.
        seed: of the run.
        place: numbers that tell this order from the run's others, such as the epoch and the segment.
    """

    def __init__(self, num_documents: int, seed: int, *place: int) -> None:
        assert num_documents > 0
        self.num_documents = num_documents
        root = isqrt(num_documents - 1) + 1
        self._sides = (root, -(-num_documents // root))
        digest = blake2b(" ".join(map(str, (seed, *place))).encode("ascii"), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8")

    def ids(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The document ids at places [start, stop) of the order, int64 [stop - start]."""
        values = self._permute(np.arange(start, stop, dtype=np.uint64))
        while (outside := np.flatnonzero(values >= self.num_documents)).size:
            values[outside] = self._permute(values[outside])
        return values.astype(np.int64)

    def _permute(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The Feistel network on numbers below the product of the sides."""
        of_left, of_right = (np.uint64(side) for side in self._sides)
        left, right = values // of_right, values % of_right
        for key in self._keys:
            left, right = right, (left + _mix(right, key) % of_left) % of_left
            of_left, of_right = of_right, of_left
        permuted: npt.NDArray[np.uint64] = left * of_right + right
        return permuted


def _mix(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """Well-mixed bits of each value (the finaliser of splitmix64); arithmetic wraps at 64 bits."""
    values = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed

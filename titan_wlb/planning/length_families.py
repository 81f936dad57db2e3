"""Document lengths of the shapes that long-context corpora have, for benchmarks and tests: seeded, without a corpus.

Every family is two kinds of documents (ours, after the paper's figure of a skewed corpus): *ordinary* ones, log-normal
around a median, and *long* ones, log-uniform from a smallest to a greatest length, as books, transcripts or whole
repositories are. What is longer than the greatest length is cut there, so that some families end in a spike.

    window 131,072                                           median   mean   longest   tokens in documents above 64K
    skewed_web     the paper's shape                         3.2K     6.0K   125K      13 %
    long_context   long documents sampled more often         5.0K     16K    128K      46 %
    code_like      files, and repositories of which many     1.2K     3.7K   128K      30 %
                   fill the window

Lengths scale with the window, so that the shape stays the same on a small one. The first documents are the same however
many are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_WINDOW = 131_072  # that the parameters are given for
_BLOCK = 65_536  # documents generated at once


@dataclass(frozen=True, slots=True)
class LengthFamily:
    """The parameters of a family, in tokens at a window of 131,072.

    Args:
        median: of the ordinary documents.
        sigma: standard deviation of their length's natural logarithm.
        long_share: share of the documents that are long.
        long_from: the shortest long document.
        long_to: where the long documents' log-uniform range ends.
        longest: of any document; what would be longer has this length.
    """

    median: float
    sigma: float
    long_share: float
    long_from: float
    long_to: float
    longest: int


LENGTH_FAMILIES = {
    "skewed_web": LengthFamily(3100, 0.95, 0.0215, 20_480, 125_000, 125_000),
    "long_context": LengthFamily(4000, 1.1, 0.14, 16_384, 196_608, _WINDOW),
    "code_like": LengthFamily(1200, 1.2, 0.014, 32_768, 262_144, _WINDOW),
}


def lengths_of_family(name: str, *, num_tokens: int, seed: int, context_window: int = _WINDOW) -> npt.NDArray[np.int64]:
    """Lengths of a family's documents in arrival order, the fewest that make up ``num_tokens``.

    Args:
        name: a key of ``LENGTH_FAMILIES``.
        num_tokens: at least that many in all.
        seed: of the generator (PCG64).
        context_window: W, tokens; all lengths are in proportion to it.

    Returns:
        int64 [documents], each from 1 to the window.

    Raises:
        ValueError: there is no such family.
    """
    if name not in LENGTH_FAMILIES:
        raise ValueError(f"no length family {name!r}: choose one of {', '.join(LENGTH_FAMILIES)}")
    generator = np.random.Generator(np.random.PCG64(seed))
    parts: list[npt.NDArray[np.int64]] = []
    found = 0
    while found < num_tokens:
        parts.append(_block(LENGTH_FAMILIES[name], generator, context_window / _WINDOW))
        found += int(parts[-1].sum())
    lengths = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1]


def _block(family: LengthFamily, generator: np.random.Generator, scale: float) -> npt.NDArray[np.int64]:
    """The next documents. A row of uniform numbers for each, so that no document depends on how many there are."""
    kind, place, radius, angle = generator.random((_BLOCK, 4)).T
    normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box-Muller
    ordinary = family.median * np.exp(family.sigma * normal)
    long = family.long_from * (family.long_to / family.long_from) ** place
    lengths: npt.NDArray[np.float64] = np.rint(np.where(kind < family.long_share, long, ordinary) * scale)
    return lengths.clip(1, round(family.longest * scale)).astype(np.int64)

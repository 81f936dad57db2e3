"""Which micro-batches are measured: those that training has, about a window of tokens in ever more documents.

    window 4096    alone     1 x 1024, 1 x 2048, 1 x 3072, 1 x 4096              what a long document costs
                   filled    256 x 16, 64 x 64, 16 x 256, 4 x 1024, 2 x 2048     the same tokens in ever more documents
                   floods    100 x 20, 400 x 20                                  what a document costs
                   tokens    8 x 256, 12 x 256, 16 x 256, 24 x 256               what does not look at documents

A micro-batch is a tuple of (documents, tokens of each).
"""

from __future__ import annotations

import numpy as np

__all__ = ["Documents", "attention_grid", "check_grid", "token_grid"]

Documents = tuple[tuple[int, int], ...]

MAX_DOCUMENTS = 512
FLOODS = ((100, 20), (400, 20))
TOKENS_OF_A_DOCUMENT = 256  # where the number of tokens alone matters


def attention_grid(window: int) -> list[Documents]:
    """Micro-batches of equal documents, from floods of tiny ones to one that fills the window."""
    alone = {(1, window * quarters // 4) for quarters in (1, 2, 3, 4)}
    lengths = {window // 4**i for i in range(1, 10)} | {window // 2}
    filled = {(window // length, length) for length in lengths if length >= 1 and window // length <= MAX_DOCUMENTS}
    floods = {flood for flood in FLOODS if flood[1] <= window}
    return [(group,) for group in sorted(alone | filled | floods)]


def token_grid(window: int, most: int) -> list[Documents]:
    """Micro-batches of half a window of tokens to one and a half, in documents of one length.

    Small ones say little: on CPUs a token costs more once buffers are so large that they are mapped anew each time.

    Args:
        window: tokens; where ``most`` is less than one and a half windows, what fits counts as the window.
        most: tokens, at most, of a micro-batch.
    """
    window = max(min(window, most * 2 // 3), 1)
    length = max(1, min(TOKENS_OF_A_DOCUMENT, window // 8))
    totals = (max(window * quarters // 4, length) for quarters in (2, 3, 4, 6))
    return [((number, length),) for number in sorted({total // length for total in totals})]


def check_grid(window: int, most: int, seed: int = 0) -> list[Documents]:
    """Mixed micro-batches as training has them, which nothing is fitted to: skewed, half-long, and tiny ones.

    Args:
        window: tokens.
        most: tokens, at most, of a micro-batch.
        seed: of the lengths.
    """
    window = max(min(window, most), 1)
    generator = np.random.Generator(np.random.PCG64(seed))
    mixed = [_filled(generator, window, median) for median in (window / 64, window / 16, window / 4)]
    half = (*_filled(generator, min(window, most - window // 2), window / 64), (1, max(window // 2, 1)))
    tiny = ((max(1, min(MAX_DOCUMENTS, window // 40)), min(20, window)), (1, max(window // 2, 1)))
    return [*mixed, half, tiny, ((1, window),)]


def _filled(generator: np.random.Generator, tokens: int, median: float) -> Documents:
    """Log-normal lengths that add up to ``tokens``."""
    lengths: list[int] = []
    while (room := tokens - sum(lengths)) > 0:
        lengths.append(min(room, max(1, int(generator.lognormal(np.log(max(median, 1.0)), 1.0)))))
    return tuple((1, length) for length in lengths)

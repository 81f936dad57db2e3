"""From measured latencies to coefficients, without torch.

    fitted                       2 documents of 4 tokens          counts by its
    attention    e + a n + b T + c S    10 + 2 x 5 + 8 + 32 / 2  = 44 ns     relative error
    rest, head   e       + b T          20         + 3 x 8       = 44 ns     absolute error

Attention is measured from floods of tiny documents to full windows, which are to count alike. The rest is measured at
sizes of one order, and nothing shall be too low by a trend: a relative fit leans to the small numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.profile import Latency, Measurement

__all__ = ["fit", "non_negative"]

_ALL = (0, 1, 2, 3)
_BY_TOKENS = (0, 2)  # what does not look at documents


def fit(measured: Sequence[Measurement], attention_runs: float) -> tuple[Latency, Latency, Latency]:
    """(attention of a layer, rest of a layer, head).

    Args:
        measured: of the parts "attention", "layer" and "head". The rest of a layer is its time less that of attention
            with the same documents; without that a layer's line is not used.
        attention_runs: how often training runs a layer's attention forward, 2 where checkpointing repeats it.
    """
    attention = _of(measured, "attention")
    times = [attention_runs * line.forward + line.backward for line in attention]
    of_documents = {line.documents: time for line, time in zip(attention, times, strict=True)}
    layers = [line for line in _of(measured, "layer") if line.documents in of_documents]
    rest = [(line.forward + line.backward) / line.layers - of_documents[line.documents] for line in layers]
    head = _of(measured, "head")
    return (
        _fit(attention, times, _ALL, relative=True),
        _fit(layers, rest, _BY_TOKENS, relative=False),
        _fit(head, [line.forward + line.backward for line in head], _BY_TOKENS, relative=False),
    )


def non_negative(matrix: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The x >= 0 with the least |matrix x - values|: exact, by trying which of its few entries are not zero.

    At the optimum the entries that are not zero solve the least-squares problem of their columns alone, so the best
    of all such solutions without a negative entry is the answer.

    Args:
        matrix: [points, coefficients], a handful of columns.
        values: [points].
    """
    columns = matrix.shape[1]
    scale = np.maximum(np.sqrt((matrix * matrix).sum(axis=0)), np.finfo(float).tiny)
    best, least = np.zeros(columns), float((values * values).sum())
    for number in range(1, columns + 1):
        for chosen in map(list, combinations(range(columns), number)):
            solution = np.linalg.lstsq(matrix[:, chosen] / scale[chosen], values, rcond=None)[0] / scale[chosen]
            error = float(((matrix[:, chosen] @ solution - values) ** 2).sum())
            if (solution >= 0).all() and error < least:
                best, least = np.zeros(columns), error
                best[chosen] = solution
    return best


def _of(measured: Sequence[Measurement], part: str) -> list[Measurement]:
    return [line for line in measured if line.part == part]


def _fit(lines: Sequence[Measurement], times: Sequence[float], terms: Sequence[int], *, relative: bool) -> Latency:
    """Coefficients of the chosen terms of ``Latency``, the others zero."""
    values = np.array(times, dtype=np.float64)
    weight = 1.0 / np.maximum(values, 1.0) if relative else np.full(len(values), 1.0 / max(values.mean(), 1.0))
    matrix = np.array([_features(line) for line in lines], dtype=np.float64)[:, list(terms)]
    coefficients = np.zeros(len(_ALL))
    coefficients[list(terms)] = non_negative(matrix * weight[:, None], values * weight)
    return Latency(*coefficients.tolist())


def _features(line: Measurement) -> tuple[int, int, int, int]:
    lengths = line.lengths
    return 1, len(lengths), sum(lengths), sum(length * length for length in lengths)

"""What delay no packer can go below, whatever it knows of the documents to come.

A step is balanced within eps only if its whole work is at least N x that of its longest document / (1 + eps). A
document whose work is more than the mean of a micro-batch therefore waits for a step that is heavier than what arrives,
and the rest of that step's work has to have waited, too:

    N = 2, cost d^2, a step draws 8 tokens, eps = 0

    step 1    draws 4 2 1 1    work 22; training the 4 needs 2 x 16: it waits           4 tokens wait
    step 2    draws 4 2 1 1    work 22, and 16 that waited: both 4s can be trained      none has to

    at least 4 tokens wait over two steps that draw 16: the delay is at least 1 / 4

Classes of length, shortest first, cut the documents that are long. The longest document that a step trains has a class;
a document of a higher class than that waits. So what certainly waits after a step follows from how many steps ago each
class was last reached: all of the class that arrived since. Where the work of such documents and of what arrives does
not make up the step's, more tokens have to have waited, no fewer than the missing work over the work per token of the
class's longest document, which has the most. The least sum over all sequences of classes is found step by step.

What it bounds: ``delay_iterations_mean``, counted from the first step, of every packer that draws N x W tokens a step
(the paper's intake), trains whole documents, those longer than W in pieces, and keeps *every* step within eps. Left out
are the cap on tokens, that work comes in whole documents, and what has to wait more than one step ahead of a heavy one:
so it is lower than what can be reached. A steady intake is not covered. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement, pairwise

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.workload import Workload

NUM_CLASSES = 12
ROUNDING = 1 - 1e-9  # of the work that a step needs: floats must not make a document wait that just fits
MAX_AGE = 3  # steps back that what certainly waits is counted

_Floats = npt.NDArray[np.float64]


def delay_lower_bound(
    lengths: npt.NDArray[np.int64],
    num_micro_batches: int,
    context_window: int,
    workload: Workload,
    tolerance: float = 0.0,
    *,
    num_steps: int = 1 << 62,
) -> float:
    """No packer's ``delay_iterations_mean`` over these steps is less; see above for which packers.

    Args:
        lengths: of the documents in arrival order.
        num_micro_batches: N.
        context_window: W, tokens.
        workload: what a document costs.
        tolerance: eps.
        num_steps: global batches that are looked at, at most as many as the lengths fill.
    """
    arrivals = _arrivals(lengths, num_micro_batches * context_window, context_window)[:num_steps]
    if not arrivals:
        return 0.0
    bounds = _class_bounds(arrivals, num_micro_batches, workload)
    tokens, works = _per_class(arrivals, bounds, workload)
    waiting = _least_waiting(
        tokens,
        works,
        [ROUNDING * num_micro_batches / (1 + tolerance) * workload.cost(bound + 1) for bound in bounds[:-1]],
        _densities(np.concatenate(arrivals), bounds[1:], workload),
    )
    return waiting / float(tokens.sum())


def _arrivals(lengths: npt.NDArray[np.int64], tokens: int, context_window: int) -> list[npt.NDArray[np.int64]]:
    """Lengths of the pieces that each step draws, as ``Intake`` does, for all steps that are drawn in full."""
    ends = np.cumsum(lengths)
    goals = np.arange(tokens, int(lengths.sum()) + 1, tokens)
    stops = [0, *(np.searchsorted(ends, goals) + 1).tolist()]
    return [_pieces(lengths[start:stop], context_window) for start, stop in pairwise(stops)]


def _pieces(lengths: npt.NDArray[np.int64], context_window: int) -> npt.NDArray[np.int64]:
    """Documents cut every W tokens, in any order."""
    whole = np.full(int((lengths // context_window).sum()), context_window, dtype=np.int64)
    rest = lengths % context_window
    return np.concatenate([whole, rest[rest > 0]])


def _class_bounds(arrivals: Sequence[npt.NDArray[np.int64]], num_micro_batches: int, workload: Workload) -> list[int]:
    """Rising lengths; class i holds what is longer than bounds[i], up to bounds[i + 1].

    From a little below the length that a step of mean work can train, to the longest document.
    """
    longest = max(int(step.max(initial=1)) for step in arrivals)
    mean = sum(_work(step, workload).sum() for step in arrivals) / len(arrivals) / num_micro_batches
    low, high = 0, longest
    while high - low > 1:  # the longest document that costs no more than the mean micro-batch
        middle = (low + high) // 2
        low, high = (middle, high) if workload.cost(middle) <= mean else (low, middle)
    inner = np.linspace(0.8 * low, 0.99 * longest, NUM_CLASSES).astype(np.int64).tolist()
    return [*sorted({bound for bound in inner if 0 < bound < longest}), longest]


def _per_class(
    arrivals: Sequence[npt.NDArray[np.int64]], bounds: Sequence[int], workload: Workload
) -> tuple[_Floats, _Floats]:
    """(tokens, work) that arrive, [steps, 1 + classes]; the first column is of what is in no class."""
    tokens = np.zeros((len(arrivals), len(bounds)))
    works = np.zeros_like(tokens)
    for step, lengths in enumerate(arrivals):
        classes = np.searchsorted(np.array(bounds[:-1]), lengths, side="left")
        tokens[step] = np.bincount(classes, lengths, minlength=len(bounds))
        works[step] = np.bincount(classes, _work(lengths, workload), minlength=len(bounds))
    return tokens, works


def _densities(lengths: npt.NDArray[np.int64], bounds: Sequence[int], workload: Workload) -> list[float]:
    """Per bound the most work per token that any document up to it has: its longest, or a tiny one."""
    density = _work(lengths, workload) / lengths
    return [max(workload.cost(bound) / bound, float(density[lengths <= bound].max(initial=0))) for bound in bounds]


def _least_waiting(tokens: _Floats, works: _Floats, least_work: Sequence[float], density: Sequence[float]) -> float:
    """The least sum over steps of tokens that wait after them.

    Args:
        tokens, works: that arrive, [steps, 1 + classes].
        least_work: of a step that trains a document of a class.
        density: most work per token of a document up to a class.
    """
    num_steps, num_classes = len(tokens), len(least_work)
    ages, after = _ages(num_classes)
    tokens_before = np.vstack([np.zeros(num_classes + 1), np.cumsum(tokens, axis=0)])
    works_before = np.vstack([np.zeros(num_classes + 1), np.cumsum(works, axis=0)])

    def since(before: _Floats, step: int) -> _Floats:
        """What arrived in the last ``age`` steps before ``step``, [states, classes]."""
        rows, columns = np.maximum(step - ages, 0), np.arange(1, num_classes + 1)
        difference: _Floats = before[step, 1:] - before[rows, columns]
        return difference

    least = np.full(len(ages), np.inf)
    least[(ages == 0).all(axis=1)] = 0.0
    for step in range(num_steps):
        waiting = np.cumsum(since(works_before, step), axis=1)  # work of this class and those below it
        reached = np.full(len(ages), np.inf)
        for reach in range(num_classes + 1):  # classes of which something is trained: below this number
            cost = least
            if reach:
                missing = least_work[reach - 1] - works[step, : reach + 1].sum() - waiting[:, reach - 1]
                more = np.maximum(missing, 0.0) / density[reach - 1]
                cost = least + (more if step else np.where(missing > 0, np.inf, 0.0))
            np.minimum.at(reached, after[reach], cost)
        least = reached + since(tokens_before, step + 1).sum(axis=1)
    return float(least.min())


def _ages(num_classes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(per state the steps since each class was reached; per reach and state the state after a step).

    A step that reaches a class reaches those below it, so that ages rise with the class.
    """
    states = list(combinations_with_replacement(range(MAX_AGE + 1), num_classes))
    place = {state: number for number, state in enumerate(states)}
    after = [
        [
            place[tuple(0 if number < reach else min(age + 1, MAX_AGE) for number, age in enumerate(state))]
            for state in states
        ]
        for reach in range(num_classes + 1)
    ]
    return np.array(states, dtype=np.int64).reshape(len(states), num_classes), np.array(after, dtype=np.int64)


def _work(lengths: npt.NDArray[np.int64], workload: Workload) -> _Floats:
    """Of each document, a little more than ``Workload.cost``, which rounds down: what a step needs stays below."""
    per_token, per_token_squared = workload.linear / workload.denominator, workload.quadratic / workload.denominator
    work: _Floats = workload.constant + per_token * lengths + per_token_squared * lengths * lengths
    return work

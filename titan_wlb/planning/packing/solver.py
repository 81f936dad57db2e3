"""``fixed_length`` with its micro-batches from the paper's integer program instead of a greedy rule.

    documents i of l_i tokens and work w_i, micro-batches j of steps s(j), x_ij = 1 where document i is in j

    minimise    sum_s t_s                    t_s is the largest work of step s; the paper has one step
    such that   sum_j x_ij = 1               each document in exactly one micro-batch
                sum_i l_i x_ij <= W          no more than the window
                sum_i w_i x_ij <= t_s(j)
                sum_i x_ij >= 1              ours: none is empty

    W = 7, N = 2, a document of d tokens costs d: 3 3 2 2 2
    greedy      [3 2 2] [3 2]        work 7 and 5
    solver      [2 2 2] [3 3]        work 6 and 6

Which documents are left over is greedy's decision, so that both packers train the same documents in the same window:
``solver`` is never slower than ``fixed_length``, whose micro-batches are its warm start and what stays where the limits
on nodes and on the program's size leave nothing better. Over several global batches the paper minimises the largest
work of all, with which a single long document is content; the sum over the steps is what a run pays.

HiGHS runs with one thread, a fixed seed and a limit on nodes, not on time: every rank finds the same, given the same
version of HiGHS. With another version a resumed run may plan otherwise from there on, each document still once.

Source: paper, section 2 and Table 2, where a solver took 0.5 to 25 seconds a global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from titan_wlb.planning.packing.fixed_length import FixedLength
from titan_wlb.planning.plan import Segment
from titan_wlb.planning.workload import Workload

MAX_NODES = 200  # of the branch-and-bound tree, per window
MAX_VARIABLES = 20_000  # documents x micro-batches; a larger program takes minutes at its root alone
_SCALE = 1e4  # greedy's objective inside the program, so that HiGHS's tolerance of 1e-6 is 1e-10 of it


class Solver(FixedLength):
    """As ``FixedLength``, with the sum of the steps' largest works minimised.

    Args:
        num_micro_batches, context_window, packing_window, workload: as of ``FixedLength``.
        max_nodes: of the branch-and-bound tree, per window.

    Attributes:
        gap: of the window packed last: by which share of it the sum may exceed the least one; 0 is optimal. For
            reports, no decision depends on it.

    Raises:
        ValueError: HiGHS is not installed.
    """

    def __init__(
        self,
        num_micro_batches: int,
        context_window: int,
        packing_window: int,
        workload: Workload,
        *,
        max_nodes: int = MAX_NODES,
    ) -> None:
        super().__init__(num_micro_batches, context_window, packing_window, workload)
        _import_highs()
        self.max_nodes = max_nodes
        self.gap = 0.0

    def assign(self, segments: Sequence[Segment], num_micro_batches: int) -> tuple[list[list[Segment]], list[Segment]]:
        """Greedy's micro-batches, or better ones of the same documents; and what greedy leaves over."""
        greedy, left_over = super().assign(segments, num_micro_batches)
        placed = [segment for micro_batch in greedy for segment in micro_batch]
        lengths = [segment.length for segment in placed]
        places = iter(range(len(placed)))
        solution = solve(
            [self.workload.cost(length) for length in lengths],
            lengths,
            self.context_window,
            self.num_micro_batches,
            [[next(places) for _ in micro_batch] for micro_batch in greedy],
            self.max_nodes,
        )
        self.gap = solution.gap
        return [[placed[place] for place in members] for members in solution.sets], left_over


@dataclass(frozen=True, slots=True)
class Solution:
    """What is known of a program.

    Args:
        sets: per micro-batch the places of its documents, the steps' one behind the other.
        time: the sum of the steps' largest works.
        bound: no assignment has a smaller sum.
    """

    sets: list[list[int]]
    time: int
    bound: float

    @property
    def gap(self) -> float:
        """What the best sum may be better by, as a share of this one."""
        return max(self.time - self.bound, 0.0) / self.time if self.time else 0.0


def solve(
    costs: Sequence[int],
    lengths: Sequence[int],
    max_tokens: int,
    per_step: int,
    greedy: Sequence[Sequence[int]],
    max_nodes: int = MAX_NODES,
) -> Solution:
    """The program's best solution within ``max_nodes``; greedy's where none is better.

    Args:
        costs, lengths: work and tokens of each document.
        max_tokens: of a micro-batch.
        per_step: micro-batches of a step, N.
        greedy: a solution, per micro-batch the places of its documents.
    """
    sets = sorted(map(list, greedy), key=lambda members: -sum(costs[place] for place in members))
    known = Solution(sets, _time(sets, costs, per_step), max(max(costs, default=0), -(-sum(costs) // per_step)))
    if known.gap == 0 or len(costs) * len(sets) > MAX_VARIABLES:
        return known
    program = _Program(costs, lengths, max_tokens, per_step, known)
    found, bound = program.run(max_nodes)
    allowed = found is not None and all(sum(lengths[place] for place in members) <= max_tokens for members in found)
    if found is not None and allowed and _time(found, costs, per_step) < known.time:
        sets = found
    return Solution(sets, _time(sets, costs, per_step), max(bound, known.bound))


def _time(sets: Sequence[Sequence[int]], costs: Sequence[int], per_step: int) -> int:
    """The sum over the steps of their largest work, micro-batches of like work together."""
    return sum(sorted((sum(costs[place] for place in members) for members in sets), reverse=True)[::per_step])


class _Program:
    """The integer program in HiGHS: variables x_ij at i * m + j, then t_s; rows as in this file's head.

    Args:
        known: greedy's solution, heaviest micro-batch first.
    """

    def __init__(
        self, costs: Sequence[int], lengths: Sequence[int], max_tokens: int, per_step: int, known: Solution
    ) -> None:
        self._highspy = _import_highs()
        self._num_documents, self._num_sets = len(costs), len(known.sets)
        self._num_steps = self._num_sets // per_step
        self._unit = known.time / _SCALE
        weights = np.array([cost / self._unit for cost in costs])
        i, j = np.divmod(np.arange(len(costs) * self._num_sets), self._num_sets)
        self._binaries = len(i)
        steps = np.arange(self._num_sets) // per_step
        rows = [
            (i, np.arange(self._binaries), np.ones(self._binaries)),
            (len(costs) + j, np.arange(self._binaries), np.array(lengths, dtype=np.float64)[i]),
            (len(costs) + self._num_sets + j, np.arange(self._binaries), weights[i]),
            (len(costs) + self._num_sets + np.arange(self._num_sets), self._binaries + steps, -np.ones(self._num_sets)),
            (len(costs) + 2 * self._num_sets + j, np.arange(self._binaries), np.ones(self._binaries)),
        ]
        low = [(1.0, len(costs)), (0.0, self._num_sets), (-np.inf, self._num_sets)]
        high = [(1.0, len(costs)), (float(max_tokens), self._num_sets), (0.0, self._num_sets)]
        low.append((float(len(costs) >= self._num_sets), self._num_sets))
        high.append((np.inf, self._num_sets))
        self._lp = self._to_lp(rows, _repeated(low), _repeated(high))
        self._start = np.zeros(self._binaries + self._num_steps)
        for place, members in enumerate(known.sets):
            self._start[[member * self._num_sets + place for member in members]] = 1.0
            step = self._binaries + place // per_step
            self._start[step] = max(self._start[step], sum(weights[member] for member in members))

    def run(self, max_nodes: int) -> tuple[list[list[int]] | None, float]:
        """(per micro-batch the places of its documents, None where nothing was found; a bound on the sum)."""
        highs = self._highspy.Highs()
        options = {"output_flag": False, "threads": 1, "parallel": "off", "random_seed": 0}
        options |= {"mip_rel_gap": 0.0, "mip_max_nodes": max_nodes}
        for option, value in options.items():
            highs.setOptionValue(option, value)
        highs.passModel(self._lp)
        highs.setSolution(len(self._start), np.arange(len(self._start), dtype=np.int32), self._start)
        highs.run()
        info = highs.getInfo()
        bound = info.mip_dual_bound * self._unit if np.isfinite(info.mip_dual_bound) else 0.0
        if not np.isfinite(info.objective_function_value):
            return None, bound
        values = np.array(highs.getSolution().col_value[: self._binaries]).reshape(self._num_documents, self._num_sets)
        if not np.array_equal((values > 0.5).sum(axis=1), np.ones(self._num_documents)):
            return None, bound
        return [np.flatnonzero(values[:, place] > 0.5).tolist() for place in range(self._num_sets)], bound

    def _to_lp(self, rows: Any, low: Any, high: Any) -> Any:
        lp = self._highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self._binaries + self._num_steps, len(low)
        lp.col_cost_ = np.repeat([0.0, 1.0], [self._binaries, self._num_steps])
        lp.col_lower_ = np.zeros(lp.num_col_)
        lp.col_upper_ = np.repeat([1.0, np.inf], [self._binaries, self._num_steps])
        lp.row_lower_, lp.row_upper_ = low, high
        kinds = self._highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger] * self._binaries + [kinds.kContinuous] * self._num_steps
        row, column, value = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        order = np.lexsort((row, column))
        lp.a_matrix_.format_ = self._highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = np.searchsorted(column[order], np.arange(lp.num_col_ + 1)).astype(np.int32)
        lp.a_matrix_.index_ = row[order].astype(np.int32)
        lp.a_matrix_.value_ = value[order]
        return lp


def _repeated(runs: list[tuple[float, int]]) -> Any:
    values, counts = zip(*runs, strict=True)
    return np.repeat(values, counts)


def _import_highs() -> Any:
    try:
        import highspy
    except ImportError:
        raise ValueError("wlb.packing 'solver' needs HiGHS: pip install 'titan-wlb[solver]'") from None
    return highspy

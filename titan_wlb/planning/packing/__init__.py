"""Which documents share a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from titan_wlb.planning.packing.fixed_length import FixedLength
from titan_wlb.planning.packing.karmarkar_karp import KarmarkarKarp
from titan_wlb.planning.packing.lookahead import Lookahead
from titan_wlb.planning.packing.original import Original
from titan_wlb.planning.packing.packer import PACKERS, Packer, Waiting
from titan_wlb.planning.packing.shaped import Shaped
from titan_wlb.planning.packing.solver import Solver
from titan_wlb.planning.packing.variable_length import VariableLength

if TYPE_CHECKING:
    from titan_wlb.planning.config import PlannerConfig

__all__ = ["PACKERS", "Packer", "Waiting", "build_packer"]


def build_packer(config: PlannerConfig, targets: Sequence[float] = ()) -> Packer:
    """The packer that ``config.packing`` names.

    Args:
        targets: of the micro-batches' work, largest first, where the layout's schedule has a shape of its own
            (``config.micro_batch_shape``, ``packing.shape``); (): all equal.

    Raises:
        ValueError: it needs an extra that is not installed.
    """
    packer = _build_packer(config, tuple(targets))
    if not targets or config.packing == "lookahead":  # which chooses a step's documents for the targets
        return packer
    return Shaped(packer, config.max_tokens, config.workload, targets)


def _build_packer(config: PlannerConfig, targets: tuple[float, ...]) -> Packer:
    num_micro_batches, context_window, workload = config.num_micro_batches, config.context_window, config.workload
    if config.packing == "original":
        return Original(num_micro_batches, context_window)
    if config.packing == "fixed_length":
        return FixedLength(num_micro_batches, context_window, config.packing_window, workload)
    if config.packing == "solver":
        return Solver(num_micro_batches, context_window, config.packing_window, workload)
    if config.packing == "karmarkar_karp":
        return KarmarkarKarp(num_micro_batches, context_window, config.max_tokens, workload)
    if config.packing == "lookahead":
        return Lookahead(
            num_micro_batches,
            context_window,
            config.max_tokens,
            workload,
            balance_tolerance=config.balance_tolerance_ppm / 1_000_000,
            max_age_iterations=config.max_age_iterations,
            steady_tokens=config.steady_tokens,
            targets=targets,
        )
    assert config.packing == "variable_length", config.packing
    return VariableLength(
        num_micro_batches,
        context_window,
        config.max_tokens,
        config.outlier_thresholds,
        workload,
        config.max_age_iterations,
    )

"""Which documents share a micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from titan_wlb.planning.packing.original import Original
from titan_wlb.planning.packing.packer import PACKERS, Packer, Waiting
from titan_wlb.planning.packing.variable_length import VariableLength

if TYPE_CHECKING:
    from titan_wlb.planning.config import PlannerConfig

__all__ = ["PACKERS", "Packer", "Waiting", "build_packer"]


def build_packer(config: PlannerConfig) -> Packer:
    """The packer that ``config.packing`` names."""
    if config.packing == "original":
        return Original(config.num_micro_batches, config.context_window)
    assert config.packing == "variable_length", config.packing
    return VariableLength(
        config.num_micro_batches,
        config.context_window,
        config.max_tokens,
        config.outlier_thresholds,
        config.workload,
    )

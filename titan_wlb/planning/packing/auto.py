"""A knob that a run leaves to its planner: tuned on a sample of its own lengths, for the packer that it names.

    wlb.outlier_thresholds = "auto"    tune_config(config, lengths, 0.5)    outlier_thresholds (49152, 88576)
    wlb.balance_tolerance = "auto"     tune_config(config, lengths, 0.5)    balance_tolerance_ppm 500

``tools/tune_thresholds.py`` shows what this chooses from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.config import PlannerConfig
from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import EpochOrder
from titan_wlb.planning.packing import Packer, build_packer
from titan_wlb.planning.packing.trials import Sample, Tried, Tuned
from titan_wlb.planning.packing.tuning import tune_thresholds, tune_tolerance

GLOBAL_BATCHES_SAMPLED = 60
MOST_MICRO_BATCHES = 64
TUNED_FIELDS = {"variable_length": "outlier_thresholds", "lookahead": "balance_tolerance_ppm"}


def tune_config(
    config: PlannerConfig,
    lengths: npt.NDArray[np.int64],
    max_delay_iterations: float,
    *,
    on_try: Callable[[Tried[Any]], None] | None = None,
) -> tuple[PlannerConfig, Tuned[Any]]:
    """The configuration with its packer's knob tuned, and all that was tried.

    Args:
        config: of ``variable_length`` or ``lookahead``; whatever else it says is kept, and tuned with.
        lengths: of the run's documents, as for ``sample_of``.
        max_delay_iterations: the limit on delay, in steps.
        on_try: hears of every trial, for a progress bar.

    Raises:
        ValueError: there is no document.
    """
    sample = sample_of(config, lengths)
    field = TUNED_FIELDS[config.packing]
    tried_with = replace(config, num_micro_batches=sample.num_micro_batches)

    def make(knob: Any) -> Packer:
        return build_packer(replace(tried_with, **{field: knob}))

    search: Callable[..., Tuned[Any]] = tune_thresholds if config.packing == "variable_length" else tune_tolerance
    tuned = search(sample, make, max_delay_iterations, on_try=on_try)
    return replace(config, **{field: tuned.best.knob}), tuned


def sample_of(config: PlannerConfig, lengths: npt.NDArray[np.int64]) -> Sample:
    """Up to 60 global batches of documents, drawn from all that are given.

    Balance and delay hardly change from 64 micro-batches on, since then every step looks like any other; so no more
    than that are packed, which keeps tuning to about half a minute of a core.

    Args:
        lengths: of an index or its first segment, tokens; every rank gives the same.

    Raises:
        ValueError: there is no document.
    """
    number = min(config.num_micro_batches, MOST_MICRO_BATCHES)
    tokens = min(GLOBAL_BATCHES_SAMPLED * number * config.context_window, int(lengths.sum()))
    return Sample(
        lengths=Intake(EpochOrder(KnownLengths(lengths), seed=0)).peek(tokens) if tokens else lengths,
        num_micro_batches=number,
        context_window=config.context_window,
        workload=config.workload,
    )

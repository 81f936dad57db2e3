"""What [wlb] says of packing: values that cannot be, files and extras that are missing."""

from __future__ import annotations

from collections.abc import Iterator

from titan_wlb.build import model_shape, planner_config
from titan_wlb.job_config import JobConfig
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.planning.kernel_file import read_kernel_profile
from titan_wlb.planning.packing import build_packer
from titan_wlb.planning.profile_file import read_profile
from titan_wlb.planning.workload import Workload
from titan_wlb.validate.layout import SCHEDULES

__all__ = ["packing_problems"]


def packing_problems(config: JobConfig) -> Iterator[str]:
    """For a configuration whose other sections are sound."""
    yield from _lengths(config)
    yield from _knobs(config)
    yield from _shape(config)
    try:
        build_packer(planner_config(config, Workload(0, 1, 1)))
        if config.wlb.profile:
            read_profile(config.wlb.profile).workload(model_shape(FLAVORS[config.model.flavor]))
            read_kernel_profile(config.wlb.profile)
    except ValueError as error:
        yield str(error)


def _lengths(config: JobConfig) -> Iterator[str]:
    thresholds, window = config.wlb.outlier_thresholds, config.training.seq_len
    if thresholds != "auto":
        if any(threshold < 1 for threshold in thresholds):
            yield f"wlb.outlier_thresholds = {thresholds} holds what is no length; use positive numbers of tokens"
        if thresholds != sorted(set(thresholds)):
            yield f"wlb.outlier_thresholds = {thresholds} does not ascend; write {sorted(set(thresholds))}"
        if thresholds and thresholds[-1] > window:
            yield (
                f"wlb.outlier_thresholds = {thresholds} goes beyond training.seq_len = {window}: no document is "
                "longer than that; lower it"
            )
    if config.wlb.max_tokens and config.wlb.max_tokens < window:
        yield (
            f"wlb.max_tokens = {config.wlb.max_tokens} is below training.seq_len = {window}: a document that fills "
            f"the window would never fit; use at least {window}, or 0 for {2 * window}"
        )


def _knobs(config: JobConfig) -> Iterator[str]:
    wlb = config.wlb
    if wlb.balance_tolerance != "auto" and not 0 <= wlb.balance_tolerance <= 1:
        yield f"wlb.balance_tolerance = {wlb.balance_tolerance} is not between 0 and 1; 0.001 is one per mille"
    if not wlb.max_delay_iterations > 0:
        yield f"wlb.max_delay_iterations = {wlb.max_delay_iterations} is no delay; use a number of steps above 0"


def _shape(config: JobConfig) -> Iterator[str]:
    parallelism = config.parallelism
    if config.wlb.micro_batch_shape == "equal":
        return
    if parallelism.pipeline_parallel_degree == 1:
        yield (
            'wlb.micro_batch_shape = "schedule" does nothing without a pipeline; use "equal", or raise '
            "parallelism.pipeline_parallel_degree"
        )
    if parallelism.pipeline_parallel_schedule not in SCHEDULES:
        yield (
            'wlb.micro_batch_shape = "schedule" knows no shape for parallelism.pipeline_parallel_schedule = '
            f"{parallelism.pipeline_parallel_schedule!r}; use one of {', '.join(SCHEDULES)}"
        )

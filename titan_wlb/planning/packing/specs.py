"""What a comparison is asked for in text: packers with their settings, and the cost of a document.

    variable_length,outlier_thresholds=32768:65536        a SPEC: name[,key=value...], list values joined by ":"
    0,1,1/24576                                           a document of d tokens costs d + d^2 / 24576

The keys are those of the training's [wlb] section.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor, log10
from typing import Any

from titan_wlb.planning.config import PlannerConfig
from titan_wlb.planning.packing import PACKERS, build_packer
from titan_wlb.planning.packing.auto import tune_config
from titan_wlb.planning.packing.compare import Job
from titan_wlb.planning.packing.variable_length import default_thresholds
from titan_wlb.planning.workload import Workload

MAX_DELAY = 0.5  # steps, where outlier_thresholds=auto stands without max_delay_iterations: the paper's
_AUTO = "auto"


def config_of_spec(spec: str, job: Job, on_try: Callable[[], None] = lambda: None) -> PlannerConfig:
    """What a SPEC asks for; thresholds and tolerances to be tuned are tuned on the warm-up's documents.

    Args:
        on_try: hears of every trial of a tuning.

    Raises:
        ValueError: a name, key or value is not valid; one line.
    """
    name, *settings = spec.split(",")
    if name not in PACKERS:
        raise ValueError(f"{spec!r}: no packer is called {name!r}; choose one of {', '.join(PACKERS)}")
    values: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in _READERS:
            raise ValueError(f"{spec!r}: {key!r} is no key that packing looks at; choose of {', '.join(_READERS)}")
        field, read, expected = _READERS[key]
        try:
            values[field] = read(text)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{spec!r}: {key} {text!r} must be {expected}") from None
    max_delay = values.pop("max_delay_iterations", None)
    thresholds = values.pop("outlier_thresholds", default_thresholds(job.context_window))
    config = PlannerConfig(
        packing=name,
        num_micro_batches=job.num_micro_batches,
        context_window=job.context_window,
        max_tokens=values.pop("max_tokens", job.max_tokens),
        outlier_thresholds=() if thresholds == _AUTO else thresholds,
        workload=job.workload,
        **values,
    )
    if config.micro_batch_shape == "schedule" and not job.schedule:
        raise ValueError(f"{spec!r}: micro_batch_shape=schedule needs --schedule and --pp")
    if max_delay is None and thresholds != _AUTO:
        build_packer(config)  # which refuses what is not installed
        return config
    return _tuned(spec, config, thresholds == _AUTO, "balance_tolerance_ppm" in values, max_delay, job, on_try)


def _tuned(
    spec: str,
    config: PlannerConfig,
    auto: bool,
    has_tolerance: bool,
    max_delay: float | None,
    job: Job,
    on_try: Callable[[], None],
) -> PlannerConfig:
    """With the knob of its packer tuned."""
    if (config.packing, auto, has_tolerance) not in (("variable_length", True, False), ("lookahead", False, False)):
        raise ValueError(
            f"{spec!r}: what is tuned to max_delay_iterations is variable_length's outlier_thresholds=auto, or "
            "lookahead's balance_tolerance where it is not given"
        )
    if not job.warmup:
        raise ValueError(f"{spec!r}: tuning looks at the global batches of --warmup and no others, and there are none")
    limit = MAX_DELAY if max_delay is None else max_delay
    return tune_config(config, job.lengths_of(0, job.warmup), limit, on_try=lambda _: on_try())[0]


def workload_of_text(text: str, context_window: int) -> Workload:
    """``A,B,C`` of A + B * d + C * d^2, in any unit: decimal numbers or fractions such as 1/24576.

    Scaled by a power of ten, so that whole numbers are exact enough: a document of W tokens costs at least 10^12.

    Raises:
        ValueError: these are no three numbers >= 0 of which one is positive.
    """
    try:
        constant, linear, quadratic = (float(Fraction(number)) for number in text.split(","))
        if min(constant, linear, quadratic) < 0:
            raise ValueError
        size = log10(constant + linear * context_window + quadratic * context_window**2)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"--cost {text!r} must be A,B,C, numbers >= 0 of which one is positive: 0,1,1/24576") from None
    return Workload.from_floats(constant, linear, quadratic, scale=10 ** max(12 - floor(size), 0))


def _thresholds(text: str) -> tuple[int, ...] | str:
    if text == _AUTO:
        return _AUTO
    return tuple(int(threshold) for threshold in text.split(":")) if text else ()


def _true_or_false(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _millionths(text: str) -> int:
    return round(Fraction(text) * 1_000_000)


def _delay(text: str) -> float:
    steps = float(text)
    if not steps >= 0:
        raise ValueError
    return steps


# key of [wlb] -> (field of PlannerConfig, how its text is read, what it has to be)
_READERS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "packing_window": ("packing_window", int, "a whole number of global batches"),
    "outlier_thresholds": ("outlier_thresholds", _thresholds, "whole numbers of tokens, joined by ':', or auto"),
    "max_tokens": ("max_tokens", int, "a whole number of tokens"),
    "max_delay_iterations": ("max_delay_iterations", _delay, "a number of steps"),
    "max_age_iterations": ("max_age_iterations", int, "a whole number of steps"),
    "balance_tolerance": ("balance_tolerance_ppm", _millionths, "a number from 0 to 1"),
    "steady_tokens": ("steady_tokens", _true_or_false, "true or false"),
    "max_rank_tokens": ("max_rank_tokens", int, "a whole number of tokens"),
    "micro_batch_shape": ("micro_batch_shape", str, "equal or schedule"),
}

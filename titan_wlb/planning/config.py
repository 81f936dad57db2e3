"""What a plan depends on, beside the documents' lengths and the layout (DP, CP)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from titan_wlb.planning.packing.packer import PACKERS
from titan_wlb.planning.packing.shape import MICRO_BATCH_SHAPES
from titan_wlb.planning.sharding import STRATEGIES
from titan_wlb.planning.workload import Workload

USER_KEYS = {
    "packing": "wlb.packing",
    "num_micro_batches": "training.global_batch_size",
    "context_window": "training.seq_len",
    "max_tokens": "wlb.max_tokens",
    "outlier_thresholds": "wlb.outlier_thresholds",
    "packing_window": "wlb.packing_window",
    "max_age_iterations": "wlb.max_age_iterations",
    "balance_tolerance_ppm": "wlb.balance_tolerance, in millionths",
    "steady_tokens": "wlb.steady_tokens",
    "micro_batch_shape": "wlb.micro_batch_shape",
    "workload": "cost model",
    "seed": "debug.seed",
}

_MILLION = 1_000_000
# (key, value of who does not set it, the packings that look at it)
_ONLY_OF = (
    ("packing_window", 1, ("fixed_length", "solver")),
    ("max_age_iterations", 0, ("variable_length", "lookahead")),
    ("steady_tokens", False, ("lookahead",)),
    ("micro_batch_shape", "equal", ("variable_length", "lookahead")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerConfig:
    """Everything that decides which documents are trained together.

    All of it but ``sharding`` and ``max_rank_tokens`` is part of the planner's state and stays in force on resume.

    Args:
        packing: one of ``PACKERS``.
        num_micro_batches: N, per optimizer step of the whole job.
        context_window: W, tokens; the longest piece of a document that attends to itself.
        max_tokens: hard cap on the real tokens of a micro-batch; ``original``, ``fixed_length`` and ``solver`` do not
            look at it and fill up to W.
        outlier_thresholds: of ``variable_length``: rising lengths in tokens, a queue each; () delays nothing.
        packing_window: of ``fixed_length`` and ``solver``: global batches that are packed together.
        max_age_iterations: of ``variable_length`` and ``lookahead``: steps after which a document is trained although
            it unbalances the step; 0: any number.
        balance_tolerance_ppm: of ``lookahead``: at which rate balance is given for delay (no bound on a single step),
            in millionths, whole numbers so that the state is exact.
        steady_tokens: of ``lookahead``: whether the intake keeps the tokens per step constant.
        micro_batch_shape: of ``variable_length`` and ``lookahead``: one of ``MICRO_BATCH_SHAPES``; "schedule": works
            for which the pipelines' schedule takes the least time, and which another layout changes.
        workload: what a document costs.
        max_rank_tokens: real tokens that a DP rank may get in a step; balance of work is given up for it as far as
            exchanging micro-batches gets there, which moves no document to another step; 0: any number.
        seed: of the order in which documents are drawn.
        sharding: one of ``STRATEGIES``.

    Raises:
        ValueError: a value is not valid; one line with the key as users write it, the value and what is allowed.
    """

    packing: str
    num_micro_batches: int
    context_window: int
    max_tokens: int
    workload: Workload
    outlier_thresholds: tuple[int, ...] = ()
    packing_window: int = 1
    max_age_iterations: int = 0
    balance_tolerance_ppm: int = 1000
    steady_tokens: bool = False
    micro_batch_shape: str = "equal"
    max_rank_tokens: int = 0
    seed: int = 0
    sharding: str = "per_document"

    def __post_init__(self) -> None:
        if self.packing not in PACKERS:
            raise ValueError(f"wlb.packing {self.packing!r} must be one of {', '.join(PACKERS)}")
        if self.sharding not in STRATEGIES:
            raise ValueError(f"wlb.sharding {self.sharding!r} must be one of {', '.join(STRATEGIES)}")
        if self.num_micro_batches < 1:
            raise ValueError(f"training.global_batch_size {self.num_micro_batches} must be at least 1")
        if self.context_window < 1:
            raise ValueError(f"training.seq_len {self.context_window} must be at least 1")
        if self.max_tokens < self.context_window:
            raise ValueError(
                f"wlb.max_tokens {self.max_tokens} must be at least training.seq_len {self.context_window}"
            )
        rising = (0, *self.outlier_thresholds)
        if any(low >= high for low, high in pairwise(rising)) or rising[-1] > self.context_window:
            raise ValueError(
                f"wlb.outlier_thresholds {list(self.outlier_thresholds)} must rise, "
                f"from 1 to at most training.seq_len {self.context_window}"
            )
        if self.packing_window < 1:
            raise ValueError(f"wlb.packing_window {self.packing_window} must be at least 1")
        if self.max_age_iterations < 0:
            raise ValueError(f"wlb.max_age_iterations {self.max_age_iterations} must be at least 1, or 0 for no bound")
        if not 0 <= self.balance_tolerance_ppm <= _MILLION:
            raise ValueError(f"wlb.balance_tolerance {self.balance_tolerance_ppm / _MILLION} must be between 0 and 1")
        if self.micro_batch_shape not in MICRO_BATCH_SHAPES:
            raise ValueError(
                f"wlb.micro_batch_shape {self.micro_batch_shape!r} must be one of {', '.join(MICRO_BATCH_SHAPES)}"
            )
        if self.max_rank_tokens < 0:
            raise ValueError(f"wlb.max_rank_tokens {self.max_rank_tokens} must be at least 1, or 0 for any number")
        if self.max_rank_tokens and self.micro_batch_shape == "schedule":
            raise ValueError(
                f"wlb.max_rank_tokens {self.max_rank_tokens} cannot be kept with wlb.micro_batch_shape 'schedule', "
                "which decides what a rank runs: leave one of them out"
            )
        for key, unset, packings in _ONLY_OF:
            if getattr(self, key) != unset and self.packing not in packings:
                raise ValueError(
                    f"wlb.{key} {getattr(self, key)} does nothing with wlb.packing {self.packing!r}: leave it out, or "
                    f"choose {' or '.join(packings)}"
                )

    def packed_by(self, packing: str) -> PlannerConfig:
        """The same job under another packing, without what that does not look at."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return of_packing(**values | {"packing": packing})

    def to_json(self) -> dict[str, Any]:
        """What stays in force on resume, as plain JSON values."""
        return {
            "packing": self.packing,
            "num_micro_batches": self.num_micro_batches,
            "context_window": self.context_window,
            "max_tokens": self.max_tokens,
            "outlier_thresholds": list(self.outlier_thresholds),
            "packing_window": self.packing_window,
            "max_age_iterations": self.max_age_iterations,
            "balance_tolerance_ppm": self.balance_tolerance_ppm,
            "steady_tokens": self.steady_tokens,
            "micro_batch_shape": self.micro_batch_shape,
            "workload": self.workload.to_json(),
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], *, sharding: str, max_rank_tokens: int = 0) -> PlannerConfig:
        """What ``to_json`` gave, with what the present run says of the rest."""
        return cls(
            **{
                **values,
                "outlier_thresholds": tuple(values["outlier_thresholds"]),
                "workload": Workload.from_json(values["workload"]),
            },
            sharding=sharding,
            max_rank_tokens=max_rank_tokens,
        )


def of_packing(packing: str, **values: Any) -> PlannerConfig:
    """A configuration without those of ``values`` that the packing does not look at: baselines need no other flags."""
    ignored = {key for key, _, packings in _ONLY_OF if packing not in packings}
    return PlannerConfig(packing=packing, **{key: value for key, value in values.items() if key not in ignored})

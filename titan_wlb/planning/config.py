"""What a plan depends on, beside the documents' lengths and the layout (DP, CP)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from titan_wlb.planning.packing.packer import PACKERS
from titan_wlb.planning.sharding import STRATEGIES
from titan_wlb.planning.workload import Workload

USER_KEYS = {
    "packing": "wlb.packing",
    "num_micro_batches": "training.global_batch_size",
    "context_window": "training.seq_len",
    "max_tokens": "wlb.max_tokens",
    "outlier_thresholds": "wlb.outlier_thresholds",
    "workload": "cost model",
    "seed": "debug.seed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerConfig:
    """Everything that decides which documents are trained together.

    All of it but ``sharding`` is part of the planner's state and stays in force on resume.

    Args:
        packing: one of ``PACKERS``.
        num_micro_batches: N, per optimizer step of the whole job.
        context_window: W, tokens; the longest piece of a document that attends to itself.
        max_tokens: hard cap on the real tokens of a micro-batch; ``original`` fills W and does not look at it.
        outlier_thresholds: rising lengths in tokens, a queue each; () delays nothing.
        workload: what a document costs.
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

    def to_json(self) -> dict[str, Any]:
        """What stays in force on resume, as plain JSON values."""
        return {
            "packing": self.packing,
            "num_micro_batches": self.num_micro_batches,
            "context_window": self.context_window,
            "max_tokens": self.max_tokens,
            "outlier_thresholds": list(self.outlier_thresholds),
            "workload": self.workload.to_json(),
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], *, sharding: str) -> PlannerConfig:
        """What ``to_json`` gave, with the sharding of the present run."""
        return cls(
            **{
                **values,
                "outlier_thresholds": tuple(values["outlier_thresholds"]),
                "workload": Workload.from_json(values["workload"]),
            },
            sharding=sharding,
        )

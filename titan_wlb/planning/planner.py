"""The whole method as one object: lengths in, a ``StepPlan`` per step out, the same on every rank.

planner = Planner(KnownLengths(lengths), config, dp=2, cp=4)
plan = planner.plan()             # step 1: intake -> packer -> dealing -> shards
...                               # later, in another process and perhaps on another layout:
planner = Planner(KnownLengths(lengths), config, dp=4, cp=1)
planner.restore(plan.state)
planner.plan()                    # step 2, with the micro-batches that the first run would have had
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from titan_wlb.planning.config import USER_KEYS, PlannerConfig
from titan_wlb.planning.digest import digest_of_plan, digest_of_values
from titan_wlb.planning.intake import Intake
from titan_wlb.planning.lengths import LengthSource, OpenedSegments
from titan_wlb.planning.order import EpochOrder
from titan_wlb.planning.packing import Waiting, build_packer
from titan_wlb.planning.packing.dealing import deal
from titan_wlb.planning.packing.shape import Shape, build_shape
from titan_wlb.planning.plan import MicroBatch, Segment, StepPlan
from titan_wlb.planning.sharding import LatencyModel, shard
from titan_wlb.planning.timeline.works import step_time_over_balanced

__all__ = ["Pipeline", "Planner", "PlannerConfig", "differences"]

_VERSION = 2


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What runs a DP rank's micro-batches.

    Args:
        schedule: of ``parallelism.pipeline_parallel_schedule``.
        ranks: PP; 1 is no pipeline.
        virtual_stages: stages of each rank.
    """

    schedule: str = "1F1B"
    ranks: int = 1
    virtual_stages: int = 1

    def shape(self, config: PlannerConfig, dp: int) -> Shape | None:
        """What its schedule wants of a step's micro-batches; None where they are to be equal."""
        if config.micro_batch_shape == "equal" or self.ranks == 1:
            return None
        number = config.num_micro_batches
        return build_shape("schedule", self.schedule, self.ranks, dp, number, self.virtual_stages)

    @property
    def in_flight(self) -> int:
        """Micro-batches that its first rank has run forward and not yet backward, at most; 0: all of a step."""
        return self.ranks if self.schedule == "1F1B" or self.ranks == 1 else 0

    def step_time_over_balanced(self, plan: StepPlan) -> float:
        """Predicted time of a step over that of the same work spread equally over all micro-batches."""
        dp = max(plan.dp_ranks) + 1
        works = [[float(plan.micro_batches[place].cost) for place in plan.of_dp_rank(rank)] for rank in range(dp)]
        return step_time_over_balanced(works, self.schedule, self.ranks, virtual_stages=self.virtual_stages)


class Planner:
    """Plans step after step, without end: epochs follow one another.

    Args:
        lengths: of the index's documents. The planner waits where it still grows: here for its first segment.
        config: what the plan depends on.
        dp: data-parallel ranks (dp_replicate x dp_shard); divides N.
        cp: context-parallel ranks.
        pipeline: that each DP rank's micro-batches run through; plans depend on it, and on ``dp``, where
            ``config.micro_batch_shape`` is "schedule".
        latency: of the attention kernel, where ``config.sharding`` looks at it.

    Attributes:
        config: what is in force; after ``restore`` that of the checkpoint, but for ``sharding`` and
            ``max_rank_tokens``.
        step: the step planned last; 0 before the first.
        state: bytes to continue from: after the last plan, or from the beginning. Independent of the layout.
        digest: hash of all that was planned; before the first plan of config, index and layout. After ``restore`` the
            chain starts anew from the state.

    Raises:
        ValueError: there is no document, N does not divide by ``dp``, or the packer needs an extra that is missing.
    """

    def __init__(
        self,
        lengths: LengthSource,
        config: PlannerConfig,
        *,
        dp: int,
        cp: int,
        pipeline: Pipeline = Pipeline(),
        latency: LatencyModel | None = None,
    ) -> None:
        self._lengths = lengths
        self._dp, self._cp, self._pipeline, self._latency = dp, cp, pipeline, latency
        self._start(config)
        self.state = self._to_bytes()
        self.digest = self._first_digest()

    def plan(self) -> StepPlan:
        """The next step. Advances ``state`` and ``digest``."""
        config = self.config
        self.step += 1
        packed, arrived = self._pack()
        micro_batches = tuple(
            MicroBatch(segments, config.workload.costs(segment.length for segment in segments)) for segments in packed
        )
        micro_batches, dp_ranks = deal(config.packing, micro_batches, self._dp, self._shape, config.max_rank_tokens)
        trained = [segment for segments in packed for segment in segments]
        waiting = list(self._waiting)
        self.state = self._to_bytes()
        plan = StepPlan(
            step=self.step,
            epoch=self._intake.epoch,
            micro_batches=micro_batches,
            dp_ranks=dp_ranks,
            shards=tuple(
                shard(config.sharding, micro_batch.lengths, self._cp, self._latency) for micro_batch in micro_batches
            ),
            num_labels=sum(segment.num_labels for segment in trained),
            arrived=arrived,
            waiting_documents=len({segment.document for segment in waiting}),
            waiting_tokens=sum(segment.length for segment in waiting),
            delay_trained=sum(segment.length * (self.step - segment.document.arrival) for segment in trained),
            oldest_waiting=max(self.step - segment.document.arrival for segment in trained + waiting),
            digest="",
            state=self.state,
        )
        self.digest = digest_of_plan(self.digest, plan)
        return replace(plan, digest=self.digest)

    def restore(self, state: bytes) -> None:
        """Continues after the step whose plan carried ``state``, whatever the layout of the run that planned it.

        What of the configuration is inside the state stays in force; ``differences`` tells what is not as configured.

        Raises:
            ValueError: it is no state of ours, is of another index, or its N does not divide by ``dp``.
        """
        values = _parse(state)
        sharding, max_rank_tokens = self.config.sharding, self.config.max_rank_tokens
        self._start(PlannerConfig.from_json(values["config"], sharding=sharding, max_rank_tokens=max_rank_tokens))
        number, digest = values["index"]
        while self._index.number < number and self._index.segment(self._index.number) is not None:
            pass
        if [self._index.number, self._index.digest] != [number, digest]:
            raise ValueError(
                "the checkpoint's data position belongs to another document index: resume with the dataset, the "
                "tokenizer and the wlb.segment_tokens that it was trained on"
            )
        self.step = int(values["step"])
        self._intake.set_state(values["intake"])
        self._waiting = Waiting.from_json(values["waiting"])
        self.state = self._to_bytes()
        self.digest = self._first_digest()

    def _start(self, config: PlannerConfig) -> None:
        """Before the first step under ``config``."""
        if self._dp < 1 or config.num_micro_batches % self._dp:
            raise ValueError(
                f"training.global_batch_size {config.num_micro_batches} must be a multiple of the {self._dp} "
                f"data-parallel ranks"
            )
        self.config = config
        self._shape = self._pipeline.shape(config, self._dp)
        self._packer = build_packer(config, self._shape.targets if self._shape is not None else ())
        self.step = 0
        self._index: OpenedSegments = OpenedSegments(self._lengths)
        self._intake: Intake = Intake(EpochOrder(self._index, config.seed))
        assert not self._intake.exhausted, "epochs have no end"  # which looks at the first segment, for the digest
        self._waiting = self._packer.empty()

    def _pack(self) -> tuple[list[tuple[Segment, ...]], int]:
        """(the step's micro-batches, how many documents the intake drew for them)."""
        self._intake.step = self.step
        before = self._intake.num_drawn
        packed, self._waiting = self._packer.pack(self._waiting, self._intake)
        assert all(packed), "an empty micro-batch"
        return packed, self._intake.num_drawn - before

    def _to_bytes(self) -> bytes:
        values = {
            "version": _VERSION,
            "config": self.config.to_json(),
            "index": [self._index.number, self._index.digest],
            "step": self.step,
            "intake": list(self._intake.state()),
            "waiting": self._waiting.to_json(),
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")

    def _first_digest(self) -> str:
        config = self.config
        layout = (config.sharding, config.max_rank_tokens, self._dp, self._cp)
        predicting = () if self._latency is None else (repr(self._latency),)
        return digest_of_values(self.state.decode("ascii"), *layout, *predicting)


def differences(state: bytes, config: PlannerConfig) -> list[str]:
    """What of a checkpoint's configuration stays in force although ``config`` says something else, a line each.

    Raises:
        ValueError: ``state`` is no state of ours.
    """
    saved, current = _parse(state)["config"], config.to_json()
    return [
        f"{USER_KEYS[key]}: {saved[key]} in the checkpoint stays in force, {current[key]} is not used"
        for key in current
        if saved[key] != current[key]
    ]


def _parse(state: bytes) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(state)
        version = values["version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("the checkpoint holds no data position of this program") from None
    if version != _VERSION:
        raise ValueError(f"the checkpoint's data position has version {version}, this program reads {_VERSION}")
    return values

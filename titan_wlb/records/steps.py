"""What a step measured: the schema that clocks, writers, reports and the TensorBoard plugin share. Never imports torch.

    Section      a stretch of one rank's step, from one mark of the clock to the next, split by what the rank did
    StepTimes    one rank's step: its sections, and how long each collective was exposed
    StepRecord   StepTimes with the rank's place in the job and the collectives' waiting told from their transfer

The definition of compute and idle (ours; the paper reports latencies only). All times are milliseconds:

    wall    = compute + starved + pipeline + cp + fsdp + data + other
    idle    = pipeline + cp + fsdp + data
    blocked is a part of compute: neither on the core nor waiting for it. TP collectives count as compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

COMPUTE, BLOCKED, STARVED, PIPELINE, CP, FSDP, DATA, OTHER = range(8)
TIMES = ("compute", "blocked", "starved", "pipeline", "cp", "fsdp", "data", "other")
WAITS = ("pipeline", "cp", "fsdp", "data", "other")  # what a clock's wait() accepts
IDLE = ("pipeline", "cp", "fsdp", "data")
COLLECTIVE_GROUPS = ("cp", "fsdp", "dp_replicate")  # over which of them a collective can run
KINDS = ("head", "F", "B", "W", "R", "norm", "tail")  # before the first action, the pipeline's actions, the rest


@dataclass(frozen=True)
class Layout:
    """Degrees of the job's axes; ranks are numbered as TorchTitan does: [pp, dp, cp, tp], tp innermost.

        Layout(pp=2, dp=1, cp=2, tp=1)    rank 3 is stage rank 1, CP rank 1

    Args:
        dp: dp_replicate x dp_shard.
    """

    pp: int = 1
    dp: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def size(self) -> int:
        """Ranks of the job."""
        return self.pp * self.dp * self.cp * self.tp

    def coordinates(self, rank: int) -> tuple[int, int, int, int]:
        """(pp_rank, dp_rank, cp_rank, tp_rank) of a global rank."""
        rest, tp_rank = divmod(rank, self.tp)
        rest, cp_rank = divmod(rest, self.cp)
        pp_rank, dp_rank = divmod(rest, self.dp)
        return pp_rank, dp_rank, cp_rank, tp_rank


@dataclass(frozen=True)
class Section:
    """What a rank did between two marks.

    Args:
        kind: one of ``KINDS``: F, B, W forward, backward and its weight part, R gradient reduction; head, norm, tail.
        stage: pipeline stage; -1 for head, norm and tail.
        micro_batch: place in the order in which this DP rank runs them; -1 where there is none.
        start_ms: from the beginning of the step.
        times_ms: per name of ``TIMES``; blocked lies inside compute.
    """

    kind: str
    stage: int
    micro_batch: int
    start_ms: float
    times_ms: tuple[float, ...]

    @property
    def wall_ms(self) -> float:
        """From this mark to the next."""
        return sum(self.times_ms) - self.times_ms[BLOCKED]


@dataclass(frozen=True)
class Totals:
    """Sums over several steps of one rank.

    Args:
        steps: how many.
        times_ms: per name of ``TIMES``.
    """

    steps: int = 0
    times_ms: tuple[float, ...] = (0.0,) * len(TIMES)

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.steps + other.steps, tuple(a + b for a, b in zip(self.times_ms, other.times_ms, strict=True))
        )

    def mean(self, name: str) -> float:
        """Milliseconds per step of one name of ``TIMES``, of "idle" or of "wall"."""
        return _named(self.times_ms, name) / max(self.steps, 1)


@dataclass(frozen=True)
class StepTimes:
    """One rank's step.

    Args:
        step: from 1.
        sections: what it consists of, gapless and in order.
        collectives_ms: per name of ``COLLECTIVE_GROUPS`` the exposed time of each collective, in order.
        totals: sums over the steps since the previous reading of the clock, this one included, without the first two
            steps of the process (they compile, allocate and connect).
    """

    step: int
    sections: tuple[Section, ...]
    collectives_ms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)

    @property
    def times_ms(self) -> tuple[float, ...]:
        """Sums over the sections, per name of ``TIMES``."""
        return tuple(sum(section.times_ms[i] for section in self.sections) for i in range(len(TIMES)))

    def ms(self, name: str) -> float:
        """Milliseconds of one name of ``TIMES``, of "idle" or of "wall"."""
        return _named(self.times_ms, name)


@dataclass(frozen=True)
class StepRecord:
    """One rank's step among all ranks.

    Args:
        rank: global.
        times: what its clock measured; its ``collectives_ms`` are empty, since they did not travel.
        cp_transfer_ms: the part of cp that every rank of the CP group spent at least, summed per collective; the rest
            of cp is waiting for the group's last rank.
        fsdp_transfer_ms: the same for fsdp, over the FSDP group (and for HSDP's all-reduce over the replicas).
    """

    rank: int
    times: StepTimes
    cp_transfer_ms: float = 0.0
    fsdp_transfer_ms: float = 0.0

    def ms(self, name: str) -> float:
        """Milliseconds of one name of ``TIMES``, "idle", "wall", or <cp|fsdp>_<transfer|waiting>."""
        category, _, part = name.partition("_")
        if not part:
            return self.times.ms(name)
        transfer = {"cp": self.cp_transfer_ms, "fsdp": self.fsdp_transfer_ms}[category]
        return transfer if part == "transfer" else max(self.times.ms(category) - transfer, 0.0)


def idle_share(records: Iterable[StepRecord]) -> float:
    """Idle time of all ranks / wall time of all ranks."""
    records = list(records)
    return sum(record.ms("idle") for record in records) / max(sum(record.ms("wall") for record in records), 1e-9)


def micro_batch_compute_ms(records: Iterable[StepRecord], layout: Layout) -> dict[tuple[int, int], float]:
    """Forward and backward compute of each micro-batch, mean over the ranks of its pipeline.

    Returns:
        (dp_rank, place in the order in which the DP rank runs them) -> ms.
    """
    ranks = layout.pp * layout.cp * layout.tp
    sums: dict[tuple[int, int], float] = {}
    for record in records:
        dp_rank = layout.coordinates(record.rank)[1]
        for section in record.times.sections:
            if section.kind in ("F", "B", "W") and section.micro_batch >= 0:
                key = dp_rank, section.micro_batch
                sums[key] = sums.get(key, 0.0) + section.times_ms[COMPUTE] / ranks
    return sums


@dataclass(frozen=True)
class MicroBatchCost:
    """What a micro-batch was to cost and what it cost, per rank of its pipeline.

    Args:
        dp_rank: that ran it.
        place: in the order in which the DP rank runs them.
        predicted_ms: by the cost model, spread over the ranks.
        measured_ms: forward and backward compute, mean over the ranks.
    """

    dp_rank: int
    place: int
    predicted_ms: float
    measured_ms: float


def micro_batch_costs(
    records: Iterable[StepRecord], layout: Layout, predicted_ms: Mapping[tuple[int, int], float]
) -> list[MicroBatchCost]:
    """Predicted beside measured.

    Args:
        predicted_ms: (dp_rank, place) -> what the cost model gives one rank of the pipeline.
    """
    measured = micro_batch_compute_ms(records, layout)
    return [MicroBatchCost(*key, predicted_ms[key], measured[key]) for key in sorted(measured)]


def cost_scale(costs: Sequence[MicroBatchCost]) -> float:
    """Measured over predicted, of a step's micro-batches together; 1.0 without any."""
    predicted = sum(cost.predicted_ms for cost in costs)
    return sum(cost.measured_ms for cost in costs) / predicted if predicted > 0 else 1.0


def cost_error(costs: Sequence[MicroBatchCost]) -> float:
    """Mean over micro-batches of |predicted / measured - 1|, the predictions scaled so that their sum is right.

    A plan depends on the ratio of costs alone, so that the scale does not matter to it; this error does.
    """
    scale = cost_scale(costs)
    errors = [abs(scale * cost.predicted_ms / cost.measured_ms - 1) for cost in costs if cost.measured_ms > 0]
    return sum(errors) / max(len(errors), 1)


def measured_imbalance_degree(records: Iterable[StepRecord], layout: Layout) -> float:
    """N x largest / sum over the measured work of the step's micro-batches (paper, Table 2); 1.0 without any."""
    work = list(micro_batch_compute_ms(records, layout).values())
    return len(work) * max(work) / sum(work) if work and sum(work) > 0 else 1.0


def pack(record: StepRecord) -> list[float]:
    """A record as plain numbers, to travel between ranks: a header of 14, then 12 per section."""
    times = record.times
    row: list[float] = [record.rank, times.step, len(times.sections), record.cp_transfer_ms, record.fsdp_transfer_ms]
    row += [times.totals.steps, *times.totals.times_ms]
    for section in times.sections:
        row += [KINDS.index(section.kind), section.stage, section.micro_batch, section.start_ms, *section.times_ms]
    return row


def packed_size(num_sections: int) -> int:
    """Numbers that ``pack`` gives for a step of so many sections."""
    return 6 + len(TIMES) + num_sections * (4 + len(TIMES))


def unpack(row: Sequence[float]) -> StepRecord:
    """The record that ``pack`` packed; numbers behind it are padding."""
    rank, step, num_sections = (int(value) for value in row[:3])
    totals = Totals(int(row[5]), tuple(row[6 : 6 + len(TIMES)]))
    sections = []
    for i in range(num_sections):
        kind, stage, micro_batch, start_ms, *times_ms = row[packed_size(i) : packed_size(i + 1)]
        sections.append(Section(KINDS[int(kind)], int(stage), int(micro_batch), start_ms, tuple(times_ms)))
    return StepRecord(rank, StepTimes(step, tuple(sections), {}, totals), row[3], row[4])


def to_json(record: StepRecord) -> dict[str, Any]:
    """A record for a JSON line, times in ms rounded to a microsecond."""
    return {
        "rank": record.rank,
        **{f"{name}_ms": round(record.ms(name), 3) for name in ("wall", "idle", *TIMES)},
        "cp_transfer_ms": round(record.cp_transfer_ms, 3),
        "fsdp_transfer_ms": round(record.fsdp_transfer_ms, 3),
        "sections": [
            [s.kind, s.stage, s.micro_batch, round(s.start_ms, 3), *(round(ms, 3) for ms in s.times_ms)]
            for s in record.times.sections
        ],
    }


def from_json(line: Mapping[str, Any], step: int) -> StepRecord:
    """The record of a rank's object in a JSON line; totals do not travel."""
    sections = tuple(
        Section(kind, stage, micro_batch, start_ms, tuple(times_ms))
        for kind, stage, micro_batch, start_ms, *times_ms in line["sections"]
    )
    return StepRecord(line["rank"], StepTimes(step, sections), line["cp_transfer_ms"], line["fsdp_transfer_ms"])


def _named(times_ms: Sequence[float], name: str) -> float:
    if name == "wall":
        return sum(times_ms) - times_ms[BLOCKED]
    if name == "idle":
        return sum(times_ms[TIMES.index(category)] for category in IDLE)
    value = times_ms[TIMES.index(name)]
    return max(value, 0.0) if name == "blocked" else value

"""In which order each rank of a pipeline runs its forwards and backwards: the schedules of torch, as lists.

    1F1B, 3 ranks, 4 micro-batches                  Interleaved1F1B, 2 ranks of 2 stages, 2 micro-batches

    rank 0    F0 F1 F2 B0 F3 B1 B2 B3               stages 0, 2    F0 F1 F0'F1'B0'B1'B0 B1
    rank 1    F0 F1 B0 F2 B1 F3 B2 B3               stages 1, 3    F0 F1 F0'B0'F1'B1'B0 B1
    rank 2    F0 B0 F1 B1 F2 B2 F3 B3

Source: torch.distributed.pipelining.schedules of torch 2.13, whose orders a test compares with these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B")  # as parallelism.pipeline_parallel_schedule names them


class Action(NamedTuple):
    """What a pipeline rank computes at once.

    Args:
        kind: "F" or "B", forward or (full) backward.
        stage: of all stages of the model, from 0; rank ``stage % pp`` runs it.
        micro_batch: place in the pipeline's micro-batches, from 0.
    """

    kind: str
    stage: int
    micro_batch: int


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """What every rank of a pipeline runs. ``build_schedule`` makes it, one object for each set of arguments.

    Args:
        name: one of ``SCHEDULES``.
        pp: ranks.
        virtual_stages: stages of each rank; rank r has r, r + pp, r + 2 pp, ...
        num_micro_batches: of the pipeline in a step, N / DP.
        ranks: per rank its actions, in the order in which it runs them.
    """

    name: str
    pp: int
    virtual_stages: int
    num_micro_batches: int
    ranks: tuple[tuple[Action, ...], ...]

    @property
    def num_stages(self) -> int:
        """Stages of the model."""
        return self.pp * self.virtual_stages


@lru_cache(maxsize=64)
def build_schedule(name: str, pp: int, num_micro_batches: int, virtual_stages: int | None = None) -> Schedule:
    """A schedule of torch.

    Args:
        name: one of ``SCHEDULES``.
        pp: pipeline ranks.
        num_micro_batches: of the pipeline in a step.
        virtual_stages: stages of each rank; by default 2 for Interleaved1F1B, as in TorchTitan, and 1 for the others.

    Raises:
        ValueError: there is no such schedule, or torch cannot run it with these numbers.
    """
    if virtual_stages is None:
        virtual_stages = 2 if name == "Interleaved1F1B" else 1
    _check(name, pp, num_micro_batches, virtual_stages)
    ranks = tuple(tuple(_actions(name, rank, pp, num_micro_batches, virtual_stages)) for rank in range(pp))
    return Schedule(name, pp, virtual_stages, num_micro_batches, ranks)


def _check(name: str, pp: int, num_micro_batches: int, virtual_stages: int) -> None:
    if name not in SCHEDULES:
        raise ValueError(f"no schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    if min(pp, num_micro_batches, virtual_stages) < 1:
        raise ValueError(
            f"{name} of {pp} ranks, {num_micro_batches} micro-batches and {virtual_stages} stages a rank: "
            "each must be at least 1"
        )
    if name != "Interleaved1F1B" and virtual_stages != 1:
        raise ValueError(f"{name} has one stage on each rank, not {virtual_stages}")
    if name == "1F1B" and num_micro_batches < pp:
        raise ValueError(f"1F1B of {pp} ranks needs at least {pp} micro-batches, not {num_micro_batches}")
    rounds = max(1, num_micro_batches // pp)
    if name == "Interleaved1F1B" and num_micro_batches % rounds:
        raise ValueError(f"Interleaved1F1B cannot run {num_micro_batches} micro-batches in {rounds} equal rounds")


def _actions(name: str, rank: int, pp: int, num_micro_batches: int, virtual_stages: int) -> Iterator[Action]:
    """Of one rank: forwards until it is warm, then forward and backward in turn, then the backwards that remain."""
    in_all = num_micro_batches * virtual_stages
    if name == "GPipe":
        warm, per_round = in_all, num_micro_batches
    elif name == "1F1B":
        warm, per_round = pp - 1 - rank, num_micro_batches
    else:
        per_round = num_micro_batches // max(1, num_micro_batches // pp)
        warm = min((virtual_stages - 1) * per_round + 2 * (pp - 1 - rank), in_all)
    forwards = _visits(range(virtual_stages), num_micro_batches, per_round)
    backwards = _visits(range(virtual_stages)[::-1], num_micro_batches, per_round)
    for number in range(in_all + warm):
        if number < in_all:
            virtual, micro_batch = forwards[number]
            yield Action("F", virtual * pp + rank, micro_batch)
        if number >= warm:
            virtual, micro_batch = backwards[number - warm]
            yield Action("B", virtual * pp + rank, micro_batch)


def _visits(virtual_stages: range, num_micro_batches: int, per_round: int) -> list[tuple[int, int]]:
    """(virtual stage, micro-batch): a round's micro-batches through each stage in turn, then the next round's."""
    return [
        (virtual, micro_batch)
        for first in range(0, num_micro_batches, per_round)
        for virtual in virtual_stages
        for micro_batch in range(first, first + per_round)
    ]

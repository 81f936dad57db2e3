"""Transfer told from waiting: what a collective cost the rank that was exposed to it least; the rest is waiting.

    two CP ranks, two collectives of 2 ms each; rank 1 is late for the first, rank 0 for the second

    rank 0 exposed    52   2          transfer 2 + 2 = 4, waiting 50
    rank 1 exposed     2  42          transfer 4, waiting 40

The least is taken per collective, not of a step's sums (which would call 40 of these ms transfer). Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from titan_wlb.records.steps import COLLECTIVE_GROUPS, Layout, StepRecord


def with_transfer(records: Sequence[StepRecord], layout: Layout, dp_shard: int) -> list[StepRecord]:
    """The same records with their transfer times, and without the single collectives.

    Collectives are matched by their order. Where ranks of a group counted differently (none does, unless one of them
    recomputes what the others keep), those behind the shortest count are taken for waiting.

    Args:
        records: of all ranks, in the order of ranks, with their ``times.collectives_ms``.
        layout: of the job.
        dp_shard: how many of the DP ranks share one copy of the parameters; the rest of DP are replicas.
    """
    transfer_ms = {name: [0.0] * len(records) for name in COLLECTIVE_GROUPS}
    for name in COLLECTIVE_GROUPS:
        for ranks in collective_groups(layout, dp_shard, name):
            exposed = [records[rank].times.collectives_ms.get(name, ()) for rank in ranks]
            least = sum(map(min, zip(*exposed, strict=False)))  # as many as the shortest has
            for rank in ranks:
                transfer_ms[name][rank] = least
    return [
        replace(
            record,
            times=replace(record.times, collectives_ms={}),
            cp_transfer_ms=transfer_ms["cp"][rank],
            fsdp_transfer_ms=transfer_ms["fsdp"][rank] + transfer_ms["dp_replicate"][rank],
        )
        for rank, record in enumerate(records)
    ]


def collective_groups(layout: Layout, dp_shard: int, name: str) -> list[list[int]]:
    """The ranks that meet in a collective, group by group.

        pp 1, dp 2 (both shard), cp 2, tp 1        cp: [0, 1] [2, 3]        fsdp: [0, 1, 2, 3]

    Args:
        layout: of the job.
        dp_shard: as for ``with_transfer``.
        name: of ``COLLECTIVE_GROUPS``; TorchTitan's FSDP mesh is dp_shard x cp.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank in range(layout.size):
        pp_rank, dp_rank, cp_rank, tp_rank = layout.coordinates(rank)
        replica, shard = divmod(dp_rank, dp_shard)
        key = {
            "cp": (pp_rank, dp_rank, tp_rank),
            "fsdp": (pp_rank, replica, tp_rank),
            "dp_replicate": (pp_rank, shard, cp_rank, tp_rank),
        }[name]
        groups.setdefault(key, []).append(rank)
    return list(groups.values())

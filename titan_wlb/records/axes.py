"""How unbalanced a step's compute was along each axis of the job: the slowest over the mean, of those who meet there.

    two DP ranks of two CP ranks, one micro-batch each; compute in ms

                dp 0                dp 1
    cp 0 | 1    10 | 14             20 | 20

    cp          (14 + 20) / (12 + 20)          within each action, the CP ranks that wait for each other
    dp          20 / 16                        a DP rank's work, mean over its ranks
    ranks       20 / 16                        any rank over all

1 is ideal. A mean over groups weighs them by their time. Source: the levels at which ranks wait are the paper's
(section 3.1), the measure is its imbalance degree (Table 2) taken at each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from titan_wlb.records.steps import COMPUTE, Layout, StepRecord

AXES = ("ranks", "cp", "pp", "stages", "dp")
_COMPUTING = ("F", "B", "W")


def imbalance_by_axis(records: Sequence[StepRecord], layout: Layout) -> dict[str, float]:
    """Imbalance degree by axis, of forward and backward compute.

    Args:
        records: of all ranks.
        layout: of the job.

    Returns:
        For each of ``AXES`` (1.0 where nothing was computed):
            ranks: a rank's compute in the step, over all ranks.
            cp: the CP ranks of a pipeline stage, within one forward or backward of a micro-batch.
            pp: the micro-batches of a pipeline (a DP rank's), mean over its ranks; 1.0 without one, where they follow
                one another and nobody waits.
            stages: the pipeline ranks of a DP rank, mean over their CP ranks.
            dp: the DP ranks, mean over their ranks.
        TP ranks are alike and enter with their mean.
    """
    actions: dict[tuple[int, str, int, int], list[float]] = {}  # (dp, kind, stage, micro-batch) -> ms per CP rank
    stages = [[0.0] * layout.pp for _ in range(layout.dp)]
    ranks = [0.0] * layout.size
    for record in records:
        pp_rank, dp_rank, cp_rank, _ = layout.coordinates(record.rank)
        for section in record.times.sections:
            if section.kind in _COMPUTING and section.micro_batch >= 0:
                compute = section.times_ms[COMPUTE]
                key = dp_rank, section.kind, section.stage, section.micro_batch
                if key not in actions:
                    actions[key] = [0.0] * layout.cp
                actions[key][cp_rank] += compute
                ranks[record.rank] += compute
                stages[dp_rank][pp_rank] += compute
    works: list[dict[int, float]] = [{} for _ in range(layout.dp)]  # micro-batch -> ms
    for (dp_rank, _, _, micro_batch), per_cp_rank in actions.items():
        works[dp_rank][micro_batch] = works[dp_rank].get(micro_batch, 0.0) + sum(per_cp_rank)
    return {
        "ranks": _degree([ranks]),
        "cp": _degree(actions.values()),
        "pp": _degree([list(work.values()) for work in works] if layout.pp > 1 else ()),
        "stages": _degree(stages),
        "dp": _degree([[sum(work.values()) for work in works]]),
    }


def _degree(groups: Iterable[Sequence[float]]) -> float:
    """Sum over the groups of the largest / sum of the means."""
    groups = [group for group in groups if group]
    mean = sum(sum(group) / len(group) for group in groups)
    return sum(map(max, groups)) / mean if mean > 0 else 1.0

"""All ranks plan the same step, or the run stops before the step is trained."""

from datetime import timedelta

import torch
import torch.distributed as dist

from titan_wlb.planning.plan import StepPlan


class PlanMismatch(RuntimeError):
    """Ranks planned different steps; the text is one line."""


class PlanAgreement:
    """Compares the plans' chained digests over all ranks, on a gloo group of its own.

    The group is its own so that the comparison can run in the loader's thread, ahead of the step, beside the training
    thread's collectives. The chain makes a difference in any earlier plan, the configuration, the cost model or the
    index show as a difference in this one.
    """

    def __init__(self) -> None:
        # A node whose index grows slowly may let the others wait; one that is gone is noticed all the same.
        self.group = dist.new_group(backend="gloo", timeout=timedelta(days=1))

    def __call__(self, plan: StepPlan) -> None:
        """Waits until every rank has planned this step.

        Raises:
            PlanMismatch: the plans differ; on every rank.
        """
        mine = torch.tensor([int(plan.digest[:15], 16)], dtype=torch.int64)
        extremes = torch.cat([mine, -mine])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self.group)
        if extremes[0] == -extremes[1]:
            return
        digests: list = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(digests, plan.digest, group=self.group)
        common = max(sorted(set(digests)), key=digests.count)
        others = [rank for rank, digest in enumerate(digests) if digest != common]
        raise PlanMismatch(
            f"step {plan.step}: rank{'s' if len(others) > 1 else ''} {', '.join(map(str, others[:8]))}"
            f"{' and more' if len(others) > 8 else ''} of {len(digests)} planned another step than the rest; the code, "
            "the configuration, the cost profile or the document index differs between machines"
        )

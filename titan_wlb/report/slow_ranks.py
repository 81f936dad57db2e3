"""Which ranks are slow: always the same (a machine), or another one in each step (the data).

    own work, ms     step 1   step 2   step 3   ...    slow in
    rank 0               40       41       40            0 %
    rank 1               40       40       41            0 %
    rank 2               52       51       53          100 %     always the same rank

    rank 0               52       40       40           33 %
    rank 1               40       51       40           33 %     rotating
    rank 2               40       40       53           33 %

A rank's work in a step is compared with the median of its peers: the ranks of its pipeline stage, since stages differ
by construction, and closer by those with the same DP rank, which were dealt the same documents. Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from titan_wlb.records import Layout

SLOW_FROM = 1.05  # of the median of a rank's peers in that step
MOST_STEPS = 0.75


@dataclass(frozen=True)
class SlowRank:
    """A rank that is slow.

    Args:
        rank: global.
        share_of_steps: in which it took at least ``SLOW_FROM`` times the median of its peers.
        excess_ms: by how much it exceeds that median, mean over the steps.
        excess: the same over the median.
    """

    rank: int
    share_of_steps: float
    excess_ms: float
    excess: float


@dataclass(frozen=True)
class SlowRanks:
    """The finding.

    Args:
        kind: "same" (the ranks below are slow in most steps), "rotating" (some rank is slow in most steps, none of them
            in most), "even" (most steps have none), "few" (too few steps to tell), "alone" (no rank has a peer).
        ranks: for "same" all that are, else those with the largest excess; at most 8, the largest excess first.
        share_of_steps: with a slow rank.
        num_same: ranks that are slow in most steps.
        num_steps: that were looked at.
    """

    kind: str
    ranks: tuple[SlowRank, ...]
    share_of_steps: float
    num_same: int
    num_steps: int


def most_steps(num_steps: int) -> float:
    """Share of so many steps from which on a rank is slow "in most": three standard deviations above a fair coin's.

    9 steps    1.0          16    0.875          36 and more    0.75
    """
    return max(MOST_STEPS, 0.5 + 1.5 / sqrt(max(num_steps, 1)))


def slow_ranks(own_ms: npt.NDArray[np.float32], layout: Layout, most: int = 8) -> SlowRanks:
    """Tells them.

    Args:
        own_ms: [steps, ranks], each rank's own work in each step.
        layout: of the ranks, which are numbered by stage, then by DP rank.
        most: ranks to name.
    """
    steps, ranks = own_ms.shape
    if ranks == layout.pp:
        return SlowRanks("alone", (), 0.0, 0, steps)
    of_stage = _over_peers(own_ms, ranks // layout.pp)
    share_of_steps = float((of_stage[0] >= SLOW_FROM).any(axis=1).mean())
    found = [of_stage]
    if layout.cp * layout.tp > 1:
        found.append(_over_peers(own_ms, layout.cp * layout.tp))
    shares = [(over >= SLOW_FROM).mean(axis=0) for over, _ in found]
    closest = np.argmax(shares, axis=0)  # per rank, the peers among whom it is slow most often

    def of_rank(rank: int) -> SlowRank:
        over, excess_ms = found[closest[rank]]
        share = float(shares[closest[rank]][rank])
        return SlowRank(rank, share, float(excess_ms[:, rank].mean()), float(over[:, rank].mean() - 1))

    needed = most_steps(steps)
    everybody = sorted(map(of_rank, range(ranks)), key=lambda rank: -rank.excess_ms)
    same = [rank for rank in everybody if rank.share_of_steps >= needed]
    if needed > 1:
        kind = "few"
    elif same:
        kind = "same"
    else:
        kind = "rotating" if share_of_steps >= 0.5 else "even"
    return SlowRanks(kind, tuple((same or everybody)[:most]), share_of_steps, len(same), steps)


def _over_peers(own_ms: npt.NDArray[np.float32], peers: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Each rank's work (over, minus) the median of its group of so many neighbours, [steps, ranks]."""
    groups = own_ms.reshape(len(own_ms), -1, peers)
    medians = np.median(groups, axis=2, keepdims=True)
    over = groups / np.maximum(medians, np.float32(1e-9))
    return over.reshape(own_ms.shape), (groups - medians).reshape(own_ms.shape)

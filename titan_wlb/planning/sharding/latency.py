"""How long attention of a sharded micro-batch takes: per CP rank, forward and backward, exchange of K/V included.

    per_sequence, per_document: every rank needs every row

        forward    all-gather ------> pack -> kernel, all chunks
        backward   all-gather ------> pack -> kernel, all chunks -> add back -> reduce-scatter

    hybrid: a chunk at its document's beginning is *local*, it needs no other rank's rows

        forward    exchange -----------+-> pack -> kernel, other chunks
                   kernel, local chunks
        backward   exchange -----------+-> pack -> kernel, other chunks -> add back -> exchange of the gradients
                   half of the local                                                   the other half of the local

        a large exchange travels in two slices of heads, as in context_parallel/attend.py:
        forward    slice 1 | slice 2 ---+
                   local     other, slice 1 | other, slice 2

Ranks meet at every layer's exchange, forward as well as backward, so a layer takes the slowest rank of each direction:
latency = largest forward + largest backward. A launch of the kernel takes the sum of its chunks on a busy device, but
no less than its deepest tile alone (planning/kernel_profile.py), in each slice. Nothing hides ``per_exchange``.

    two ranks, a kernel that takes 1 ns a cell forward and 2 backward, an exchange that is free; one document of 4 rows

    [0, 2) | [2, 4)             3 and 7 cells: forward 3 and 7, backward 6 and 14, latency 7 + 14 = 21 ns
    [0, 1) [3, 4) | [1, 3)      5 and 5 cells: latency 5 + 10 = 15 ns

Source: paper, section 5 (adaptive selection predicts attention latency); exchange, overlap and floor are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.kernel_profile import DIRECTIONS, KernelProfile, time_of_bytes
from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.needed import chunk_array, rows_sent

__all__ = ["LatencyModel", "PlanLatency"]

Integers = npt.NDArray[np.int64]

# As in context_parallel/attend.py, which a test compares: heads and bytes that a slice keeps at least.
_LEAST_HEADS_ON_CPU, _LEAST_HEADS_ON_GPU = 1, 16
_LEAST_BYTES = 2**21
_MOST_SLICES = 2


@dataclass(frozen=True, slots=True)
class PlanLatency:
    """Predicted attention latency of one layer, ns per CP rank.

    Args:
        forward, backward: kernel, copies and what of the exchange is not hidden behind the kernel.
        exposed: the last of these alone, both directions.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    exposed: tuple[int, ...]

    @property
    def nanoseconds(self) -> int:
        """Of the layer: the slowest rank of each direction."""
        return max(self.forward, default=0) + max(self.backward, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModel:
    """Predicts a sharding's attention latency for a model on a device.

    Args:
        profile: of the device's kernel.
        heads, kv_heads: of one TP rank.
        head_dim: of a head.
        element_bytes: of an element of K and V as exchanged.
    """

    profile: KernelProfile
    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int = 2

    @classmethod
    def of_model(
        cls,
        profile: KernelProfile,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        tp: int = 1,
        element_bytes: int = 2,
    ) -> LatencyModel:
        """The model's heads over ``tp`` ranks; with fewer K/V heads than ranks each rank has one."""
        return cls(
            profile=profile,
            heads=max(n_heads // tp, 1),
            kv_heads=max(n_kv_heads // tp, 1),
            head_dim=head_dim,
            element_bytes=element_bytes,
        )

    @property
    def row_bytes(self) -> int:
        """Of a row of K and V together."""
        return 2 * self.kv_heads * self.head_dim * self.element_bytes

    def latency(self, plan: ShardPlan) -> int:
        """Of a layer, ns: what ``adaptive`` compares."""
        return self.of(plan).nanoseconds

    def of(self, plan: ShardPlan) -> PlanLatency:
        """Rank by rank."""
        held = _Held(plan)
        if plan.strategy == "hybrid" or len(plan.ranks) == 1:
            return self._needed_only(plan, held)
        return self._gathered(plan, held)

    def kernel_ns(self, direction: str, start: Integers, stop: Integers) -> Integers:
        """Of chunks [start, stop) on a busy device, int64 [chunks]."""
        return self.profile.kernel_ns(direction, start, stop, heads=self.heads, head_dim=self.head_dim)

    def gathering_ns(self, tokens: int, cp: int) -> int:
        """What per_sequence and per_document of ``tokens`` wait for: K and V twice, their gradients once."""
        received = np.array([0 if cp == 1 else (cp - 1) * -(-tokens // cp)])
        gather, scatter = self._collective("all_gather", received), self._collective("reduce_scatter", received)
        return int(2 * gather[0] + scatter[0])

    def _gathered(self, plan: ShardPlan, held: _Held) -> PlanLatency:
        cp, own = held.cp, plan.padded_tokens(1)
        every = np.ones(len(held.start), bool)
        packed, received = held.packed(every), np.full(cp, (cp - 1) * own, np.int64)
        gather = self._collective("all_gather", received)
        scatter = self._collective("reduce_scatter", received)
        forward = gather + self._select(own + packed) + self._launch("forward", held, every)
        backward = gather + self._select(own + packed) + self._launch("backward", held, every)
        backward = backward + self._select(received + 2 * own) + self._add(packed) + scatter  # zeros, and the result
        if received.any():
            forward, backward = (
                times + self.profile.rates(name).per_exchange
                for name, times in zip(DIRECTIONS, (forward, backward), strict=True)
            )
        return _of_arrays(forward, backward, 2 * gather + scatter)

    def _needed_only(self, plan: ShardPlan, held: _Held) -> PlanLatency:
        local, sent = held.local(), rows_sent(plan)
        if not sent.any():  # nothing is copied where nothing travels
            forward, backward = (
                self._launch(name, held, local) + self._launch(name, held, ~local) for name in DIRECTIONS
            )
            return _of_arrays(forward, backward, 0 * forward)
        outgoing, arriving, packed = sent.sum(axis=1), sent.sum(axis=0), held.packed(~local)
        slices = self.slices(int(max(outgoing.max(), arriving.max())))
        there, back = self._exchange(sent, slices), self._exchange(sent.T, slices)
        own = np.array(plan.tokens, np.int64)
        both = (held.number(local) > 0) & (held.number(~local) > 0)
        joined = self._select(both * own * self.heads // (2 * self.kv_heads))  # out, or dq, of several calls
        pick, ready = self._select(packed) // slices, self._select(own + outgoing)

        during = self._launch("forward", held, local)
        cut = pick + self._launch("forward", held, ~local, slices)
        forward, exposed = during, 0 * during
        for part in range(1, slices + 1):
            exposed = exposed + np.maximum(part * there - forward, 0)
            forward = np.maximum(forward, part * there) + cut
        forward = forward + ready + joined + slices * self.profile.forward.per_exchange

        during, after = self._local_parts(held, local)
        added = self._select(2 * own + arriving) + self._add(packed + outgoing + own)
        cut = pick + added // slices + self._launch("backward", held, ~local, slices)
        backward, returned = during, 0 * during
        for part in range(1, slices + 1):
            exposed = exposed + np.maximum(part * there - backward, 0)
            backward = np.maximum(backward, part * there) + cut
            returned = np.maximum(backward, returned) + back
        backward = backward + after
        exposed = exposed + np.maximum(returned - backward, 0)
        backward = np.maximum(backward, returned) + ready + joined + slices * self.profile.backward.per_exchange
        return _of_arrays(forward, backward, exposed)

    def slices(self, most_rows: int) -> int:
        """Slices of heads that an exchange travels in whose busiest rank moves ``most_rows``, as the attention op's."""
        least_heads = _LEAST_HEADS_ON_CPU if self.profile.kernel == "cpu" else _LEAST_HEADS_ON_GPU
        most = min(_MOST_SLICES, self.heads // least_heads, most_rows * self.row_bytes // _LEAST_BYTES)
        return max((number for number in range(1, most + 1) if self.kv_heads % number == 0), default=1)

    def _local_parts(self, held: _Held, local: npt.NDArray[np.bool_]) -> tuple[Integers, Integers]:
        """Per rank the local backward before the exchange of gradients and beside it, in whole chunks: about halves."""
        every = self._launch("backward", held, local)
        longest = np.zeros(held.cp, np.int64)
        times = self.kernel_ns("backward", held.start[local], held.stop[local])
        np.maximum.at(longest, held.rank[local], times)
        after = np.maximum(np.minimum(every // 2, every - self.profile.backward.per_launch - longest), 0)
        return every - after, after + np.where(after > 0, self.profile.backward.per_launch, 0)

    def _launch(self, direction: str, held: _Held, chosen: npt.NDArray[np.bool_], slices: int = 1) -> Integers:
        """Per rank the kernel's call on its chosen chunks, for one slice of heads; nothing where it has none."""
        start, stop, rank = held.start[chosen], held.stop[chosen], held.rank[chosen]
        total = _sums(self.kernel_ns(direction, start, stop), rank, held.cp)
        deepest = np.zeros(held.cp, np.int64)
        np.maximum.at(deepest, rank, self.profile.deepest_tile_ns(direction, start, stop, head_dim=self.head_dim))
        launch = self.profile.rates(direction).per_launch
        return np.where(held.number(chosen) > 0, launch + np.maximum(total // slices, deepest), 0)

    def _collective(self, name: str, rows: Integers) -> Integers:
        """Per rank; nothing where no rank moves a row: then the collective is not called."""
        return self.profile.exchange[name].nanoseconds(rows * self.row_bytes) if rows.any() else 0 * rows

    def _exchange(self, sent: Integers, slices: int) -> Integers:
        """Per rank a slice's all-to-all of ``sent[i, j]`` rows from i to j: its own bytes, or those of the busiest
        sender that it receives from, for a sender shares its link between all that it sends."""
        outgoing = sent.sum(axis=1)
        waited_for = np.where(sent > 0, outgoing[:, None], 0).max(axis=0, initial=0)
        rows = np.maximum(np.maximum(outgoing, sent.sum(axis=0)), waited_for)
        return self.profile.exchange["all_to_all"].nanoseconds(rows * self.row_bytes // slices)

    def _select(self, rows: Integers) -> Integers:
        return time_of_bytes(rows * self.row_bytes, self.profile.select_bytes)

    def _add(self, rows: Integers) -> Integers:
        return time_of_bytes(rows * self.row_bytes, self.profile.add_bytes)


class _Held:
    """The chunks of all ranks as int64 arrays [chunks], rank by rank."""

    def __init__(self, plan: ShardPlan) -> None:
        self.cp = len(plan.ranks)
        numbers = [len(rank) for rank in plan.ranks]
        _, self.start, self.stop = chunk_array(list(chain.from_iterable(plan.ranks))).T
        self.rank = np.repeat(np.arange(self.cp), numbers)

    def local(self) -> npt.NDArray[np.bool_]:
        """Chunks at their segment's beginning, the only ones whose rank owns all keys: neighbours are one chunk."""
        local: npt.NDArray[np.bool_] = self.start == 0
        return local

    def number(self, chosen: npt.NDArray[np.bool_]) -> Integers:
        """Per rank of the chosen chunks."""
        return np.bincount(self.rank[chosen], minlength=self.cp)

    def packed(self, chosen: npt.NDArray[np.bool_]) -> Integers:
        """Per rank the rows of the chosen chunks' packed key prefixes."""
        return _sums(self.stop[chosen], self.rank[chosen], self.cp)


def _sums(values: Integers, rank: Integers, cp: int) -> Integers:
    sums = np.zeros(cp, np.int64)
    np.add.at(sums, rank, values)
    return sums


def _of_arrays(forward: Integers, backward: Integers, exposed: Integers) -> PlanLatency:
    return PlanLatency(tuple(forward.tolist()), tuple(backward.tolist()), tuple(exposed.tolist()))

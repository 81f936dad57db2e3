"""What the attention op knows of one micro-batch on one CP rank.

A query chunk [a, b) of a document is one *varlen segment*: b - a query rows that attend to the document's first b
keys under a causal mask aligned bottom-right. The keys are picked from a table of rows. Where every rank needs
everything, the table is the all-gathered buffer of every rank's rows:

    documents A (6 tokens) and B (2), CP 2, per_document, padded to 4 rows a rank

    rank 0 holds   A0 A1 A5 B0          rank 1 holds   A2 A3 A4 B1
    table          A0 A1 A5 B0 A2 A3 A4 B1                              rows 0 ... 7

    rank 0: segments   queries      keys (packed)            key_index
            A[0:2)     A0 A1        A0 A1                    0 1
            A[5:6)     A5           A0 A1 A2 A3 A4 A5        0 1 4 5 6 2
            B[0:1)     B0           B0                       3

    cu_seqlens_q = 0 2 3 4      cu_seqlens_k = 0 2 8 9      max_q = 2      max_k = 6

Under a plan of strategy ``hybrid``, and on one rank, only needed rows travel: the table is this rank's rows and behind
them what it receives. Segments that start at 0 see no rows but their own; those that a rank holds first are its *local*
call of the kernel, which needs no table and runs while rows travel, and the rest is its *cut* call. In backward the
local call comes in two parts, one for each way of the rows.

    documents A (8 tokens) and B (2), CP 2          rank 0 holds   B0 B1 A0 A1 A6 A7          rank 1 holds   A2 A3 A4 A5

    rank 0 sends rows 2 3 and receives A2 A3 A4 A5      table  B0 B1 A0 A1 A6 A7 A2 A3 A4 A5
            local      B[0:2) A[0:2)                cu_seqlens_q = cu_seqlens_k = 0 2 4
            cut        A[6:8)                       key_index 2 3 6 7 8 9 4 5

Source: ours; the prefix trick is how FlashAttention's varlen kernels mask when there are more keys than queries.
"""

from typing import Any

import numpy as np
import torch
from torch.distributed.device_mesh import DeviceMesh

from titan_wlb.compat.opaque import SUPPORTED, OpaqueBase, handle_of, register_opaque
from titan_wlb.context_parallel.exchange import Exchange
from titan_wlb.planning.plan import ShardPlan
from titan_wlb.planning.sharding.needed import NeededRows, chunk_array, needed_rows, ranges, rows_sent

__all__ = ["AttentionMetadata", "KernelCall", "Needed", "build_metadata"]

Ints = np.ndarray


class KernelCall:
    """Neighbouring segments of this rank that one call of the attention kernel takes.

    Attributes:
        rows: the segments' rows among this rank's.
        cu_seqlens_q: int32 [segments + 1], offsets of the segments from the first of ``rows``.
        cu_seqlens_k: int32 [segments + 1], offsets of their keys in the packed keys.
        max_q, max_k: rows of the longest segment and of the longest key prefix.
        key_index: int64 [packed keys], packed key row -> row of the table; None where the keys are the queries' own
            rows as they lie.
    """

    def __init__(self, first_row: int, lengths: Ints, stops: Ints, key_index: Ints | None) -> None:
        self.rows = slice(first_row, first_row + int(lengths.sum()))
        self.cu_seqlens_q = _offsets(lengths)
        self.cu_seqlens_k = self.cu_seqlens_q if key_index is None else _offsets(stops)
        self.max_q = int(lengths.max())
        self.max_k = int(stops.max())
        self.key_index = None if key_index is None else torch.from_numpy(key_index)

    def to(self, device: torch.device | str) -> None:
        """Move the index tensors, without making the host wait."""
        own_keys = self.key_index is None
        self.cu_seqlens_q = _move(self.cu_seqlens_q, device)
        self.cu_seqlens_k = self.cu_seqlens_q if own_keys else _move(self.cu_seqlens_k, device)
        self.key_index = None if own_keys else _move(self.key_index, device)


class Needed:
    """Which rows this rank sends and receives, where only needed rows travel.

    Attributes:
        send: int64 [rows sent], places among this rank's rows, receiver after receiver.
        send_counts, receive_counts: rows for and from each CP rank.
        most: the largest number of rows that any rank sends or receives; 0: no rank starts a collective.
    """

    def __init__(self, rows: NeededRows, most: int) -> None:
        self.send = torch.from_numpy(rows.send)
        self.send_counts, self.receive_counts = rows.send_counts, rows.receive_counts
        self.most = most


@register_opaque
class AttentionMetadata(OpaqueBase):
    """Metadata of one micro-batch on one CP rank; passes through compile, checkpointing and FSDP untouched.

    Not a dataclass, tuple or list: FSDP's mixed precision would rebuild those.

    Attributes:
        local: the segments that see no rows but their own, called while rows travel; None without.
        local_parts: the same for backward; where rows travel, in up to two calls of about equal work.
        cut: all other segments; None without.
        needed: what travels, where only needed rows do; None where every rank gets everything.
        num_tokens: real rows of this rank, which come first.
        padded_tokens: rows of every rank.
        cp: ranks of the CP group.
        exchange: moves K/V rows between the ranks; None for one rank.
        backend: name of the attention kernel.
    """

    def __init__(
        self,
        local: KernelCall | None,
        local_parts: tuple[KernelCall, ...],
        cut: KernelCall | None,
        needed: Needed | None,
        num_tokens: int,
        padded_tokens: int,
        cp: int,
    ) -> None:
        self.local = local
        self.local_parts = local_parts
        self.cut = cut
        self.needed = needed
        self.num_tokens = num_tokens
        self.padded_tokens = padded_tokens
        self.cp = cp
        self.exchange: Exchange | None = None
        self.backend = "cpu"

    @property
    def is_local(self) -> bool:
        """Whether no rows travel, and none are picked."""
        return self.cut is None and self.needed is not None and not self.needed.most

    def to(self, device: torch.device | str) -> "AttentionMetadata":
        """Move the index tensors in place, without making the host wait; returns itself."""
        for call in {self.local, self.cut, *self.local_parts} - {None}:
            call.to(device)
        if self.needed is not None:
            self.needed.send = _move(self.needed.send, device)
        return self

    def bind(self, mesh: DeviceMesh | None, backend: str, clock: Any = None) -> "AttentionMetadata":
        """Say how this micro-batch is to be run; returns itself.

        Args:
            mesh: the one-dimensional ``cp`` mesh; None for one rank.
            backend: as ``kernels.pick_backend`` gave it.
            clock: has ``wait("cp", collective=True)``, a context manager; None measures nothing.

        Raises:
            ValueError: the mesh has another size than the shard plan.
        """
        size = 1 if mesh is None else mesh.size()
        if size != self.cp:
            raise ValueError(f"attention metadata was built for {self.cp} CP ranks, but the cp mesh has {size}")
        self.exchange = None if mesh is None or size == 1 else Exchange(mesh, clock)
        self.backend = backend
        return self

    @property
    def bound_exchange(self) -> Exchange:
        """The exchange, where rows travel."""
        assert self.exchange is not None, "attention metadata was not bound to its cp mesh"
        return self.exchange

    @property
    def argument(self) -> Any:
        """What to hand to the model: this object, or its handle where torch lacks opaque objects."""
        return self if SUPPORTED else handle_of(self)


def build_metadata(shard: ShardPlan, cp_rank: int, padded_tokens: int) -> AttentionMetadata:
    """Attention metadata of one CP rank, on the CPU.

    Args:
        shard: who holds which rows of the micro-batch.
        cp_rank: this rank in the CP group.
        padded_tokens: rows of every rank, real ones and padding.
    """
    assert max(shard.tokens, default=0) <= padded_tokens, "a rank holds more rows than the padded shape"
    cp = len(shard.ranks)
    segments, starts, stops = chunk_array(shard.ranks[cp_rank]).T
    lengths = stops - starts
    offsets = np.array(shard.segment_offsets, np.int64)
    if cp == 1 or shard.strategy == "hybrid":
        arriving = needed_rows(shard, cp_rank)
        sent = rows_sent(shard)
        needed = Needed(arriving, most=int(max(sent.sum(axis=0).max(), sent.sum(axis=1).max())))
        num_local = len(starts) if not starts.any() else int(np.argmax(starts > 0))
        table = _received_rows(shard, cp_rank, arriving.receive)
    else:  # the paper's two strategies gather everything, as the paper does
        needed, num_local = None, 0
        table = _gathered_rows(shard, padded_tokens)
    local_rows = int(lengths[:num_local].sum())
    cut_keys = table[ranges(offsets[segments[num_local:]], stops[num_local:])]
    return AttentionMetadata(
        local=KernelCall(0, lengths[:num_local], stops[:num_local], None) if num_local else None,
        local_parts=_in_parts(lengths[:num_local], 2 if needed is not None and needed.most else 1),
        cut=KernelCall(local_rows, lengths[num_local:], stops[num_local:], cut_keys)
        if num_local < len(lengths)
        else None,
        needed=needed,
        num_tokens=int(lengths.sum()),
        padded_tokens=padded_tokens,
        cp=cp,
    )


def _gathered_rows(shard: ShardPlan, padded_tokens: int) -> Ints:
    """int64 [tokens]: row of the packed micro-batch -> its row in the gathered buffer."""
    rows = np.empty(sum(shard.lengths), np.int64)
    for cp_rank in range(len(shard.ranks)):
        held = _held_rows(shard, cp_rank)
        rows[held] = cp_rank * padded_tokens + np.arange(len(held))
    return rows


def _received_rows(shard: ShardPlan, cp_rank: int, receive: Ints) -> Ints:
    """int64 [tokens]: row of the packed micro-batch -> its row in a table of own and received rows, -1 elsewhere."""
    rows = np.full(sum(shard.lengths), -1)
    present = np.concatenate((_held_rows(shard, cp_rank), receive))
    rows[present] = np.arange(len(present))
    return rows


def _held_rows(shard: ShardPlan, cp_rank: int) -> Ints:
    """int64 [rows]: rows of the packed micro-batch that a rank holds, in the order in which it holds them."""
    segments, starts, stops = chunk_array(shard.ranks[cp_rank]).T
    return ranges(np.array(shard.segment_offsets, np.int64)[segments] + starts, stops - starts)


def _in_parts(lengths: Ints, most: int) -> tuple[KernelCall, ...]:
    """One call of whole segments, or up to two, the first with at least half of the work."""
    work = np.cumsum(lengths * (lengths + 1))
    middle = len(lengths) if most == 1 or not len(lengths) else int(np.searchsorted(work, work[-1] / 2)) + 1
    parts = ((0, lengths[:middle]), (int(lengths[:middle].sum()), lengths[middle:]))
    return tuple(KernelCall(first, part, part, None) for first, part in parts if len(part))


def _offsets(lengths: Ints) -> torch.Tensor:
    """int32 [n + 1]: where each segment starts, and where the last one ends."""
    return torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))


def _move(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

"""What the attention op knows of one micro-batch on one CP rank.

A query chunk [a, b) of a document is one *varlen segment*: b - a query rows that attend to the document's first b
keys under a causal mask aligned bottom-right. The keys come from the all-gathered buffer of every rank's rows:

    documents A (6 tokens) and B (2), CP 2, per_document, padded to 4 rows a rank

    rank 0 holds   A0 A1 A5 B0          rank 1 holds   A2 A3 A4 B1
    gathered       A0 A1 A5 B0 A2 A3 A4 B1                              rows 0 ... 7

    rank 0: segments   queries      keys (packed)            gather_index
            A[0:2)     A0 A1        A0 A1                    0 1
            A[5:6)     A5           A0 A1 A2 A3 A4 A5        0 1 4 5 6 2
            B[0:1)     B0           B0                       3

    cu_seqlens_q = 0 2 3 4      cu_seqlens_k = 0 2 8 9      max_q = 2      max_k = 6

Source: ours; the prefix trick is how FlashAttention's varlen kernels mask when there are more keys than queries.
"""

from typing import Any

import numpy as np
import torch
from torch.distributed.device_mesh import DeviceMesh

from titan_wlb.compat.opaque import SUPPORTED, OpaqueBase, handle_of, register_opaque
from titan_wlb.context_parallel.exchange import Exchange
from titan_wlb.planning.plan import ShardPlan

__all__ = ["AttentionMetadata", "build_metadata"]


@register_opaque
class AttentionMetadata(OpaqueBase):
    """Metadata of one micro-batch on one CP rank; passes through compile, checkpointing and FSDP untouched.

    Not a dataclass, tuple or list: FSDP's mixed precision would rebuild those.

    Attributes:
        cu_seqlens_q: int32 [segments + 1], offsets of the segments in this rank's real rows.
        cu_seqlens_k: int32 [segments + 1], offsets of their keys in the packed keys.
        max_q, max_k: rows of the longest segment and of the longest key prefix; 0 without segments.
        gather_index: int64 [packed keys], packed key row -> row of the gathered [cp * padded_tokens] buffer; None
            where the keys are the queries' own rows as they lie (one rank with whole segments).
        num_tokens: real rows of this rank, which come first.
        padded_tokens: rows of every rank.
        cp: ranks of the CP group.
        exchange: moves K/V rows between the ranks; None for one rank.
        backend: name of the attention kernel.
    """

    def __init__(
        self,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_q: int,
        max_k: int,
        gather_index: torch.Tensor | None,
        num_tokens: int,
        padded_tokens: int,
        cp: int,
    ) -> None:
        self.cu_seqlens_q = cu_seqlens_q
        self.cu_seqlens_k = cu_seqlens_k
        self.max_q = max_q
        self.max_k = max_k
        self.gather_index = gather_index
        self.num_tokens = num_tokens
        self.padded_tokens = padded_tokens
        self.cp = cp
        self.exchange: Exchange | None = None
        self.backend = "cpu"

    def to(self, device: torch.device | str) -> "AttentionMetadata":
        """Move the index tensors in place, without making the host wait; returns itself."""
        self.cu_seqlens_q = _move(self.cu_seqlens_q, device)
        self.cu_seqlens_k = _move(self.cu_seqlens_k, device)
        if self.gather_index is not None:
            self.gather_index = _move(self.gather_index, device)
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
    chunks = np.array([(c.segment, c.start, c.stop) for c in shard.ranks[cp_rank]], np.int64).reshape(-1, 3)
    segments, starts, stops = chunks.T
    lengths = stops - starts

    if cp == 1 and not starts.any():
        gather_index = None
    else:
        rows = _gathered_rows(shard, padded_tokens)
        gather_index = torch.from_numpy(rows[_ranges(np.array(shard.segment_offsets, np.int64)[segments], stops)])
    return AttentionMetadata(
        cu_seqlens_q=_offsets(lengths),
        cu_seqlens_k=_offsets(stops),
        max_q=int(lengths.max(initial=0)),
        max_k=int(stops.max(initial=0)),
        gather_index=gather_index,
        num_tokens=int(lengths.sum()),
        padded_tokens=padded_tokens,
        cp=cp,
    )


def _gathered_rows(shard: ShardPlan, padded_tokens: int) -> np.ndarray:
    """int64 [tokens]: row of the packed micro-batch -> its row in the gathered buffer."""
    offsets = np.array(shard.segment_offsets, np.int64)
    rows = np.empty(sum(shard.lengths), np.int64)
    for cp_rank, rank in enumerate(shard.ranks):
        chunks = np.array([(c.segment, c.start, c.stop) for c in rank], np.int64).reshape(-1, 3)
        held = _ranges(offsets[chunks[:, 0]] + chunks[:, 1], chunks[:, 2] - chunks[:, 1])
        rows[held] = cp_rank * padded_tokens + np.arange(len(held))
    return rows


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [sum of lengths]: start, start + 1, ... of each range, one range behind the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _offsets(lengths: np.ndarray) -> torch.Tensor:
    """int32 [n + 1]: where each segment starts, and where the last one ends."""
    return torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))


def _move(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

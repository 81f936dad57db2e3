"""torch's own load balancers of context parallelism, to compare with. Read in torch 2.13.

They reorder the rows of a sequence, of which CP rank i then holds the i-th of CP equal parts. Nothing here is built on
them: in 2.13 the per-document one orders by document first, so that equal parts of it are not balanced (2.14 orders by
rank), and it takes documents of a multiple of 2 x CP tokens alone; head-tail takes such sequences, and the one by
processing time (PTRR) sequences of a multiple of 128 x CP.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch.distributed.tensor.experimental._context_parallel import _load_balancer

__all__ = ["BLOCK", "blocks_of_rows", "head_tail", "per_document_head_tail", "ptrr"]

BLOCK = 128  # rows and keys of a block of flex attention, by default


def head_tail(lengths: Sequence[int], cp: int) -> torch.Tensor:
    """Rows of the sequence in their new order, [tokens]: chunk i and chunk 2 CP - 1 - i for rank i."""
    return _load_balancer._HeadTailLoadBalancer(sum(lengths), cp, "cpu")._generate_indices()[0]


def per_document_head_tail(lengths: Sequence[int], cp: int) -> torch.Tensor:
    """The same of every document, [tokens], one document behind the other."""
    return _load_balancer._PerDocumentHeadTailLoadBalancer([list(lengths)], cp, "cpu")._generate_indices()[0]


def ptrr(lengths: Sequence[int], cp: int) -> torch.Tensor:
    """Blocks of 128 rows dealt by the key blocks that each meets, to and fro over the ranks, [tokens]."""
    # Of flex attention's BlockMask the balancer reads the counts alone; the mask of a long sequence takes minutes.
    counts = SimpleNamespace(
        kv_num_blocks=blocks_of_rows(lengths)[None, None], full_kv_num_blocks=None, BLOCK_SIZE=(BLOCK, BLOCK)
    )
    return _load_balancer._PTRRLoadBalancer(counts, cp)._generate_indices()[0]


def blocks_of_rows(lengths: Sequence[int]) -> torch.Tensor:
    """Key blocks that each block of rows meets under a causal mask within documents, [blocks]."""
    stops = torch.tensor(lengths).cumsum(0)
    rows = torch.arange(0, int(stops[-1]), BLOCK)
    starts = stops - torch.tensor(lengths)
    of_first_row = starts[torch.searchsorted(stops, rows, right=True)]
    return rows // BLOCK - of_first_row // BLOCK + 1

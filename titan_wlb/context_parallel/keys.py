"""How keys and values reach the rank whose queries see them, and how their gradients return to the rank that owns them.

    fetch       this rank's k, v  -> a table of rows [rows, 2, Hkv, D], from which the packed prefixes are picked
    give_back   gradients of such a table -> those of this rank's own rows, summed over the ranks

    every rank needs everything   table = all ranks' padded rows, rank after rank                     (all-gather)
    needed rows only              table = this rank's real rows, then the rows of others that it needs (all-to-all)

Both start something and return a function that waits for its end: what is computed in between hides the transfer. For
an all-gather there is nothing to hide behind, and the wait is inside the start.

Shape legend: T padded rows of this rank, Hkv key/value heads, D head dim.
"""

from collections.abc import Callable

import torch

from titan_wlb.context_parallel.metadata import AttentionMetadata

__all__ = ["fetch", "give_back"]

Wait = Callable[[], torch.Tensor]


def fetch(k_THD: torch.Tensor, v_THD: torch.Tensor, metadata: AttentionMetadata) -> Wait:
    """Start bringing the keys and values that this rank's queries see.

    Returns:
        A function that waits and returns the table, keys at [:, 0] and values at [:, 1].
    """
    needed = metadata.needed
    if needed is None:
        table = metadata.bound_exchange.all_gather(torch.stack((k_THD, v_THD), dim=1))
        return lambda: table

    own = metadata.num_tokens
    table = k_THD.new_empty(own + sum(needed.receive_counts), 2, *k_THD.shape[1:])
    if metadata.cut is not None or needed.most:
        table[:own, 0], table[:own, 1] = k_THD[:own], v_THD[:own]
    if not needed.most:
        return lambda: table
    rows = table.index_select(0, needed.send)
    under_way = metadata.bound_exchange.all_to_all(rows, needed.send_counts, table[own:], needed.receive_counts)

    def wait() -> torch.Tensor:
        under_way.wait()
        return table

    return wait


def give_back(gradients: torch.Tensor, metadata: AttentionMetadata) -> Wait:
    """Start returning gradients to the owners of their rows.

    Args:
        gradients: of the table that ``fetch`` gave, in its shape.

    Returns:
        A function that waits and returns the gradients of this rank's rows: [T, 2, Hkv, D] or, without the padding,
        [real rows, 2, Hkv, D] in at least float32, for up to cp terms meet in a row.
    """
    needed = metadata.needed
    if needed is None:
        summed = metadata.bound_exchange.reduce_scatter(gradients)
        return lambda: summed

    own = gradients[: metadata.num_tokens].to(torch.promote_types(gradients.dtype, torch.float32))
    if not needed.most:
        return lambda: own
    returned = gradients.new_empty(sum(needed.send_counts), *gradients.shape[1:])
    rows = gradients[metadata.num_tokens :]
    under_way = metadata.bound_exchange.all_to_all(rows, needed.receive_counts, returned, needed.send_counts)

    def wait() -> torch.Tensor:
        return own.index_add_(0, needed.send, under_way.wait().to(own.dtype))

    return wait

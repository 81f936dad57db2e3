"""The store behind torch.distributed's default group. Read in torch 2.13 (there in 2.11 and 2.12, too)."""

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store


def store_with_queues() -> dist.Store | None:
    """The job's store, if every rank can push to a queue of it: a TCPStore, as torchrun has it; None for others.

    The same answer on all ranks.
    """
    if not dist.is_initialized():
        return None
    store = _get_default_store()
    try:
        store.queue_len("titan_wlb/probe")
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    return store

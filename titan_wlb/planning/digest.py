"""Hashes that show whether all ranks plan the same; equal over processes, machines and Python versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np

from titan_wlb.planning.plan import StepPlan


def digest_of_values(*values: Any) -> str:
    """Of plain JSON values, hexadecimal."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def digest_of_plan(previous: str, plan: StepPlan) -> str:
    """Of a plan without its own digest, chained to the digest of the plan before it, hexadecimal."""
    counts = (plan.step, plan.epoch, plan.num_labels, plan.arrived, plan.waiting_documents, plan.waiting_tokens)
    numbers = chain.from_iterable(_micro_batch(plan, place) for place in range(len(plan.micro_batches)))
    digest = blake2b(previous.encode("ascii"), digest_size=16)
    digest.update(digest_of_values(counts, plan.delay_trained, plan.oldest_waiting).encode("ascii"))
    digest.update(digest_of_values([micro_batch.cost for micro_batch in plan.micro_batches]).encode("ascii"))
    digest.update(np.fromiter(numbers, dtype="<i8").tobytes())
    digest.update(plan.state)
    return digest.hexdigest()


def _micro_batch(plan: StepPlan, place: int) -> Iterator[int]:
    """Who is trained in a micro-batch and where, in whole numbers that cannot be read in two ways."""
    segments, shard = plan.micro_batches[place].segments, plan.shards[place]
    yield from (plan.dp_ranks[place], len(segments), len(shard.ranks), *shard.strategy.encode("ascii"), -1)
    for segment in segments:
        yield from (segment.document.id, segment.document.arrival, segment.document.epoch, segment.start, segment.stop)
    for rank in shard.ranks:
        yield len(rank)
        yield from chain.from_iterable(rank)

"""Brings what every rank measured of a step to the rank that logs, while all of them train on.

    rank 0          post(step 10)          train ...
    rank 1          post(step 10)          train ...                      a push to the job's store: nobody answers
    metrics rank    post, expect(10)       train ... train ... take()     its own thread fetches meanwhile

No collective takes part: what is late makes the step's line late, and what does not come within ``GIVE_UP_S`` costs the
step's line. Neither stops training. Numbers travel as float32. Source: ours.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from array import array
from contextlib import suppress
from dataclasses import replace

import torch.distributed as dist

from titan_wlb.records import COLLECTIVE_GROUPS, StepRecord, StepTimes, pack, packed_size, unpack

GIVE_UP_S = 30.0  # well below the 100 s that TorchTitan gives a collective: the closing table waits for a lost record
_KEY = "titan_wlb/records"
_POLL_S = 0.01  # while something is expected; otherwise the thread sleeps


class Mailbox:
    """Of one rank.

    Args:
        store: the job's, with queues (``compat.store``); the thread uses a connection of its own.
        rank: this one.
        num_ranks: of the job.
        is_receiver: on the rank that logs.
        give_up_s: how long the receiver waits for the rest of a step, after its own record.
    """

    def __init__(
        self, store: dist.Store, rank: int, num_ranks: int, *, is_receiver: bool, give_up_s: float = GIVE_UP_S
    ):
        self._store, self._rank, self._num_ranks, self._give_up_s = store, rank, num_ranks, give_up_s
        self._expected: queue.Queue[int | None] = queue.Queue()
        self._arrived: queue.Queue[tuple[int, list[StepRecord]]] = queue.Queue()
        self._is_closed = False
        self._until = math.inf  # time.monotonic() at which nothing is waited for any longer
        self._thread: threading.Thread | None = None
        if is_receiver:
            arguments = (store.clone(),)
            self._thread = threading.Thread(target=self._fetch, args=arguments, name="wlb-records", daemon=True)
            self._thread.start()

    def post(self, times: StepTimes) -> None:
        """Sends what this rank measured, without waiting for anybody."""
        with suppress(RuntimeError):  # a store that is gone takes a line of the log, and is no reason to stop here
            self._store.queue_push(_KEY, to_bytes(self._rank, times))

    def expect(self, step: int) -> None:
        """On the receiver: everybody's records of this step are under way."""
        self._expected.put(step)

    def take(self) -> list[tuple[int, list[StepRecord]]]:
        """On the receiver: (step, records in the order of ranks) of steps that are there by now, each once.

        Transfer is not yet told from waiting in them. A step that was given up comes with the records that did arrive.
        """
        taken = []
        while not self._arrived.empty():
            taken.append(self._arrived.get())
        return taken

    def finish(self) -> list[tuple[int, list[StepRecord]]]:
        """On the receiver: waits for what is still expected, at most ``give_up_s`` in all, and takes it."""
        if self._thread is not None:
            self._until = time.monotonic() + self._give_up_s
            self._expected.put(None)
            self._thread.join()
            self._thread = None
        return self.take()

    def close(self) -> None:
        """Waits for nothing."""
        self._is_closed = True
        self._expected.put(None)

    def _fetch(self, store: dist.Store) -> None:
        incomplete: dict[int, dict[int, StepRecord]] = {}
        is_broken = False
        while (step := self._expected.get()) is not None and not self._is_closed:
            incomplete = {later: records for later, records in incomplete.items() if later >= step}
            give_up_at = time.monotonic() + self._give_up_s
            while len(incomplete.setdefault(step, {})) < self._num_ranks and not (self._is_closed or is_broken):
                try:
                    record = _pop(store)
                except RuntimeError:
                    is_broken = True
                    break
                if record is not None:
                    incomplete.setdefault(record.times.step, {})[record.rank] = record
                elif time.monotonic() > min(give_up_at, self._until):
                    break
                else:
                    time.sleep(_POLL_S)
            records = incomplete.pop(step)
            self._arrived.put((step, [records[rank] for rank in sorted(records)]))


def _pop(store: dist.Store) -> StepRecord | None:
    try:
        return from_bytes(store.queue_pop(_KEY, False))
    except dist.QueueEmptyError:
        return None


def to_bytes(rank: int, times: StepTimes) -> bytes:
    """A rank's step: ``pack``, then of each of ``COLLECTIVE_GROUPS`` how many collectives and their times."""
    numbers = pack(StepRecord(rank, times))
    for name in COLLECTIVE_GROUPS:
        exposed = times.collectives_ms.get(name, ())
        numbers += [len(exposed), *exposed]
    return array("f", numbers).tobytes()


def from_bytes(sent: bytes) -> StepRecord:
    """What ``to_bytes`` was given, to float32's seven digits."""
    numbers = array("f", sent)
    record = unpack(numbers)
    collectives_ms, place = {}, packed_size(len(record.times.sections))
    for name in COLLECTIVE_GROUPS:
        number = int(numbers[place])
        collectives_ms[name] = tuple(numbers[place + 1 : place + 1 + number])
        place += 1 + number
    return replace(record, times=replace(record.times, collectives_ms=collectives_ms))

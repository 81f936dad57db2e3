import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from titan_wlb.metrics.mailbox import Mailbox
from titan_wlb.records import Section, StepRecord, StepTimes

RANKS = 4


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=5))


def of_all_ranks(store, give_up_s):
    boxes = [Mailbox(store.clone(), rank, RANKS, is_receiver=rank == 1, give_up_s=give_up_s) for rank in range(RANKS)]
    yield boxes
    for box in boxes:
        box.close()


@pytest.fixture
def mailboxes(store):
    yield from of_all_ranks(store, 30)


@pytest.fixture
def hasty(store):
    yield from of_all_ranks(store, 0.3)


def record(rank, step, num_sections=1):
    sections = tuple(Section("F", 0, i, i + 0.5, (float(rank),) + (0.25,) * 7) for i in range(num_sections))
    collectives = {"cp": (0.5, 2.0), "fsdp": (1.0,) * rank, "dp_replicate": ()}
    return StepRecord(rank, StepTimes(step, sections, collectives))


def times(rank, step, num_sections=1):
    return record(rank, step, num_sections).times


def taken(box, number):
    """Waits for so many steps."""
    steps = []
    until = time.monotonic() + 5
    while len(steps) < number and time.monotonic() < until:
        steps += box.take()
        time.sleep(0.01)
    return steps


def test_everybodys_record_arrives_in_the_order_of_ranks(mailboxes):
    for rank in (2, 0, 3, 1):
        mailboxes[rank].post(times(rank, 10, num_sections=rank + 1))
    mailboxes[1].expect(10)
    assert taken(mailboxes[1], 1) == [(10, [record(rank, 10, rank + 1) for rank in range(RANKS)])]
    assert mailboxes[1].take() == []


def test_nobody_waits_for_a_late_record(mailboxes):
    for rank in range(1, RANKS):
        mailboxes[rank].post(times(rank, 1))
    mailboxes[1].expect(1)
    time.sleep(0.1)
    assert mailboxes[1].take() == []
    mailboxes[0].post(times(0, 1))
    assert [step for step, _ in taken(mailboxes[1], 1)] == [1]


def test_a_missing_record_costs_its_step_and_no_other(hasty):
    for step in (1, 2):
        for rank in range(RANKS):
            if (step, rank) != (1, 3):
                hasty[rank].post(times(rank, step))
        hasty[1].expect(step)
    (first, incomplete), (second, complete) = taken(hasty[1], 2)
    assert (first, second) == (1, 2)
    assert [each.rank for each in incomplete] == [0, 1, 2]
    assert [each.rank for each in complete] == [0, 1, 2, 3]


def test_what_comes_after_its_step_was_given_up_disturbs_no_later_step(hasty):
    hasty[1].post(times(1, 1))
    hasty[1].expect(1)
    assert len(taken(hasty[1], 1)[0][1]) == 1
    for rank in (0, 2, 3):
        hasty[rank].post(times(rank, 1))
    for rank in range(RANKS):
        hasty[rank].post(times(rank, 2))
    hasty[1].expect(2)
    assert taken(hasty[1], 1) == [(2, [record(rank, 2) for rank in range(RANKS)])]


def test_finishing_waits_for_what_is_under_way(mailboxes):
    for step in (1, 2):
        mailboxes[1].expect(step)
    posts = [(rank, step) for step in (1, 2) for rank in range(RANKS)]
    sender = threading.Timer(0.2, lambda: [mailboxes[rank].post(times(rank, step)) for rank, step in posts])
    sender.start()
    assert [(step, len(records)) for step, records in mailboxes[1].finish()] == [(1, RANKS), (2, RANKS)]
    sender.join()


def test_finishing_does_not_wait_for_each_lost_step_in_turn(store):
    box = Mailbox(store, 0, 2, is_receiver=True, give_up_s=0.5)
    for step in range(1, 31):
        box.post(times(0, step))
        box.expect(step)
    start = time.monotonic()
    assert [step for step, _ in box.finish()] == list(range(1, 31))
    assert time.monotonic() - start < 10


def test_a_store_that_is_gone_stops_nobody():
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=1))
    client = dist.TCPStore("127.0.0.1", store.port, 1, is_master=False, timeout=timedelta(seconds=1))
    box = Mailbox(client, 0, 2, is_receiver=True, give_up_s=60)
    del store
    box.post(times(0, 1))
    box.expect(1)
    assert box.finish() == [(1, [])]

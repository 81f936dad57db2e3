"""A schedule as a graph: every forward, backward and transfer, and what each starts after.

    1F1B, 2 ranks, 1 micro-batch    F0 on rank 0 -> transfer -> F0 on rank 1 -> B0 on rank 1 -> transfer -> B0 on rank 0

A transfer starts when both sides have posted it (large ones are handed over, not buffered), so that a rank which waits
for what it sent is held up by a busy neighbour. It also starts after what the side has posted before, if that travels
*in order*: NCCL runs all batched sends and receives of a process group in one stream, where a receive that was posted
ahead stops the sends behind it (pytorch/pytorch issue 188833). gloo's transfers are *independent*.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from titan_wlb.planning.timeline.program import Post, Step, Wait, program
from titan_wlb.planning.timeline.schedule import Action, Schedule

WIRES = ("independent", "in_order")  # gloo; NCCL

_Key: TypeAlias = tuple[Action, bool]  # of an event: its first two values
_Needs: TypeAlias = dict[_Key, dict[_Key, None]]  # what each starts after; ordered, as sets of strings are not


class Event(NamedTuple):
    """Something that takes time.

    Args:
        action: the forward or backward, or the one whose output travels.
        travels: whether it is the transfer.
        after: places of the events that end before it starts, all of them earlier in the list.
    """

    action: Action
    travels: bool
    after: tuple[int, ...]


@lru_cache(maxsize=128)
def events_of(schedule: Schedule, wires: str) -> tuple[Event, ...]:
    """All events of a step, each behind those that it starts after.

    Args:
        wires: one of ``WIRES``.

    Raises:
        ValueError: no such wires.
    """
    if wires not in WIRES:
        raise ValueError(f"no wires {wires!r}: choose one of {', '.join(WIRES)}")
    needs: _Needs = {}
    for steps in program(schedule):
        _add_needs(needs, steps, in_order=wires == "in_order")
    return _sorted(needs)


def _add_needs(needs: _Needs, steps: tuple[Step, ...], in_order: bool) -> None:
    """What the events of one rank start after: its last computation, all it waited for since, and the post before."""
    passed: dict[_Key, None] = {}
    posted: list[dict[_Key, None]] = []
    for step in steps:
        if isinstance(step, Wait):
            passed.update(posted[step.post])
        elif isinstance(step, Post):
            transfers: dict[_Key, None] = {(action, True): None for action in step.outputs}
            for transfer in transfers:
                needs.setdefault(transfer, {}).update(passed)
                if in_order and posted:
                    needs[transfer].update(posted[-1])
            posted.append(transfers)
        else:
            needs[step, False] = passed
            passed = {(step, False): None}


def _sorted(needs: _Needs) -> tuple[Event, ...]:
    """In an order in which each can be computed from those before."""
    followers: dict[_Key, list[_Key]] = {event: [] for event in needs}
    for event, before in needs.items():
        for need in before:
            followers[need].append(event)
    missing = {event: len(before) for event, before in needs.items()}
    ready = deque(event for event, number in missing.items() if not number)
    events: list[Event] = []
    places: dict[_Key, int] = {}
    while ready:
        event = ready.popleft()
        after = {places[need] for need in needs[event]}
        for place in tuple(after):
            after.difference_update(events[place].after)  # which ended before that one started
        places[event] = len(events)
        events.append(Event(*event, tuple(sorted(after))))
        for follower in followers[event]:
            missing[follower] -= 1
            if not missing[follower]:
                ready.append(follower)
    assert len(events) == len(needs), "ranks wait for one another"
    return tuple(events)

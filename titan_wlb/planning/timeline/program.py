"""What a rank does in between its forwards and backwards: it posts sends and receives, and waits for them.

    1F1B, 2 ranks, 2 micro-batches; [ ] is a post, ~ waits for it

    rank 0    F0 [send F0] F1 ~ [send F1, receive B0] ~ B0 [receive B1] ~ B1
    rank 1    [receive F0] ~ F0 B0 [send B0, receive F1] ~ F1 B1 [send B1] ~

GPipe and 1F1B post a receive when its turn comes and wait for it there and then. Interleaved1F1B posts it ahead: where,
is decided by a dry run in which every action takes one turn.

Source: torch.distributed.pipelining.schedules of torch 2.13; a test compares what torch does line by line with this.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import NamedTuple, TypeAlias

from titan_wlb.planning.timeline.schedule import Action, Schedule


class Post(NamedTuple):
    """Starts transfers together, none of them waited for.

    Args:
        outputs: the actions whose output travels: sent by the rank that runs them, received by the neighbour.
    """

    outputs: tuple[Action, ...]


class Wait(NamedTuple):
    """Goes on when all transfers of a post are complete.

    Args:
        post: its number among the rank's posts, from 0.
    """

    post: int


Step: TypeAlias = Action | Post | Wait


def program(schedule: Schedule) -> tuple[tuple[Step, ...], ...]:
    """Per rank what it does, one after the other."""
    if schedule.name == "Interleaved1F1B":
        return _interleaved(schedule)
    one_rank = _gpipe if schedule.name == "GPipe" else _one_forward_one_backward
    return tuple(tuple(one_rank(schedule, rank)) for rank in range(schedule.pp))


def source(action: Action, num_stages: int) -> Action | None:
    """The action that makes an action's input; None for a forward of the first stage."""
    kind, stage, micro_batch = action
    if kind == "F":
        return Action("F", stage - 1, micro_batch) if stage else None
    return Action("B", stage + 1, micro_batch) if stage + 1 < num_stages else Action("F", stage, micro_batch)


class _Steps(list[Step]):
    """Of a rank with one stage."""

    def __init__(self, rank: int, pp: int) -> None:
        super().__init__()
        self._rank, self._pp, self._num_posts = rank, pp, 0

    def post(self, **micro_batches: int) -> int | None:
        """The number of a post of what torch names so; None where the first or last rank has nothing to post."""
        rank, last = self._rank, self._pp - 1
        made_by: dict[str, tuple[str, int]] = {}
        if rank > 0:
            made_by |= {"fwd_recv": ("F", rank - 1), "bwd_send": ("B", rank)}
        if rank < last:
            made_by |= {"fwd_send": ("F", rank), "bwd_recv": ("B", rank + 1)}
        posted = ((made_by[name], i) for name, i in micro_batches.items() if name in made_by)
        outputs = tuple(Action(kind, stage, i) for (kind, stage), i in posted)
        if not outputs:
            return None
        self.append(Post(outputs))
        self._num_posts += 1
        return self._num_posts - 1

    def wait(self, post: int | None) -> None:
        if post is not None:
            self.append(Wait(post))

    def compute(self, kind: str, micro_batch: int) -> None:
        self.append(Action(kind, self._rank, micro_batch))


def _gpipe(schedule: Schedule, rank: int) -> _Steps:
    steps = _Steps(rank, schedule.pp)
    for kind, name in (("F", "fwd"), ("B", "bwd")):
        sends = []
        for i in range(schedule.num_micro_batches):
            steps.wait(steps.post(**{f"{name}_recv": i}))
            steps.compute(kind, i)
            sends.append(steps.post(**{f"{name}_send": i}))
        for send in sends:
            steps.wait(send)
    return steps


def _one_forward_one_backward(schedule: Schedule, rank: int) -> _Steps:
    steps = _Steps(rank, schedule.pp)
    num_micro_batches, warm = schedule.num_micro_batches, schedule.pp - rank
    send = None
    for i in range(warm):
        steps.wait(steps.post(fwd_recv=i))
        steps.compute("F", i)
        steps.wait(send)
        send = steps.post(fwd_send=i) if i < warm - 1 else None
    for backward in range(num_micro_batches - warm + 1):
        forward = backward + warm
        steps.wait(steps.post(fwd_send=forward - 1, bwd_recv=backward))
        steps.compute("B", backward)
        if forward < num_micro_batches:
            steps.wait(steps.post(bwd_send=backward, fwd_recv=forward))
            steps.compute("F", forward)
    send = steps.post(bwd_send=num_micro_batches - warm)
    for i in range(num_micro_batches - warm + 1, num_micro_batches):
        steps.wait(steps.post(bwd_recv=i))
        steps.compute("B", i)
        steps.wait(send)
        send = steps.post(bwd_send=i)
    steps.wait(send)
    return steps


def _interleaved(schedule: Schedule) -> tuple[tuple[Step, ...], ...]:
    """torch's ``_add_send_recv``: in turns every rank that can does its next action, and both sides post its output."""
    pp = schedule.pp
    steps: list[list[Step]] = [[] for _ in range(pp)]
    receives: list[dict[Action, int]] = [{} for _ in range(pp)]  # by the action whose output it is
    sends: list[list[int]] = [[] for _ in range(pp)]
    num_posts = [0] * pp
    computed: set[Action] = set()
    turns = [_turns(actions, schedule.num_micro_batches) for actions in schedule.ranks]
    done = [0] * pp
    while any(number < len(of_rank) for number, of_rank in zip(done, turns, strict=True)):
        for rank, of_rank in enumerate(turns):
            action = of_rank[done[rank]] if done[rank] < len(of_rank) else None
            made_by = source(action, schedule.num_stages) if action else None
            if done[rank] == len(of_rank) or (made_by is not None and made_by not in computed):
                continue
            done[rank] += 1
            if action is None:
                continue
            if made_by in receives[rank]:
                steps[rank].append(Wait(receives[rank][made_by]))
            steps[rank].append(action)
            computed.add(action)
            receiver = _receiver(action, schedule)
            if receiver is not None and receiver != rank:
                sends[rank].append(num_posts[rank])
                receives[receiver][action] = num_posts[receiver]
                for side in (rank, receiver):
                    steps[side].append(Post((action,)))
                    num_posts[side] += 1
    return tuple(
        (*of_rank, *(Wait(post) for post in reversed(posts))) for of_rank, posts in zip(steps, sends, strict=True)
    )


def _turns(actions: tuple[Action, ...], num_micro_batches: int) -> list[Action | None]:
    """A rank's actions, and None for each turn that it spends on FSDP, which torch's dry run counts as well.

    One for each stage whose parameters are gathered (the next three) or freed, one for each reduction of gradients.
    """
    turns: list[Action | None] = []
    gathered: set[int] = set()
    num_backwards: Counter[int] = Counter()
    for place, action in enumerate(actions):
        upcoming = set(islice(dict.fromkeys(action.stage for action in actions[place:]), 3))
        turns += [None] * len(gathered ^ upcoming)
        gathered = upcoming
        turns.append(action)
        num_backwards[action.stage] += action.kind == "B"
        if action.kind == "B" and num_backwards[action.stage] == num_micro_batches:
            turns.append(None)
    return turns


def _receiver(action: Action, schedule: Schedule) -> int | None:
    """The rank that needs an action's output; None where no stage does."""
    stage = action.stage + (1 if action.kind == "F" else -1)
    return stage % schedule.pp if 0 <= stage < schedule.num_stages else None

"""Which long documents are trained together: a leader, and the shorter ones that lift every micro-batch to its work.

    N = 2, a document of d tokens costs d^2; long documents A 10, B 9, C 6; the short ones at hand cost 30 in all

    A leads       A | B C    100 and 117: the short documents lift both to 123.5
    B leads                  81 + 36 + 30 are less than 2 x 81: it cannot
    C leads                  36 + 30 are less than 2 x 36: it cannot
    none leads      |        15 each; A, B and C wait

Short documents are a fluid here, of which only tokens and work count; whether real ones fit is seen when they are
packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappush, heapreplace
from math import fsum
from operator import itemgetter, le, truediv
from typing import NamedTuple

_LENGTH, _WORK = itemgetter(0), itemgetter(1)
_SKIP = 0.985  # where a document cannot lead, those of nearly its work are not tried, and ever more the more cannot


class Item(NamedTuple):
    """A segment as the search sees it: a tuple, since there are very many.

    Args:
        length: tokens.
        work: predicted nanoseconds.
        place: in the step's pool; -1 for a document that is still to come.
        arrival: the step in which it was or will be drawn.
    """

    length: int
    work: int
    place: int
    arrival: int


class Fluid(NamedTuple):
    """Short documents in bulk.

    Args:
        tokens: of all of them.
        density: work of a token.
    """

    tokens: float
    density: float

    @property
    def work(self) -> float:
        """Of all of them."""
        return self.tokens * self.density


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step has to keep to.

    Args:
        num_micro_batches: N.
        max_tokens: of a micro-batch.
        tolerance: share by which the largest work may exceed the mean.
        targets: of the works, with mean 1, largest first: what is said of works here is meant of work / target.
        step_tokens: of a steady step, whose short documents are drawn as needed; 0 where all at hand are trained.
    """

    num_micro_batches: int
    max_tokens: int
    tolerance: float
    targets: tuple[float, ...]
    step_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Long documents that are trained together.

    Args:
        trained: the long documents, late ones first, then longest first.
        places: the micro-batch of each.
        waiting: the other long ones, longest first.
        shorts: that fill the micro-batches.
        level: work that every micro-batch reaches with them, unless its long documents exceed it.
        excess: share by which the largest work exceeds the level.
        capped: whether the cap keeps the level below the work at hand.
    """

    trained: list[Item]
    places: list[int]
    waiting: list[Item]
    shorts: Fluid
    level: float
    excess: float
    capped: bool

    @property
    def tokens(self) -> float:
        """That are trained."""
        return sum([item.length for item in self.trained]) + self.shorts.tokens


def lead(outliers: Sequence[Item], leader: int, shorts: Fluid, limits: Limits, due: int = -1) -> Group | None:
    """The group that one of the long documents leads, or None where it cannot.

    Args:
        outliers: longest first; those before the leader wait.
        leader: its place among them; ``len(outliers)`` where none is trained.
        shorts: at hand; in a steady step only their density counts.
        due: what arrived in this step or before it is late and trained, whatever that does to the balance.
    """
    num, steady, density, targets = limits.num_micro_batches, limits.step_tokens, shorts.density, limits.targets
    late = [item for item in outliers if item.arrival <= due] if due >= 0 else []
    group = outliers[leader:]
    if late:
        group = [*late, *[item for item in group if item.arrival > due]]
    # No level is below the longest's work at the largest target.
    least = max([item.work for item in group[: len(late) + 1]], default=0) / targets[0]
    tokens = sum([item.length for item in group])
    filling = Fluid(max(steady - tokens, 0), density) if steady else shorts
    level = (sum([item.work for item in group]) + filling.work) / num  # of all of them; what exceeds it waits
    for _ in range(4):
        level = max(least, level)
        places, works, sums = _place(group, level, limits, len(late))
        if steady:
            filling = Fluid(max(steady - sum(sums), 0), density)
        mean = (sum(works) + filling.work) / num
        cap = limits.max_tokens
        fullest = min([(w + (cap - t) * density) / g for w, t, g in zip(works, sums, targets, strict=True)])
        reached = min(mean, fullest)
        largest = max(map(truediv, works, targets))
        if reached > 0 and largest <= reached * (1 + limits.tolerance):
            break
        if level <= least:
            return None
        level = min(reached, level * 0.999)
    else:
        return None
    share = 1.0
    if not steady and filling.work:
        lacking = [max(reached * target - work, 0.0) for work, target in zip(works, targets, strict=True)]
        share = min(1.0, fsum(lacking) / filling.work)
    trained, waiting = list(group), list[Item]()
    if -1 in places:
        trained = [item for item, place in zip(group, places, strict=True) if place >= 0]
        waiting = [item for item, place in zip(group, places, strict=True) if place < 0]
        places = [place for place in places if place >= 0]
    before = [item for item in outliers[:leader] if item.arrival > due]
    return Group(
        trained,
        places,
        before + waiting if not late else sorted(before + waiting, key=_LENGTH, reverse=True),
        Fluid(filling.tokens * share, density),
        reached,
        max(0.0, largest / reached - 1),
        not steady and reached < mean,
    )


def leaders(
    outliers: Sequence[Item], shorts: Fluid, limits: Limits, count: int, due: int = -1, held: int = 0
) -> list[Group]:
    """Groups that can be trained now, of at most ``count`` leaders from the longest to none at all.

    With ``count`` 1 the longest that can lead; else leaders spread over all lengths.

    Args:
        held: documents of this many tokens or more lead only if the longest of all does; 0: none is held.
    """
    possible: Iterable[int] = candidates(outliers, shorts, limits, count, due, held)
    found: list[Group] = []
    failed, skip = float("inf"), _SKIP
    for leader in possible:
        work = outliers[leader].work if leader < len(outliers) else 0
        if count == 1 and work > failed * skip:
            continue
        group = lead(outliers, leader, shorts, limits, due)
        if group is None:
            failed, skip = work, 1 - 1.5 * (1 - skip)
            continue
        found.append(group)
        if len(found) == count:
            break
    return found


def candidates(
    outliers: Sequence[Item], shorts: Fluid, limits: Limits, count: int, due: int = -1, held: int = 0
) -> Iterable[int]:
    """Leaders to try for ``leaders``; with ``count`` 1 from the longest on."""
    possible: Iterable[int] = _possible(outliers, shorts, limits)
    if due >= 0:
        first = next((place for place, item in enumerate(outliers) if item.arrival <= due), len(outliers))
        possible = [leader for leader in possible if leader <= first] or [first]
    if held:
        possible = (p for p in possible if p == len(outliers) or not held <= outliers[p].length < outliers[0].length)
    if count > 1:
        possible = list(possible)
        if len(possible) > count:
            possible = [possible[place * (len(possible) - 1) // (count - 1)] for place in range(count)]
    return possible


def forced(outliers: Sequence[Item], shorts: Fluid, limits: Limits, count: int, due: int = -1) -> list[Group]:
    """As ``leaders``, but whatever it does to the balance."""
    return leaders(outliers, shorts, replace(limits, tolerance=float("inf")), count, due)


def _possible(outliers: Sequence[Item], shorts: Fluid, limits: Limits) -> Iterator[int]:
    """Leaders whose work the shorter documents can supply to all micro-batches; and none at all."""
    steady, share = limits.step_tokens, limits.num_micro_batches / ((1 + limits.tolerance) * limits.targets[0])
    density = shorts.density if steady else 0.0  # in a steady step a long document replaces short ones
    work = sum([item.work for item in outliers]) + (steady * density or shorts.work)
    if steady:
        work -= sum([item.length for item in outliers]) * density
    for leader, item in enumerate(outliers):
        if item.work * share <= work:
            yield leader
        work -= item.work - item.length * density
    yield len(outliers)


def _place(
    group: Sequence[Item], level: float, limits: Limits, num_late: int
) -> tuple[list[int], list[int], list[int]]:
    """(micro-batch of each long document, -1 where it waits; work and tokens of each micro-batch).

    Each goes to the least work / target, in order, where that does not exceed the level; late ones wherever there is
    room, and where balance does not count any into a micro-batch that is empty.
    """
    balance_counts = limits.tolerance < float("inf")
    num, cap, targets = limits.num_micro_batches, limits.max_tokens, limits.targets
    budget = limits.step_tokens or num * cap
    if (
        len(group) <= num
        and all(map(le, map(_WORK, group), [level * target for target in targets]))
        and sum([item.length for item in group]) <= budget
    ):
        spare = [0] * (num - len(group))  # each has a micro-batch of its own
        works, tokens = [item.work for item in group] + spare, [item.length for item in group] + spare
        return list(range(len(group))), works, tokens
    works, tokens = [0] * num, [0] * num
    places = []
    by_work = [(0.0, place) for place in range(num)]  # a heap of (work / target, place)
    for number, item in enumerate(group):
        length, work, _, _ = item
        place = by_work[0][1]
        fits = tokens[place] + length <= cap
        if number < num_late and not fits:
            place = tokens.index(min(tokens))
            if tokens[place] + length <= cap:
                by_work.remove((works[place] / targets[place], place))
                heapify(by_work)
                heappush(by_work, ((works[place] + work) / targets[place], place))
            else:
                place = -1
        elif fits and (
            number < num_late
            or not (tokens[place] or balance_counts)
            or (works[place] + work <= level * targets[place] and length <= budget)
        ):
            heapreplace(by_work, ((works[place] + work) / targets[place], place))
        else:
            place = -1
        places.append(place)
        if place >= 0:
            works[place] += work
            tokens[place] += length
            budget -= length
    return places, works, tokens

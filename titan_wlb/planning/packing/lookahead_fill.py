"""Short documents fill the micro-batches of a group, and what is still uneven is evened out by exchanging two of them.

    N = 2, a document of d tokens costs d^2; long documents A 5 | B 4; short ones 3, 2, 2, 1; room for all

    B lacks more    3 and 2 go to B, which has 29; 2 goes to A, which has 29; 1 goes to B, which has 30

A difference of 1 in 29.5 is left, as no exchange makes it smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace
from operator import truediv

from titan_wlb.planning.packing.lookahead_group import Group, Item, Limits

_MAX_EXCHANGES = 64
_PARTNERS = 4  # small micro-batches that a large one exchanges with
_EVEN = 1e-4  # of the difference between two micro-batches: less is not gained


class Filled:
    """Micro-batches of a step.

    Args:
        targets: of the works of the N micro-batches.
    """

    def __init__(self, targets: Sequence[float]) -> None:
        self.targets = targets
        self.micro_batches: list[list[Item]] = [[] for _ in targets]
        self.works = [0] * len(targets)
        self.tokens = [0] * len(targets)

    @property
    def loads(self) -> list[float]:
        """Work / target of each micro-batch."""
        return list(map(truediv, self.works, self.targets))

    @property
    def excess(self) -> float:
        """Share by which the largest load exceeds the mean; infinite where a micro-batch is empty."""
        if not all(self.micro_batches):
            return float("inf")
        total = sum(self.works)
        return max(self.loads) * len(self.works) / total - 1 if total else 0.0

    def move(self, item: Item, source: int, target: int) -> None:
        """Takes an item from one micro-batch to another."""
        self.micro_batches[source].remove(item)
        self.works[source] -= item.work
        self.tokens[source] -= item.length
        self.add(item, target)

    def add(self, item: Item, target: int) -> None:
        """Puts an item into a micro-batch."""
        self.micro_batches[target].append(item)
        self.works[target] += item.work
        self.tokens[target] += item.length


def fill(group: Group, shorts: Sequence[Item], limits: Limits) -> Filled:
    """The step's micro-batches.

    A short document goes where the filling has to be densest: to the largest ratio of the work that is lacking to the
    tokens that are free. Where the cap keeps micro-batches below the work at hand, what exceeds the level waits.

    Args:
        shorts: longest first.
    """
    filled = Filled(limits.targets)
    for item, place in zip(group.trained, group.places, strict=True):
        filled.add(item, place)
    micro_batches, works, tokens, cap = filled.micro_batches, filled.works, filled.tokens, limits.max_tokens
    shorts, mean = _without_leaders(shorts, filled)
    level = max(group.level if group.capped else mean, *filled.loads)
    levels = [level * target for target in limits.targets]
    # (work lacking per free token, negated: the densest filling first; an empty micro-batch before all others)
    by_need = [
        ((work - level) / max(cap - total, 1) if total else float("-inf"), place)
        for place, (work, total, level) in enumerate(zip(works, tokens, levels, strict=True))
    ]
    heapify(by_need)
    parked: list[tuple[int, int]] = []  # (free tokens, negated), of those that the last documents did not fit into
    for item in shorts:
        length, work, _, _ = item
        while parked and -parked[0][0] >= length:
            place = heappop(parked)[1]
            heappush(by_need, ((works[place] - levels[place]) / max(cap - tokens[place], 1), place))
        while by_need and tokens[by_need[0][1]] + length > cap:
            place = heappop(by_need)[1]
            heappush(parked, (tokens[place] - cap, place))
        if not by_need:
            continue
        place = by_need[0][1]
        if not group.capped or works[place] + work <= levels[place] or not tokens[place]:
            micro_batches[place].append(item)
            works[place] += work
            tokens[place] += length
            heapreplace(by_need, ((works[place] - levels[place]) / max(cap - tokens[place], 1), place))
    _even_out(filled, limits)
    return filled


def _without_leaders(shorts: Sequence[Item], filled: Filled) -> tuple[Sequence[Item], float]:
    """(short documents none of which exceeds the mean work of a micro-batch, that mean): such as do wait."""
    work, num = sum(filled.works) + sum([item.work for item in shorts]), len(filled.works)
    needed = filled.tokens.count(0)
    first = 0
    while len(shorts) - first > needed and shorts[first].work * num > work:
        work -= shorts[first].work
        first += 1
    return shorts[first:], work / num


def _even_out(filled: Filled, limits: Limits) -> None:
    """The largest micro-batches exchange documents with the smallest, while that makes them smaller."""
    loads, tried = filled.loads, 0
    good_enough = sum(filled.works) / len(loads) * (1 + limits.tolerance / 8)
    exchanged = True
    while exchanged:
        exchanged = False
        order = sorted(range(len(loads)), key=loads.__getitem__)
        for rank, high in enumerate(reversed(order)):
            if filled.works[high] <= good_enough * filled.targets[high] or tried >= _MAX_EXCHANGES:
                break
            tried += 1
            exchanged |= any(_exchange(filled, high, low, limits.max_tokens) for low in order[rank : rank + _PARTNERS])
        loads = filled.loads


def _exchange(filled: Filled, high: int, low: int, cap: int) -> bool:
    """Whether a document went from one micro-batch to the other, which may give one back, and made them more even."""
    best = _best_exchange(filled, high, low, cap)
    if best is None:
        return False
    item, other = best
    filled.move(item, high, low)
    if other is not None:
        filled.move(other, low, high)
    return True


def _best_exchange(filled: Filled, high: int, low: int, cap: int) -> tuple[Item, Item | None] | None:
    """The document that moves and the one, or none, that comes back, so that both are as even as they can get."""
    of_high, of_low = filled.targets[high], filled.targets[low]
    gap = filled.works[high] / of_high - filled.works[low] / of_low
    rate = 1 / of_high + 1 / of_low  # by which it shrinks with the work that moves
    room_high, room_low = cap - filled.tokens[high], cap - filled.tokens[low]
    if gap <= 0:
        return None
    best, least = None, gap * (1 - _EVEN)
    for other in (
        [None, *filled.micro_batches[low]] if len(filled.micro_batches[high]) > 1 else filled.micro_batches[low]
    ):
        work, length = (other.work, other.length) if other is not None else (0, 0)
        for item in filled.micro_batches[high]:
            uneven = abs(gap - rate * (item.work - work))
            if uneven < least and -room_high <= item.length - length <= room_low:
                best, least = (item, other), uneven
    return best

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.packing.lookahead_fill import fill
from titan_wlb.planning.packing.lookahead_group import Fluid, Group, Item, Limits, lead, leaders
from titan_wlb.planning.packing.lookahead_pool import Pool, newest_left_out
from titan_wlb.planning.packing.lookahead_rollout import Forecast, Rollout
from titan_wlb.planning.plan import Document, Segment
from titan_wlb.planning.workload import Workload

QUADRATIC = Workload(0, 0, 1)
EQUAL = (1.0, 1.0)
TWO = Limits(num_micro_batches=2, max_tokens=1000, tolerance=0.001, targets=EQUAL)


def items_of(*lengths: int, arrival: int = 1) -> list[Item]:
    return [Item(length, length * length, place, arrival) for place, length in enumerate(lengths)]


def lengths_by_micro_batch(group: Group, num_micro_batches: int) -> list[list[int]]:
    pairs = list(zip(group.trained, group.places, strict=True))
    return [[item.length for item, place in pairs if place == number] for number in range(num_micro_batches)]


def test_the_drawn_groups() -> None:
    outliers, shorts = items_of(10, 9, 6), Fluid(tokens=15, density=2)
    a_leads = lead(outliers, 0, shorts, TWO)
    assert a_leads is not None and lengths_by_micro_batch(a_leads, 2) == [[10], [9, 6]]
    assert a_leads.level == 123.5 and a_leads.excess == 0 and not a_leads.waiting
    assert lead(outliers, 1, shorts, TWO) is None
    assert lead(outliers, 2, shorts, TWO) is None
    none_leads = lead(outliers, 3, shorts, TWO)
    assert none_leads is not None and none_leads.level == 15 and none_leads.waiting == outliers
    assert leaders(outliers, shorts, TWO, 8) == [a_leads, none_leads]


def test_what_is_late_is_trained_although_a_shorter_document_leads() -> None:
    late, fresh = items_of(10), items_of(6, 5, arrival=7)
    group = lead([*late, *fresh], 1, Fluid(10, 2), Limits(2, 1000, 10.0, EQUAL), due=1)
    assert group is not None and late[0] in group.trained


def test_a_cap_lowers_the_level_that_short_documents_can_reach() -> None:
    # 12 tokens may be added to each micro-batch's 8, of work 2 each
    group = lead(items_of(8, 8), 0, Fluid(tokens=100, density=2), Limits(2, 20, 0.001, EQUAL))
    assert group is not None and group.capped
    assert group.level == 64 + 12 * 2 and group.shorts == Fluid(24, 2)


def test_the_drawn_rollout() -> None:
    lengths = np.array([8, *[1] * 8, 9, *[1] * 7, *[1] * 100], dtype=np.int64)
    forecast = Forecast(lengths, asked=32, shortest=4, workload=QUADRATIC)
    rollout = Rollout(forecast, TWO, step_tokens=16, num_steps=2, price=1000.0, step=1, max_age=0)
    group = Group([], [], items_of(7), Fluid(16, 2), level=16.0, excess=0.0, capped=False)
    assert rollout.score(group, Fluid(16, 2)) == 7 + 0 + 9
    uneven = Group([], [], items_of(7), Fluid(16, 2), level=16.0, excess=0.5, capped=False)
    assert rollout.score(uneven, Fluid(16, 2)) == 7 + 0 + 9 + 500


def test_the_drawn_filling() -> None:
    group = Group(items_of(5, 4), [0, 1], [], Fluid(8, 2.25), level=29.5, excess=0.0, capped=False)
    filled = fill(group, items_of(3, 2, 2, 1), TWO)
    assert [[item.length for item in items] for items in filled.micro_batches] == [[5, 2], [4, 3, 2, 1]]
    assert filled.works == [29, 30] and filled.tokens == [7, 10]


def test_a_short_document_that_would_lead_waits() -> None:
    nothing = Group([], [], [], Fluid(42, 22), level=100.0, excess=0.0, capped=False)
    filled = fill(nothing, items_of(30, 3, 3, 3, 3), TWO)
    assert filled.works == [18, 18]


def segments_of(*lengths: int, arrival: int = 1, first_id: int = 0) -> list[Segment]:
    return [Segment(Document(first_id + n, length, arrival), 0, length) for n, length in enumerate(lengths)]


def test_the_drawn_pool() -> None:
    pool = Pool(segments_of(12), 16, QUADRATIC)
    pool.add([Document(id, length, arrival=2) for id, length in enumerate([5, 2, 7, 2], 1)])
    assert [item.length for item in pool.outliers] == [12, 7, 5]
    assert [item.place for item in pool.short] == [2, 4] and pool.shorts == Fluid(4, 2)
    assert pool.num_tokens == 28
    pool.make_long(due=2)
    assert [item.length for item in pool.outliers] == [12, 7, 5, 2, 2] and not pool.short


def test_of_equal_documents_the_earlier_is_taken() -> None:
    pool = Pool(segments_of(4, 4, 2, 4), 16, QUADRATIC)
    by_place = sorted(pool.outliers + pool.short, key=lambda item: item.place)
    micro_batches, left = pool.take([[by_place[3]], [by_place[2], by_place[1]]])
    assert [[segment.document.id for segment in segments] for segments in micro_batches] == [[0], [2, 1]]
    assert [segment.document.id for segment in left] == [3]


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(0, 400))
def test_what_is_left_out_is_the_newest_that_fits_into_the_excess(lengths: list[int], tokens: int) -> None:
    items = items_of(*sorted(lengths, reverse=True))
    kept = newest_left_out(items, tokens)
    excess = sum(item.length for item in kept) - tokens
    assert excess >= 0 or kept == items
    assert all(item.length > excess for item in kept) or excess <= 0


outliers_lists = st.lists(st.integers(32, 128), max_size=24).map(lambda lengths: sorted(lengths, reverse=True))


@settings(max_examples=200, deadline=None)
@given(outliers_lists, st.integers(0, 600), st.integers(1, 6), st.sampled_from([128, 160, 256]), st.booleans())
def test_a_group_keeps_to_its_limits(lengths: Sequence[int], tokens: int, num: int, cap: int, steady: bool) -> None:
    outliers, shorts = items_of(*lengths), Fluid(tokens, 3)
    limits = Limits(num, cap, 0.05, (1.0,) * num, num * 128 if steady else 0)
    for group in leaders(outliers, shorts, limits, count=100):
        assert sorted([*group.trained, *group.waiting]) == sorted(outliers)
        parts = lengths_by_micro_batch(group, num)
        works = [sum(length * length for length in part) for part in parts]
        assert all(sum(part) <= cap for part in parts)
        assert max(works) <= group.level * 1.05 + 1e-9
        assert group.excess == pytest.approx(max(0.0, max(works) / group.level - 1))
        if steady:
            assert sum(map(sum, parts)) + group.shorts.tokens == num * 128
        else:
            assert group.shorts.tokens <= tokens * (1 + 1e-9)

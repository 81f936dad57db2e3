import pytest

from titan_wlb.records import TIMES, Layout, Section, StepRecord, StepTimes
from titan_wlb.records.transfer import collective_groups, with_transfer


def record(rank, **collectives_ms):
    row = tuple(float(sum(collectives_ms.get(name, ()))) for name in TIMES)
    return StepRecord(rank, StepTimes(1, (Section("F", 0, 0, 0.0, row),), collectives_ms))


def test_the_drawing():
    late = with_transfer([record(0, cp=(52.0, 2.0)), record(1, cp=(2.0, 42.0))], Layout(cp=2), 1)
    assert [each.ms("cp_transfer") for each in late] == [4, 4]
    assert [each.ms("cp_waiting") for each in late] == [50, 40]
    assert late[0].times.collectives_ms == {}


def test_ranks_wait_for_those_of_their_own_group_only():
    records = [record(rank, cp=(10.0 * (1 + rank),)) for rank in range(4)]
    assert [each.cp_transfer_ms for each in with_transfer(records, Layout(dp=2, cp=2), 2)] == [10, 10, 30, 30]


def test_what_only_some_ranks_counted_is_waiting():
    records = with_transfer([record(0, fsdp=(1.0, 1.0, 7.0)), record(1, fsdp=(2.0, 2.0))], Layout(dp=2), 2)
    assert [each.fsdp_transfer_ms for each in records] == [2, 2]


def test_the_reduction_over_replicas_counts_as_fsdp():
    """Two replicas of two shards: ranks 0 1 | 2 3."""
    exposed = [((5.0,), (3.0,)), ((1.0,), (4.0,)), ((2.0,), (6.0,)), ((8.0,), (7.0,))]
    records = [record(rank, fsdp=fsdp, dp_replicate=over) for rank, (fsdp, over) in enumerate(exposed)]
    found = [each.fsdp_transfer_ms for each in with_transfer(records, Layout(dp=4), 2)]
    assert found == [1 + 3, 1 + 4, 2 + 3, 2 + 4]


@pytest.mark.parametrize(
    "name, groups",
    [
        ("cp", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("fsdp", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("dp_replicate", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ],
)
def test_groups_are_those_of_torchtitans_meshes(name, groups):
    assert collective_groups(Layout(dp=4, cp=2), 2, name) == groups
    inside = collective_groups(Layout(pp=2, dp=4, cp=2, tp=2), 2, name)
    assert sorted(rank for ranks in inside for rank in ranks) == list(range(32))
    assert {len(ranks) for ranks in inside} == {len(groups[0])}


def test_alone_everything_is_transfer():
    (alone,) = with_transfer([record(0, fsdp=(3.0, 4.0))], Layout(), 1)
    assert alone.ms("fsdp_transfer") == 7 and alone.ms("fsdp_waiting") == 0

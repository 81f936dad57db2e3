import pytest

from titan_wlb.records import TIMES, Layout, Section, StepRecord, StepTimes
from titan_wlb.records.per_rank import FIELDS, PerRankSchema, columns, per_rank_rows, schema_of


def record(rank, *rows, **transfers):
    sections = tuple(Section("F", 0, i, 0.0, tuple(map(float, row))) for i, row in enumerate(rows))
    return StepRecord(rank, StepTimes(1, sections), **transfers)


def test_a_row_is_what_the_record_says_of_each_field():
    records = [
        record(0, range(1, 9), (0.5, -0.75, *range(6)), cp_transfer_ms=3.0, fsdp_transfer_ms=99.0),
        record(1, (10, -0.25, 0, 1, 2, 3, 4, 5)),
        record(2),
    ]
    assert per_rank_rows(records) == [[each.ms(name) for name, _ in FIELDS] for each in records]


def test_columns_are_looked_up_by_name():
    of_ranks = columns(per_rank_rows([record(0, range(8)), record(1, range(1, 9))]))
    assert of_ranks["compute"] == (0, 1) and of_ranks["idle"] == (3 + 4 + 5 + 6, 4 + 5 + 6 + 7)
    assert set(TIMES) <= set(of_ranks)


def test_a_schema_survives_its_text():
    schema = PerRankSchema.of_layout(Layout(pp=2, dp=1, cp=2, tp=1))
    assert PerRankSchema.from_json(schema.to_json()) == schema
    assert schema.coordinates[3] == (1, 0, 1, 0)


def test_a_table_is_read_by_the_schema_that_it_was_written_as():
    """Schemas at steps 1 (4 ranks) and 21 (2 ranks); a table of 4 ranks at step 25 is of before the resume."""
    four, two = PerRankSchema.of_layout(Layout(dp=4)), PerRankSchema.of_layout(Layout(dp=2))
    schemas = {1: four, 21: two}
    assert schema_of(schemas, 20, 4) is four
    assert schema_of(schemas, 30, 2) is two
    assert schema_of(schemas, 25, 4) is four
    assert schema_of(schemas, 30, 8) is None


def test_of_two_layouts_with_as_many_ranks_the_later_one_counts_from_its_step_on():
    before, after = PerRankSchema.of_layout(Layout(dp=2)), PerRankSchema.of_layout(Layout(pp=2))
    assert schema_of({1: before, 21: after}, 20, 2) is before
    assert schema_of({1: before, 21: after}, 21, 2) is after


def test_what_is_no_schema_of_ours_is_refused():
    for text in ("{}", "[]", '{"version": 99}'):
        with pytest.raises(ValueError):
            PerRankSchema.from_json(text)

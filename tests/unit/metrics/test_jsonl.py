from titan_wlb.metrics.jsonl import RecordWriter, read_records
from titan_wlb.records import Layout, Section, StepRecord, StepTimes

LAYOUT = Layout(pp=2)


def records_of(step, compute):
    sections = (Section("F", 0, 0, 0.0, (compute, 0, 0, 1.5, 0, 0, 0, 0)),)
    return [StepRecord(rank, StepTimes(step, sections)) for rank in range(2)]


def test_what_is_written_is_read_in_the_order_of_steps(tmp_path):
    path = tmp_path / "wlb" / "records.jsonl"
    writer = RecordWriter(path)
    for step in (1, 10):
        writer.write(records_of(step, float(step)), LAYOUT, {"loss": 2.0})
    writer.close()
    (first, layout, measures, records), (second, *_) = read_records(path)
    assert (first, second, layout, measures) == (1, 10, LAYOUT, {"loss": 2.0})
    assert records == records_of(1, 1.0)


def test_after_a_resume_the_later_line_of_a_step_counts(tmp_path):
    path = tmp_path / "records.jsonl"
    for steps in ((1, 2, 3), (2, 3)):
        writer = RecordWriter(path)
        for step in steps:
            writer.write(records_of(step, float(len(steps))), LAYOUT, {})
        writer.close()
    assert [(step, records[0].ms("compute")) for step, _, _, records in read_records(path)] == [(1, 3), (2, 2), (3, 2)]


def test_a_line_torn_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "records.jsonl"
    writer = RecordWriter(path)
    writer.write(records_of(1, 1.0), LAYOUT, {})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 2, "layo')
    assert [step for step, *_ in read_records(path)] == [1]

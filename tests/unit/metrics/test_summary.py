import pytest

from titan_wlb.metrics.history import History
from titan_wlb.metrics.summary import summary_table
from titan_wlb.records import TIMES, Layout, MicroBatchCost, Section, StepRecord, StepTimes, Totals


def records_of(layout, step, compute=lambda rank: 100.0, totals_steps=1, **times):
    records = []
    for rank in range(layout.size):
        values = {"compute": compute(rank), **times}
        row = tuple(float(values.get(name, 0)) for name in TIMES)
        totals = Totals(totals_steps, tuple(totals_steps * ms for ms in row))
        sections = (Section("F", 0, 0, 0.0, row),)
        records.append(StepRecord(rank, StepTimes(step, sections, {}, totals), cp_transfer_ms=times.get("cp", 0) / 4))
    return records


def history_of(layout, **kwargs):
    history = History(layout)
    for step in (1, 2, 3, 4):
        records = records_of(layout, step, totals_steps=1 if step > 2 else 0, **kwargs)
        costs = [MicroBatchCost(0, 0, 10.0, 40.0), MicroBatchCost(0, 1, 30.0, 80.0)]
        history.add(records, predicted_imbalance_degree=float(step), costs=costs, loss=8.0 - step)
    return history


def table_of(history, folder="outputs/tb/20260101"):
    return summary_table(
        history,
        packing="variable_length",
        sharding="per_document",
        predicted={"original": 1.3123, "variable_length": 1.0412},
        delay_iterations=0.4242,
        tensorboard_folder=folder,
    )


def row_of(table, first):
    return next(line.split() for line in table.splitlines() if line.split()[:1] == [first])


def test_the_first_two_steps_enter_losses_only():
    history = history_of(Layout(pp=2), cp=20)
    assert history.steps == history.num_degrees == 2
    assert history.predicted_imbalance_degree == 3.5
    assert history.losses == [(1, 7.0), (4, 4.0)]
    assert history.waiting_share("cp") == pytest.approx(0.75)
    assert history.idle_share == pytest.approx(20 / 120)


def test_ranks_that_do_not_log_have_no_history():
    history = History(Layout())
    history.add([], predicted_imbalance_degree=1.0, costs=[], loss=1.0)
    assert history.steps == 0 and history.losses == []


def test_each_rank_has_a_row_with_compute_idle_by_cause_and_idle_share():
    layout = Layout(pp=2, cp=2)
    history = history_of(
        layout, compute=lambda rank: 100.0 + rank, pipeline=40, cp=30, fsdp=20, data=10, starved=5, other=1
    )
    lines = table_of(history).splitlines()
    head = next(line.split() for line in lines if "rank" in line.split()[:1])
    assert head == ["rank", "place", "step", "compute", "pipeline", "cp", "fsdp", "data", "starved", "idle"]
    numbers = ["209.0", "103.0", "40.0", "30.0", "20.0", "10.0", "5.0", "47.8%"]
    assert row_of(table_of(history), "3")[:-1] == ["3", "pp1", "cp1", *numbers]
    assert row_of(table_of(history), "mean")[1:3] == ["207.5", "101.5"]


def test_the_table_tells_balance_delay_loss_and_how_to_see_more():
    table = table_of(history_of(Layout(pp=2), cp=20))
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert "this run: variable_length, per_document 3.500 1.000" in lines
    assert "same documents: original 1.312" in lines
    assert "same documents: variable_length 1.041" in lines
    assert "a micro-batch's cost is predicted to within 18.8 % (mean)" in lines
    assert "mean delay of a token 0.424 iterations" in lines
    assert "loss 7.0000 (step 1) -> 4.0000 (step 4)" in lines
    assert "Waiting for a slower rank: 75 % of cp; the rest is transfer." in lines
    assert lines[-1] == "tensorboard --logdir outputs/tb/20260101"


def test_a_wait_that_no_clock_knows_is_pointed_out():
    assert "off the core" not in table_of(history_of(Layout(), blocked=0.5))
    assert "Up to 7.0 ms" in table_of(history_of(Layout(), blocked=7))


@pytest.mark.parametrize("layout", [Layout(), Layout(pp=2, cp=2), Layout(pp=8, dp=2, cp=2), Layout(16, 64, 4, 8)])
def test_no_line_is_wider_than_a_terminal(layout):
    table = table_of(history_of(layout, compute=lambda rank: 12345.6, pipeline=999.9, cp=3, fsdp=1))
    assert max(len(line) for line in table.splitlines()) <= 100


def test_many_ranks_are_summed_up_with_the_slowest():
    layout = Layout(dp=64)
    table = table_of(history_of(layout, compute=lambda rank: 500.0 if rank == 33 else 100.0 + rank))
    assert row_of(table, "33")[2] == "500.0"
    assert row_of(table, "min")[2] == "100.0"
    assert not any(line.split()[:1] == ["32"] for line in table.splitlines())


def test_a_run_that_was_too_short_still_has_a_table():
    history = History(Layout())
    history.add(records_of(Layout(), 1, totals_steps=0), predicted_imbalance_degree=1.0, costs=[], loss=5.0)
    table = table_of(history, folder=None)
    assert "no times to show" in table
    assert "tensorboard" not in table

from titan_wlb.metrics.stragglers import SLOWEST_SHOWN, StragglerLog, place_name, slowest_table
from titan_wlb.records import TIMES, Layout, Section, StepRecord, StepTimes
from titan_wlb.records.per_rank import per_rank_rows


def rows_of(compute, **times):
    rows = [tuple(float({"compute": ms, **times}.get(name, 0)) for name in TIMES) for ms in compute]
    return per_rank_rows(
        [StepRecord(rank, StepTimes(1, (Section("F", 0, 0, 0.0, row),))) for rank, row in enumerate(rows)]
    )


def test_the_drawing_of_the_table():
    table = slowest_table(rows_of([20, 20, 20, 40], cp=10), Layout(pp=2, cp=2), 10).splitlines()
    assert table[0] == "**Slowest of 4 ranks in step 10** (compute, mean 25.0 ms)"
    assert table[4] == "| 3 | pp1 cp1 | 40.0 | 1.60 | 0.0 | 20 % |"
    assert len(table) == 4 + 4


def test_of_many_ranks_the_slowest_come_first_and_the_rest_is_left_out():
    table = slowest_table(rows_of([rank % 97 for rank in range(1000)]), Layout(dp=1000), 1).splitlines()
    assert len(table) == 4 + SLOWEST_SHOWN
    assert [line.split()[1] for line in table[4:6]] == ["96", "193"]


def test_a_place_names_the_axes_that_have_ranks():
    assert place_name(Layout(pp=2, dp=3, cp=1, tp=2), 11) == "pp1 dp2 tp1"
    assert place_name(Layout(), 0) == ""


def lines(slow_ranks):
    log = StragglerLog(Layout(dp=8))
    return {step: line for step, rank in slow_ranks if (line := log.line(step, rank, 41.7)) is not None}


def test_a_slow_rank_is_named_ever_more_seldom():
    """Rank 3 slow from step 20 on, logged every 10 steps."""
    said = lines([(10, -1), *((step, 3) for step in range(20, 90, 10))])
    assert list(said) == [20, 30, 40, 60]
    assert "Rank 3 (dp3) is persistently slow:" in said[20] and "42 ms" in said[20]
    assert "since step 20" in said[60]


def test_its_end_is_told_once_and_another_rank_is_named_at_once():
    said = lines([(10, 3), (20, -1), (30, -1), (40, 5), (50, 6)])
    assert list(said) == [10, 20, 40, 50]
    assert said[20] == "Rank 3 is no longer slow (it was from step 10 on)"
    assert "Rank 6" in said[50] and "since" not in said[50]


def test_a_run_of_ten_thousand_logged_steps_says_a_dozen_lines():
    assert len(lines([(step, 1) for step in range(1, 10_001)])) <= 15


def test_nothing_slow_says_nothing():
    assert not lines([(step, -1) for step in range(20)])

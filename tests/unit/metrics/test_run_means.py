import pytest

from titan_wlb.metrics.history import History
from titan_wlb.metrics.run_means import RunMeans
from titan_wlb.records import TIMES, Layout, Section, StepRecord, StepTimes, Totals


def records_of(step, steps, compute, fsdp):
    row = tuple(float({"compute": compute, "fsdp": fsdp}.get(name, 0)) for name in TIMES)
    totals = Totals(steps, tuple(steps * ms for ms in row))
    return [StepRecord(rank, StepTimes(step, (Section("F", 0, 0, 0.0, row),), {}, totals)) for rank in range(2)]


def test_the_first_two_steps_do_not_count_and_steps_that_are_not_logged_do():
    history, means = History(Layout(dp=2)), RunMeans()
    told = {}
    for step, steps, compute, fsdp, tokens in ((1, 0, 9e9, 9e9, 1), (10, 8, 60, 40, 300), (20, 10, 50, 50, 500)):
        records = records_of(step, steps, compute, fsdp)
        history.add(records, predicted_imbalance_degree=1.0, costs=[], loss=1.0)
        told[step] = means.add(history, tokens, compute + fsdp)
    assert told[1] == {}
    assert told[10]["wlb/run/tokens_per_second"] == pytest.approx(3000)
    assert told[20]["wlb/run/tokens_per_second"] == pytest.approx(4000)
    assert told[20]["wlb/lost_rank_hours"] == pytest.approx(2 * (8 * 40 + 10 * 50) / 3.6e6)
    assert told[20]["wlb/run/idle_share"] == pytest.approx((8 * 40 + 10 * 50) / 1800)
    assert told[20]["wlb/run/imbalance_degree"] == 1

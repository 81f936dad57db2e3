import pytest

from titan_wlb.metrics.scalars import percentile, scalars
from titan_wlb.records import TIMES, Layout, MicroBatchCost, Section, StepRecord, StepTimes


def record(rank, micro_batch=0, **times):
    row = tuple(float(times.get(name, 0)) for name in TIMES)
    return StepRecord(rank, StepTimes(1, (Section("F", 0, micro_batch, 0.0, row),)), cp_transfer_ms=times.get("t", 0))


def of(records, layout, **kwargs):
    costs = [MicroBatchCost(0, 0, 10.0, 40.0), MicroBatchCost(1, 0, 30.0, 80.0)]
    measures = {"predicted_imbalance_degree": 1.25, "costs": costs, "delay_iterations": 0.5, "tokens": 1000}
    return scalars(records, layout, **measures, **kwargs)


def test_few_ranks_have_a_scalar_each():
    values = of([record(0, compute=30, cp=10, t=4), record(1, compute=20, cp=10, data=10, t=4)], Layout(dp=2))
    assert values["wlb/rank0000/compute_ms"] == 30
    assert values["wlb/rank0001/compute_ms"] == 20
    assert values["wlb/rank0001/idle_ms"] == 20
    assert values["wlb/compute_ms/mean"] == 25
    assert (values["wlb/idle_ms/max"], values["wlb/idle_ms/max_rank"]) == (20, 1)


def test_a_steps_measures_stand_under_their_names():
    records = [record(0, compute=30, cp=10, t=4), record(1, compute=20, cp=10, data=10, t=4)]
    values = of(records, Layout(dp=2), flops=8e9, peak_flops=1e12, documents_waiting=6)
    assert values["wlb/imbalance_degree/predicted"] == 1.25
    assert values["wlb/imbalance_degree/measured"] == pytest.approx(2 * 30 / 50)
    assert values["wlb/micro_batch_cost/measured_over_predicted"] == 3
    assert values["wlb/micro_batch_cost/error"] == pytest.approx((0.25 + 0.125) / 2)
    assert values["wlb/imbalance_degree/dp"] == values["wlb/imbalance_degree/ranks"] == pytest.approx(30 / 25)
    assert values["wlb/imbalance_degree/cp"] == 1
    assert values["wlb/delay_iterations"] == 0.5
    assert values["wlb/documents_waiting"] == 6
    assert values["wlb/tokens_per_step"] == 1000
    assert values["wlb/tokens_per_second"] == pytest.approx(1000 / 0.04)
    assert values["wlb/idle_share"] == pytest.approx(30 / 80)
    assert values["wlb/idle/cp_ms"] == 10
    assert values["wlb/idle/cp_transfer_ms"] == 4
    assert values["wlb/idle/cp_waiting_ms"] == 6
    assert values["wlb/idle/data_ms"] == 5
    assert values["wlb/idle/pipeline_ms"] == values["wlb/idle/fsdp_ms"] == 0
    assert values["wlb/mfu"] == pytest.approx(100 * 8e9 / (0.04 * 1e12 * 2))


def test_lost_time_stands_under_its_cause():
    values = of([record(0, compute=1)], Layout(), lost_ms={"cp": 41.0, "slow_rank": 7.0})
    assert {tag: value for tag, value in values.items() if "/lost/" in tag} == {
        "wlb/lost/cp_ms": 41.0,
        "wlb/lost/slow_rank_ms": 7.0,
    }


def test_without_a_known_peak_there_is_no_mfu():
    assert "wlb/mfu" not in of([record(0, compute=1)], Layout(), flops=1e9)


def test_many_ranks_are_summed_up_and_the_slowest_named():
    values = of([record(rank, compute=rank if rank != 7 else 1000) for rank in range(100)], Layout(dp=100))
    assert not any(tag.startswith("wlb/rank") for tag in values)
    assert values["wlb/compute_ms/min"] == 0
    assert values["wlb/compute_ms/p95"] == 95
    assert (values["wlb/compute_ms/max"], values["wlb/compute_ms/max_rank"]) == (1000, 7)
    assert values["wlb/idle_ms/max"] == 0


def test_every_value_is_a_plain_number_below_wlb():
    values = of([record(0, compute=1)], Layout())
    assert all(tag.startswith("wlb/") and isinstance(value, (int, float)) for tag, value in values.items())


def test_percentile_is_a_value_of_the_list():
    assert percentile([5, 1, 3], 95) == 5
    assert percentile([5, 1, 3, 4], 50) == 3
    assert percentile([2], 0) == 2

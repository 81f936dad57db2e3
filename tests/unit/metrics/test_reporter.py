"""The reporter of a single process that stands for all ranks: it posts for them, too."""

import logging
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import titan_wlb.compat.cpu  # noqa: F401  (before torchtitan)

# isort: split
from titan_wlb.metrics.jsonl import read_records
from titan_wlb.metrics.mailbox import Mailbox
from titan_wlb.metrics.reporter import Reporter
from titan_wlb.planning.config import PlannerConfig
from titan_wlb.planning.plan import Document, MicroBatch, Segment, ShardPlan, StepPlan
from titan_wlb.planning.planner import Pipeline
from titan_wlb.planning.workload import ModelShape, Workload
from titan_wlb.records import TIMES, Layout, Section, StepTimes

LAYOUT = Layout(dp=2)
CONFIG = PlannerConfig(
    packing="original", num_micro_batches=2, context_window=64, max_tokens=64, workload=Workload(0, 1, 0)
)


@pytest.fixture
def job():
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Processor:
    """TorchTitan's, as far as the reporter looks at it."""

    def __init__(self):
        self.values = {}
        self.logger = SimpleNamespace(log=lambda values, step: self.values.setdefault(step, values))
        self.gpu_peak_flops = 0


@pytest.fixture
def reporter(job, tmp_path):
    made = Reporter(
        SimpleNamespace(job=SimpleNamespace(dump_folder=str(tmp_path))),
        SimpleNamespace(get_optional_mesh=lambda name: None, dp_shard=2),
        LAYOUT,
        Processor(),
        shape=ModelShape(8, 1, 1, 1, 8, 16, 32),
        index=None,
        planner_config=CONFIG,
        pipeline=Pipeline(),
        rank_ms=lambda cost: cost / 1e6,
        device=torch.device("cpu"),
        causes=lambda records, plan: ({"slow_rank": 12.0, "dp": 30.0}, 1 if plan.step > 1 else -1),
    )
    yield made
    made.close()


def plan_of(step):
    micro_batch = MicroBatch((Segment(Document(0, 32, step), 0, 32),), 5_000_000)
    shard = ShardPlan("per_sequence", (32,), ())
    return StepPlan(step, 0, (micro_batch,) * 2, (0, 1), (shard,) * 2, 1, 1, 3, 32, 0, 1, "", b"")


def times_of(rank, step):
    times = {"compute": 10 + 10 * rank, "fsdp": 20 - 10 * rank}
    row = tuple(float(times.get(name, 0)) for name in TIMES)
    return StepTimes(step, (Section("F", 0, 0, 0.0, row),), {"fsdp": (times["fsdp"],)})


def log(reporter, step):
    reporter.observe(plan_of(step))
    reporter.log(times_of(0, step), plan_of(step), loss=8.0 - step)


def other_rank(reporter):
    return Mailbox(reporter._mailbox._store, 1, 2, is_receiver=False)


def test_a_step_is_written_once_all_records_are_there_and_nobody_waits_for_it(reporter, tmp_path):
    log(reporter, 1)
    reporter.observe(plan_of(2))
    assert reporter.processor.values == {}
    other_rank(reporter).post(times_of(1, 1))
    until = time.monotonic() + 5
    while not reporter.processor.values and time.monotonic() < until:
        reporter.observe(plan_of(3))
    values = reporter.processor.values[1]
    assert values["wlb/imbalance_degree/dp"] == pytest.approx(20 / 15)
    assert values["wlb/idle/fsdp_transfer_ms"] == 10 and values["wlb/idle/fsdp_waiting_ms"] == 5
    assert values["wlb/documents_waiting"] == 3
    assert values["wlb/lost/dp_ms"] == 30 and values["wlb/lost/slow_rank"] == -1
    ((step, layout, measures, records),) = read_records(tmp_path / "wlb" / "records.jsonl")
    assert (step, layout, measures["loss"], len(records)) == (1, LAYOUT, 7.0, 2)


def test_a_lost_record_costs_a_line_of_the_log_and_not_the_run(reporter, caplog, tmp_path):
    reporter._mailbox._give_up_s = 0.3
    log(reporter, 1)
    log(reporter, 2)
    other_rank(reporter).post(times_of(1, 2))
    with caplog.at_level(logging.WARNING):
        reporter._write_arrived(reporter._mailbox.finish())
    assert "Step 1 is not in the dashboards: no record came from rank 1" in caplog.text
    assert [step for step, *_ in read_records(tmp_path / "wlb" / "records.jsonl")] == [2]
    assert "Rank 1 (dp1) is persistently slow" in caplog.text

"""The shipped demo: what ./run_train.sh shows and writes, and that its documents really are unbalanced."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
from torchtitan.config import ConfigManager

from titan_wlb.build import PERCENT_OF_PEAK, model_shape, planner_config
from titan_wlb.compat.cpu import CPU_PEAK_FLOPS
from titan_wlb.data.index import open_index
from titan_wlb.job_config import JobConfig
from titan_wlb.metrics.jsonl import read_records
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.planning.planner import Planner
from titan_wlb.planning.workload import analytic

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[str, Path]:
    """(output, dump folder) of the demo on two ranks, a few steps long."""
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(folder, ranks=2), folder


def run_demo(folder: Path, ranks: int, *flags: str) -> str:
    environment = os.environ | {
        "NGPU": str(ranks),
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = ["./run_train.sh", "--training.steps", str(STEPS), "--job.dump_folder", str(folder), *flags]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout + run.stderr


def losses(output: str) -> dict[int, float]:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    return {int(step): float(loss) for step, loss in re.findall(r"step: +(\d+) +loss: +([\d.]+)", plain)}


def test_the_layout_is_said_and_the_loss_of_every_step_shown(demo):
    output, _ = demo
    assert "2 ranks" in output and "DP 2" in output
    assert sorted(losses(output)) == list(range(1, STEPS + 1))


def test_a_table_closes_the_run(demo):
    output, folder = demo
    table = output[output.index("Where the time went") :]
    assert re.search(r" 0 dp0( +[\d.]+){7} +[\d.]+%", table) and re.search(r" 1 dp1( +[\d.]+){7} +[\d.]+%", table)
    assert re.search(r"this run: variable_length, per_document +1\.\d{3} +\d\.\d{3}", table)
    assert re.search(r"same documents: original +1\.\d{3}", table)
    assert "mean delay of a token" in table
    assert f"tensorboard --logdir {folder}/tb/" in table


def test_tensorboard_holds_our_scalars_beside_torchtitans(demo):
    _, folder = demo
    (run,) = (folder / "tb").iterdir()
    events = EventAccumulator(str(run)).Reload()
    tags = set(events.Tags()["scalars"])
    ours = {"imbalance_degree/predicted", "imbalance_degree/measured", "delay_iterations", "tokens_per_step", "mfu"}
    ours |= {f"rank{rank:04d}/{what}_ms" for rank in range(2) for what in ("compute", "idle")}
    assert {f"wlb/{tag}" for tag in ours} <= tags
    assert {"loss_metrics/global_avg_loss", "grad_norm", "throughput(tps)", "mfu(%)"} <= tags
    assert [event.step for event in events.Scalars("wlb/tokens_per_step")] == list(range(1, STEPS + 1))
    recorded = {step: measures["loss"] for step, _, measures, _ in read_records(folder / "wlb" / "records.jsonl")}
    shown = {event.step: event.value for event in events.Scalars("loss_metrics/global_avg_loss")}
    assert recorded == pytest.approx(shown)


def test_a_pipeline_shows_the_loss_of_every_step_on_the_first_ranks_screen(demo):
    _, folder = demo  # its index serves again
    output = run_demo(folder, 4)
    assert "PP 2 x CP 2, Interleaved1F1B" in output
    assert sorted(losses(output)) == list(range(1, STEPS + 1))
    assert all(0 < loss < 12 for loss in losses(output).values())


def test_flags_overrule_the_layout_that_the_script_chose(demo):
    _, folder = demo
    output = run_demo(folder, 2, "--parallelism.context_parallel_degree", "2", "--training.steps", "3")
    assert re.search(r" 1 cp1( +[\d.]+){7} +[\d.]+%", output)


def test_the_documents_of_the_demo_are_unbalanced_and_balance_well(demo):
    _, folder = demo
    config = ConfigManager(JobConfig).parse_args(["--job.config_file", str(ROOT / "train_configs/debug_cpu.toml")])
    (index,) = (path.parent for path in (folder / "wlb" / "index").glob("*/segment-00000"))
    shape = model_shape(FLAVORS[config.model.flavor])
    planned = planner_config(config, analytic(shape, CPU_PEAK_FLOPS * PERCENT_OF_PEAK // 100))

    def degree(packing: str) -> float:
        planner = Planner(open_index(index), planned.packed_by(packing), dp=1, cp=1)
        return float(np.mean([planner.plan().imbalance_degree for _ in range(config.training.steps)]))

    assert degree("original") >= 1.25
    assert degree("variable_length") <= 1.05

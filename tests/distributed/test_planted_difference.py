"""A rank that plans otherwise than the others ends the run, at the step where it does, logged or not, with one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from parity_layouts import PARITY, SHARED

from titan_wlb.launch import REFUSED

HERE = Path(__file__).parent
SECONDS = 120  # a run that hangs would take TorchTitan's half an hour


@pytest.mark.parametrize(("planted", "step"), [("coefficients", 1), ("step_3", 3)])
def test_a_planted_difference_ends_the_run_in_one_line(tmp_path, planted, step):
    # Three ranks: of two nobody could say which one is wrong.
    python = Path(sys.executable).parent
    environment = os.environ | {
        "NGPU": "3",
        "TRAIN_FILE": "differing_train",
        "PLANTED": planted,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PATH": os.pathsep.join([str(python), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = subprocess.run(
        [
            HERE.parents[1] / "run_train.sh",
            *SHARED,
            *PARITY,
            "--training.global_batch_size=3",
            "--metrics.log_freq=10",
            "--parallelism.data_parallel_shard_degree=3",
            f"--job.dump_folder={tmp_path}",
        ],
        env=environment,
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    said = [line for line in run.stderr.splitlines() if "planned another step" in line]
    assert run.returncode == REFUSED, run.stderr
    assert len(said) == 1, run.stderr
    assert f"step {step}: rank 1 of 3" in said[0]
    assert "Traceback" not in run.stderr

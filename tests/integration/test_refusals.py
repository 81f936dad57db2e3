"""The real program, two ranks: what a user got wrong is one line on the screen and status 78, whoever is faster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from titan_wlb.launch import REFUSED

ROOT = Path(__file__).parents[2]
CONFIG = """
[model]
name = "llama3_wlb"
flavor = "debugmodel"
hf_assets_path = ""

[training]
dataset = "jsonl"
dataset_path = "corpus.jsonl"
seq_len = 128
global_batch_size = 4
steps = 2
mixed_precision_param = "float32"
"""


@pytest.fixture
def start(tmp_path):
    """Runs ./run_train.sh with two ranks on a file of this text; returns (status, stdout, stderr)."""
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("", " ")))

    def started(text: str, *flags: str) -> tuple[int, str, str]:
        (tmp_path / "job.toml").write_text(text.replace('"corpus', f'"{tmp_path}/corpus'))
        environment = os.environ | {
            "CONFIG_FILE": str(tmp_path / "job.toml"),
            "NGPU": "2",
            "LOG_RANK": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        }
        command = [str(ROOT / "run_train.sh"), "--job.dump_folder", str(tmp_path / "outputs"), *flags]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        return done.returncode, done.stdout, done.stderr

    return started


@pytest.mark.parametrize(
    ("text", "flags", "line"),
    [
        (
            CONFIG + '\n[wlb]\npacking = "best"\n',
            [],
            "job.toml: wlb.packing = 'best' is not one of 'original', 'fixed_length', 'karmarkar_karp', "
            "'solver', 'variable_length', 'lookahead'",
        ),
        (CONFIG, ["--training.stpes", "3"], "Unrecognized options: --training.stpes, 3; --help lists all flags"),
        (
            CONFIG,
            ["--parallelism.context_parallel_degree", "4"],
            "parallelism: dp_replicate 1 x dp_shard -1 x cp 4 x tp 1 x pp 1 needs a multiple of 4 ranks, there are 2; "
            "change NGPU",
        ),
    ],
    ids=["value in the file", "unknown flag", "impossible layout"],
)
def test_a_wrong_configuration_is_one_line_and_nothing_else(start, text, flags, line):
    status, out, err = start(text, *flags)
    assert status == REFUSED
    assert out == ""
    (said,) = err.splitlines()
    assert said.startswith("titan_wlb: ") and said.endswith(line)


def test_data_that_turns_out_to_be_empty_is_one_line_without_a_traceback_though_ranks_have_met(start):
    status, out, err = start(CONFIG)
    assert status == REFUSED
    (said,) = [line for line in err.splitlines() if "titan_wlb: " in line]
    assert "training.dataset: jsonl" in said and "holds no document with text of 2, the first: " in said
    assert "Traceback" not in out + err
    assert "Starting job" in out


def test_help_is_shown_once_without_ranks(start):
    status, out, err = start(CONFIG, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: ") and out.count("--wlb.packing ") == 1
    assert "rank0" not in out

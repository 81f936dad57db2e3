"""tools/prepare_data.py, as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

from data_cases import random_texts, write_jsonl

ROOT = Path(__file__).parents[3]


def start(*flags):
    command = [sys.executable, ROOT / "tools" / "prepare_data.py", ROOT / "train_configs" / "debug_cpu.toml", *flags]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_at_once_prepare_one_index(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", ["", *random_texts(30)])
    data = ("--training.dataset", "jsonl", "--training.dataset_path", corpus, "--job.dump_folder", tmp_path / "out")
    both = [start("--processes", 2, *data) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    folders = {line.split()[1] for stdout, _ in outputs for line in stdout.splitlines() if line.startswith("folder ")}
    assert len(folders) == 1
    assert "documents  30 in segments of 268,435,456 tokens: 1; bad ones left out: 1" in outputs[0][0]
    built = sum(stdout.count("built the index") for stdout, _ in outputs)
    trained = sum(stdout.count("built the tokenizer") for stdout, _ in outputs)
    assert (built, trained) == (1, 1)
    assert len(os.listdir(tmp_path / "out" / "wlb" / "index")) == 2

"""Starts the real program as its users do, and reads what a run leaves behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from titan_wlb.metrics.jsonl import read_records

HERE = Path(__file__).parent
SECONDS_AT_MOST = 240


@dataclass(frozen=True)
class Run:
    """What lies in a run's dump folder, whoever wrote it in however many lives."""

    folder: Path

    def lines(self) -> list[dict[str, Any]]:
        """Of documents.jsonl, in the order of writing, without those that a kill tore."""
        lines = []
        for line in (self.folder / "wlb" / "documents.jsonl").read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines

    def documents(self) -> dict[int, dict[str, Any]]:
        """Per step its line of documents.jsonl; a later line replaces an earlier one."""
        return {line["step"]: line for line in self.lines()}

    def losses(self) -> dict[int, float]:
        """Per step the mean loss over all ranks, exactly as it was computed."""
        records = read_records(self.folder / "wlb" / "records.jsonl")
        return {step: measures["loss"] for step, _, measures, _ in records}

    def saved_steps(self) -> list[int]:
        """Steps of the checkpoints that are complete."""
        return sorted(int(path.parent.name[5:]) for path in self.folder.glob("checkpoint/step-*/.metadata"))

    def checkpoint(self, step: int) -> dict[str, Any]:
        """All values of a checkpoint by dotted name, read without any process group."""
        whole = self.folder / f"step-{step}.pt"
        dcp_to_torch_save(self.folder / "checkpoint" / f"step-{step}", whole)
        return dict(_flat(torch.load(whole, weights_only=False), ""))

    def copy(self, folder: Path, step: int) -> "Run":
        """A new dump folder that holds one of this run's checkpoints and nothing else."""
        shutil.copytree(self.folder / "checkpoint" / f"step-{step}", folder / "checkpoint" / f"step-{step}")
        return Run(folder)


def parameters(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The model's part of a checkpoint."""
    others = ("optimizer.", "lr_scheduler.", "dataloader.", "train_state.")
    return {name: value for name, value in checkpoint.items() if not name.startswith(others)}


def launch(
    config: Path,
    run: Run,
    flags: Sequence[str] = (),
    *,
    ranks: int,
    plant: Mapping[str, Any] | None = None,
    status: int = 0,
) -> str:
    """Runs ``titan_wlb.launch`` to its end and returns the output of rank 0.

    Args:
        config: the TOML file.
        run: whose folder is the job's dump folder.
        plant: what killed_train.py is to do; None runs the program as it is.
        status: that the launcher must end with; -9 where it is to be killed.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / f"life-{len(list(run.folder.glob('life-*.log')))}.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if plant is not None:
        pids = log.with_suffix(".pids")
        pids.mkdir()
        environment["PLANT"] = json.dumps({**plant, "pids": str(pids)})
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "titan_wlb.launch", f"--nproc_per_node={ranks}"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "--local-ranks-filter", "0", "--tee", "3"]
    command += ["--log-dir", str(log.with_suffix(".ranks"))]
    command += ["-m", "titan_wlb.train" if plant is None else "killed_train", "--job.config_file", str(config)]
    command += ["--job.dump_folder", str(run.folder), *flags]
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            process.wait(SECONDS_AT_MOST)
        finally:
            process.terminate()  # torchrun then ends its ranks
    output = log.read_text()
    assert process.returncode == status, f"{' '.join(command)}\n{output}"
    return output


def _flat(value: Any, name: str) -> Any:
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value

"""titan_wlb.train with what the environment's PLANT, a JSON object, asks for.

``kill``: a moment at which every process of the run is killed (SIGKILL), the launcher first:
    ["saved", s]        the checkpoint of step s is complete
    ["training", s]     in step s, behind backward and before the optimizer's step
    ["saving", s]       rank 0 has written its part of step s's checkpoint, which is not complete
    ["saving", s, t]    the same, asynchronously: training has gone on to the middle of step t
``flops_per_second``: what the cost model assumes.
``pids``: a folder in which the ranks leave their process ids.
"""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import titan_wlb.compat.cpu  # before torchtitan

# isort: split
from torch.distributed.checkpoint import FileSystemWriter
from torchtitan.components.checkpoint import CheckpointManager

import titan_wlb.train
import titan_wlb.trainer
from titan_wlb.trainer import WLBTrainer

PLANT = json.loads(os.environ["PLANT"])


def main() -> None:
    Path(PLANT["pids"], str(os.getpid())).touch()
    if "flops_per_second" in PLANT:
        titan_wlb.trainer.assumed_flops_per_second = lambda device: PLANT["flops_per_second"]
    if "kill" in PLANT and os.environ["RANK"] == "0":
        moment, *steps = PLANT["kill"]
        {"saved": kill_when_saved, "training": kill_in_training, "saving": kill_in_saving}[moment](*steps)
    titan_wlb.train.main()


def kill_all() -> None:
    ranks = {int(path.name) for path in Path(PLANT["pids"]).iterdir()}
    for pid in (os.getppid(), *ranks - {os.getpid()}, os.getpid()):
        os.kill(pid, signal.SIGKILL)


def kill_when_saved(step: int) -> None:
    save = CheckpointManager.save

    def planted(self: CheckpointManager, curr_step: int, last_step: bool = False) -> None:
        save(self, curr_step, last_step)
        if curr_step == step:
            kill_all()

    CheckpointManager.save = planted


def kill_in_training(step: int) -> None:
    after_backward(step, kill_all)


def kill_in_saving(step: int, until: int | None = None) -> None:
    write, reached = FileSystemWriter.write_data, threading.Event()
    if until is None:
        reached.set()
    else:
        after_backward(until, reached.set)

    def planted(self: FileSystemWriter, *args: Any) -> Any:
        future = write(self, *args)
        if Path(self.path).name == f"step-{step}":
            future.wait()
            reached.wait()
            kill_all()
        return future

    FileSystemWriter.write_data = planted


def after_backward(step: int, action: Callable[[], None]) -> None:
    forward_backward = WLBTrainer._forward_backward

    def planted(self: WLBTrainer, batch: Any) -> Any:
        loss = forward_backward(self, batch)
        if self.step == step:
            action()
        return loss

    WLBTrainer._forward_backward = planted


if __name__ == "__main__":
    main()

"""One process builds, the others wait; a builder that dies is noticed."""

import json
import os
import signal
import subprocess
import sys

import pytest

from titan_wlb.data.once import DamagedError, built_once

BUILDER = """
import logging, os, sys, time
from pathlib import Path
from titan_wlb.data import once
from titan_wlb.data.once import built_once
once.TOUCH_S = 0.1
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
path, seconds = Path(sys.argv[1]), float(sys.argv[2])
def build(part):
    with open(path.parent / "builds", "a") as file:
        file.write(f"{os.getpid()}\\n")
    part.mkdir()
    print("building", flush=True)
    time.sleep(seconds)
    (part / "content").write_text("built")
print(built_once(path, lambda path: (path / "content").read_text(), build, "thing"))
"""


def start(path, seconds):
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)


def builds(path):
    return (path.parent / "builds").read_text().split()


def load(path):
    return path.read_text()


def test_of_two_processes_one_builds_and_the_other_says_that_it_waits(tmp_path):
    path = tmp_path / "thing"
    processes = [start(path, 5.0), start(path, 5.0)]  # longer than one may start later than the other
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert all(output.splitlines()[-1] == "built" for output in outputs)
    assert len(builds(path)) == 1
    builder = next(process.pid for process, output in zip(processes, outputs, strict=True) if "building\n" in output)
    assert sum(f"waiting for the thing: process {builder} on" in output for output in outputs) == 1
    assert sorted(os.listdir(tmp_path)) == ["builds", "thing"]


@pytest.mark.timeout(60)
def test_a_killed_builder_is_noticed_and_another_takes_over(tmp_path, caplog):
    path = tmp_path / "thing"
    killed = start(path, 600)
    while killed.stdout.readline() != "building\n":
        pass
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    assert (tmp_path / "thing.lock").exists()
    # by its process id, not by the time that nobody touched the lock
    assert built_once(path, load, lambda part: part.write_text("ours"), "thing", stale_s=3600) == "ours"
    assert "is gone: taking over" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["builds", "thing"]  # neither its lock nor its half


def test_a_builder_of_another_machine_counts_as_dead_when_its_lock_is_no_longer_touched(tmp_path, caplog):
    path, lock = tmp_path / "thing", tmp_path / "thing.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": os.getpid()}))
    assert built_once(path, load, lambda part: part.write_text("ours"), "thing", stale_s=0.5) == "ours"
    assert "is gone: taking over" in caplog.text


def test_a_lock_that_is_touched_is_waited_for(tmp_path):
    path = tmp_path / "thing"
    slow = start(path, 4.0)
    while slow.stdout.readline() != "building\n":
        pass

    def load_content(path):
        return (path / "content").read_text()

    assert built_once(path, load_content, lambda part: pytest.fail("built twice"), "thing", stale_s=2.0) == "built"
    slow.communicate(timeout=30)


def test_a_builder_that_fails_leaves_neither_lock_nor_parts(tmp_path):
    def fail(part):
        part.mkdir()
        (part / "half").write_text("x")
        raise ValueError("no disk")

    with pytest.raises(ValueError, match="no disk"):
        built_once(tmp_path / "thing", load, fail, "thing")
    assert os.listdir(tmp_path) == []


def test_what_is_damaged_is_built_again_and_what_is_there_is_not(tmp_path, caplog):
    path = tmp_path / "thing"

    def load_whole(path):
        if not (path / "content").exists():
            raise DamagedError(f"{path} is damaged")
        return (path / "content").read_text()

    def load_or_missing(path):
        if not path.exists():
            raise FileNotFoundError
        return load_whole(path)

    def build(part):
        part.mkdir()
        (part / "content").write_text("new")

    path.mkdir()
    (path / "something else").touch()
    assert built_once(path, load_or_missing, build, "thing") == "new"
    assert "is damaged; building it again" in caplog.text
    assert built_once(path, load_or_missing, lambda part: pytest.fail("built twice"), "thing") == "new"
    assert os.listdir(tmp_path) == ["thing"]

"""Build a file or a folder once, though many processes want it.

The processes of a job start together and all need the same index. One of them builds it, the others look at the disk
until it is there; no collective is involved, which could time out.

    rank 0   no index, takes the lock -> builds below a name of its own -> renames -> gives the lock back -> opens
    rank 1   no index, the lock is held -> says so, waits ............................................... -> opens

The lock is a file that its holder touches every few seconds. A holder that died is noticed by its process id (same
machine) or by a file that nobody touches any more (another one). The rename is atomic and the last step, so that two
builders, should a lock ever be taken wrongly, cost time and nothing else.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

TOUCH_S = 2.0
POLL_S = 0.2
REPEAT_MESSAGE_S = 30.0
HEAD_START_S = 1.0  # of a node's first rank, whose output launchers show: the progress is then on the screen


class DamagedError(ValueError):
    """What lies at the path is not what was written there; it has to be built again."""


def built_once(
    path: Path, load: Callable[[Path], T], build: Callable[[Path], None], what: str, *, stale_s: float = 60.0
) -> T:
    """Load what lies at ``path``; where nothing does, one process builds it and the others wait.

    Args:
        load: raises FileNotFoundError where nothing is, DamagedError where it has to be built again.
        build: writes a file or a folder at the path that it gets (a temporary one beside ``path``).
        what: for messages, "index".
        stale_s: seconds without a sign of life after which a builder counts as dead.
    """
    lock = path.with_name(path.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    watch = _Watch(lock, stale_s)
    waited = False
    while True:
        with contextlib.suppress(FileNotFoundError, DamagedError):
            return load(path)
        if os.environ.get("LOCAL_RANK", "0") != "0" and not lock.exists() and not waited:
            waited = True
            time.sleep(HEAD_START_S)
        with _taken(lock) as mine:
            if mine:
                # somebody may have finished between our look and our lock
                with contextlib.suppress(FileNotFoundError):
                    try:
                        return load(path)
                    except DamagedError as error:
                        logger.warning(f"{error}; building it again")
                _build(path, build, what)
                return load(path)
        if watch.holder_is_dead():
            logger.warning(f"the process that was building the {what} is gone: taking over ({lock})")
            with contextlib.suppress(FileNotFoundError):
                lock.unlink()
            continue
        watch.say(f"waiting for the {what}: {watch.holder} is building it ({path})")
        time.sleep(POLL_S)


def _build(path: Path, build: Callable[[Path], None], what: str) -> None:
    logger.info(f"building the {what} once: {path}")
    begin = time.monotonic()
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.part-*"):  # of a builder that was killed
        _remove(leftover)
    unique = uuid.uuid4().hex[:8]
    part = path.with_name(f"{path.name}.part-{unique}")
    try:
        build(part)
        with contextlib.suppress(FileNotFoundError):  # a damaged one; a folder cannot be renamed over another
            old = path.with_name(f"{path.name}.old-{unique}")
            os.rename(path, old)
            _remove(old)
        os.rename(part, path)
    finally:
        _remove(part)
    logger.info(f"built the {what} in {time.monotonic() - begin:.1f} s")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _taken(lock: Path) -> Iterator[bool]:
    """Whether the lock is ours inside; touched while it is, removed behind."""
    try:
        with open(lock, "x") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    except FileExistsError:
        yield False
        return
    done = threading.Event()

    def touch() -> None:
        while not done.wait(TOUCH_S):
            with contextlib.suppress(OSError):
                os.utime(lock)

    thread = threading.Thread(target=touch, daemon=True, name="titan_wlb lock")
    thread.start()
    try:
        yield True
    finally:
        done.set()
        thread.join()
        lock.unlink(missing_ok=True)


class _Watch:
    """What a waiting process knows of the lock's holder."""

    def __init__(self, lock: Path, stale_s: float) -> None:
        self._lock = lock
        self._stale_s = stale_s
        self._seen: tuple[float, float] | None = None  # the file's time, and ours when it last changed
        self._said = -REPEAT_MESSAGE_S
        self.holder = "another process"

    def holder_is_dead(self) -> bool:
        try:
            touched = self._lock.stat().st_mtime
            holder = json.loads(self._lock.read_text() or "{}")
        except (FileNotFoundError, ValueError):
            return False  # given back, or just being written
        if holder:
            self.holder = f"process {holder['pid']} on {holder['host']}"
            if holder["host"] == socket.gethostname() and not _is_alive(holder["pid"]):
                return True
        # by our own clock: the machine that keeps the disk may have another
        if self._seen is None or self._seen[0] != touched:
            self._seen = (touched, time.monotonic())
        return time.monotonic() - self._seen[1] > self._stale_s

    def say(self, message: str) -> None:
        if time.monotonic() - self._said >= REPEAT_MESSAGE_S:
            self._said = time.monotonic()
            logger.info(message)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

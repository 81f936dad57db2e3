"""A process of its own that builds an index ahead of the training that reads it.

    training (a node's first rank)           this process, its child
    needs segment 3         --- "5" --->     builds what is missing up to segment 5, then waits
    needs segment 4         --- "6" --->     builds segment 6 ...
    ends, or is killed      --- end --->     ends, too

It is no thread, since reading a corpus in Python would hold the training thread up. What goes wrong in it is one line,
which the training ends with when it needs the segment that could not be built.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from titan_wlb.data.corpora import build_corpus
from titan_wlb.data.encoders import Encoder
from titan_wlb.data.index_builder import IndexBuilder

_NICENESS = 10  # the training comes first where cores are scarce
_SECONDS_TO_STOP = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """What the process is to build; the arguments of ``build_corpus`` and ``IndexBuilder``."""

    dataset: str
    dataset_path: str | None
    memory: str
    corpus_fingerprint: str
    encoder: str
    folder: str
    segment_tokens: int
    num_processes: int | None
    on_bad_document: str

    @staticmethod
    def pack(encoder: Encoder) -> str:
        """An encoder as text, for a process of our own."""
        return base64.b64encode(pickle.dumps(encoder)).decode("ascii")


class BackgroundBuilder:
    """The training's end. Nothing is started before something is asked for.

    Args:
        request: what to build.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._process: subprocess.Popen[str] | None = None
        self._asked = -1

    def build_up_to(self, number: int) -> None:
        """Has the segments up to ``number`` built, as far as the corpus has so many; does not wait."""
        if number <= self._asked:
            return
        self._asked = number
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "titan_wlb.data.background"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._write(json.dumps(asdict(self._request)))
        self._write(str(number))

    def check(self) -> None:
        """Raises ValueError with one line where the process could not go on."""
        if self._process is None or self._process.poll() in (None, 0):
            return
        assert self._process.stdout is not None
        line = self._process.stdout.read().strip()
        raise ValueError(line or f"the process that builds the index ended with exit code {self._process.returncode}")

    def close(self) -> None:
        """Ends the process; what it has begun is lost, what is whole stays."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(2 * _SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process, self._asked = None, -1

    def _write(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, and ``check`` will say why
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()


class _Orders:
    """What the training asks for, line by line; the process ends when the training does."""

    def __init__(self) -> None:
        self._wanted = -1
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._wanted >= number)

    def _listen(self) -> None:
        for line in sys.stdin:
            with self._changed:
                self._wanted = max(self._wanted, int(line))
                self._changed.notify_all()
        os.kill(os.getpid(), signal.SIGINT)  # so that what was begun is removed
        threading.Event().wait(_SECONDS_TO_STOP)
        os._exit(1)


def main() -> None:
    """Reads a request and then numbers of segments from the standard input."""
    logging.basicConfig(format="[titan_wlb] %(asctime)s - %(levelname)s - %(message)s", level=logging.INFO)
    request = Request(**json.loads(sys.stdin.readline()))
    os.nice(_NICENESS)
    orders = _Orders()
    try:
        _build(request, orders)
    except KeyboardInterrupt:
        pass
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()), flush=True)
        sys.exit(1)


def _build(request: Request, orders: _Orders) -> None:
    corpus = build_corpus(request.dataset, request.dataset_path, memory=Path(request.memory))
    if corpus.fingerprint != request.corpus_fingerprint:
        raise ValueError(
            f"training.dataset: {corpus.name} has changed since the training started; start again on what it is now"
        )
    builder = IndexBuilder(
        corpus,
        pickle.loads(base64.b64decode(request.encoder)),
        request.folder,
        segment_tokens=request.segment_tokens,
        num_processes=request.num_processes,
        on_bad_document=request.on_bad_document,
        show_progress=False,
    )
    number, first_id = 0, 0
    with contextlib.closing(builder):
        while True:
            orders.wait_for(number)
            segment = builder.segment(number, first_id)
            if segment.meta.is_last:
                return
            number, first_id = number + 1, first_id + segment.num_documents


if __name__ == "__main__":
    main()

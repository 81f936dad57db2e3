"""One run of all layouts serves every parity test of a session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from parity_layouts import ONE_PROCESS, Layout


@pytest.fixture(scope="session")
def runs(request, tmp_path_factory) -> Path:
    """The folder of results of parity_worlds.py; only layouts whose tests were selected run.

    A run that fails leaves no result, and its own test says so.
    """
    layouts = [parameters(item).get("layout") for item in request.session.items]
    names = {layout.name for layout in (*ONE_PROCESS, *layouts) if isinstance(layout, Layout)}
    folder = tmp_path_factory.mktemp("parity")
    program = Path(__file__).with_name("parity_worlds.py")
    # no GPU: the layouts need eight ranks, and a forked process cannot use CUDA
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(folder / "output.txt", "w") as output:
        subprocess.run(
            [sys.executable, str(program), str(folder), *sorted(names)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return folder


def parameters(item: pytest.Item) -> dict:
    """Of a parametrised test; empty for others."""
    return item.callspec.params if hasattr(item, "callspec") else {}

"""One run of all layouts serves every parity test of a session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from parity_layouts import LAYOUTS


@pytest.fixture(scope="session")
def runs(request, tmp_path_factory) -> Path:
    """The folder of results of parity_worlds.py; only layouts whose tests were selected run."""
    names = {item.callspec.params["layout"].name for item in request.session.items if "layout" in parameters(item)}
    folder = tmp_path_factory.mktemp("parity")
    program = Path(__file__).with_name("parity_worlds.py")
    # no GPU: the layouts need eight ranks, and a forked process cannot use CUDA
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(folder / "output.txt", "w") as output:
        subprocess.run(
            [sys.executable, str(program), str(folder), *sorted(names & {layout.name for layout in LAYOUTS})],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            check=True,
        )
    return folder


def parameters(item: pytest.Item) -> dict:
    """Of a parametrised test; empty for others."""
    return item.callspec.params if hasattr(item, "callspec") else {}

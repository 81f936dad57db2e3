import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import titan_wlb
import titan_wlb.planning

PACKAGE = Path(titan_wlb.__file__).parent


def modules():
    names = [module.name for module in pkgutil.walk_packages(titan_wlb.planning.__path__, "titan_wlb.planning.")]
    return ["titan_wlb.planning", *names, "titan_wlb.records"]


def imported_torch(*names):
    """What of torch and TorchTitan a fresh process has imported after these modules."""
    statements = "".join(f"import {name}\n" for name in names)
    script = f"{statements}import sys; print(*sorted({{'torch', 'torchtitan'}} & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_the_check_itself_sees_torch():
    assert imported_torch("types", "torch.version") == "torch"


def test_planning_and_records_import_no_torch():
    names = modules()
    assert "titan_wlb.planning.packing.variable_length" in names and "titan_wlb.planning.planner" in names
    assert imported_torch(*names) == ""


@pytest.mark.parametrize("path", sorted((PACKAGE / "planning").rglob("*.py")), ids=lambda path: path.name)
def test_no_file_of_planning_names_torch_in_an_import(path):
    lines = path.read_text().splitlines()
    assert not [line for line in lines if line.strip().startswith(("import torch", "from torch"))]

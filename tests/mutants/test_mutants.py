"""The tests notice planted defects."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("titan_wlb", "tests", "tools", "train_configs", "pyproject.toml")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_a_planted_defect_turns_its_test_red(mutant, tmp_path):
    copy_of_project(tmp_path)
    path = tmp_path / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} changed: write the mutant anew"
    path.write_text(text.replace(mutant.old, mutant.new))
    run = run_tests(tmp_path, [mutant.test])
    assert run.returncode == 1, f"the defect was not noticed:\n{run.stdout[-3000:]}"


def test_the_same_tests_are_green_in_an_untouched_copy(tmp_path):
    copy_of_project(tmp_path)
    run = run_tests(tmp_path, sorted({mutant.test for mutant in MUTANTS}))
    assert run.returncode == 0, run.stdout[-3000:]


def copy_of_project(folder: Path) -> None:
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)


def run_tests(folder: Path, tests: list[str]) -> subprocess.CompletedProcess:
    # the copy comes before the installed package, also in processes that a test starts
    options = ["-q", "-p", "no:cacheprovider", "--timeout", "240", "--hypothesis-profile", "mutants"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=480,
    )

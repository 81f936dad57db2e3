"""What benchmarks/convergence.py computes from the runs, and whether its page shows what it says."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report():
    return load("convergence_report")


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def record(tokens, loss):
    return {
        "wlb/tokens_per_step": tokens,
        "loss": loss,
        "wlb/imbalance_degree/predicted": 1.5,
        "wlb/delay_iterations": 0.25,
    }


def test_the_mean_of_a_stretch_of_tokens_as_drawn(report):
    curve = report.Curve([30, 50, 10, 10], [9, 5, 3, 2])
    assert curve.num_tokens == 100
    assert curve.mean(70, 100) == pytest.approx((10 * 5 + 10 * 3 + 10 * 2) / 30)
    assert np.allclose(curve.mean(np.array([0, 80]), np.array([30, 100])), [9, 2.5])


def test_the_mean_of_all_tokens_is_the_mean_over_tokens_not_over_steps(report):
    assert report.Curve([1, 3], [2, 6]).mean(0, 4) == pytest.approx((1 * 2 + 3 * 6) / 4)


def test_differences_are_of_equal_seeds_as_drawn(report):
    assert report.differences({0: 5.0, 1: 4.0}, {0: 4.5, 1: 4.25}) == "+0.125 (-0.250 to +0.500)"
    assert report.differences({0: 5.0, 2: 4.0}, {0: 4.5, 1: 4.25}) == "+0.500 (+0.500 to +0.500)"
    assert report.differences({0: 5.0}, {}) == ""


def test_final_losses_are_compared_over_the_tokens_that_all_runs_have_trained(report):
    """100 and 80 tokens: both are averaged from token 64 to token 80."""
    records = {
        ("original", 0): [record(64, 9.0), record(16, 4.0), record(20, 1.0)],
        ("lookahead", 0): [record(40, 9.0), record(40, 5.0)],
    }
    rows = report.training_table(records).splitlines()[2:]
    assert rows == [
        "| original | 1 | 3 | 100 | 65.2 % | 1.500 | 0.25 | 4.000 (4.000 to 4.000) | +0.000 (+0.000 to +0.000) |",
        "| lookahead | 1 | 2 | 80 | 0.0 % | 1.500 | 0.25 | 5.000 (5.000 to 5.000) | +1.000 (+1.000 to +1.000) |",
    ]


def test_untrained_documents_weigh_by_their_labels_and_long_ones_stand_apart(report):
    """11 and 31 tokens: 10 labels that cost 20 and 30 that cost 30."""
    runs = [{"packing": "original", "seed": 0, "losses": [20.0, 30.0]}]
    row = report.evaluation_table({"lengths": [11, 31], "runs": runs}, long_from=20).splitlines()[2]
    assert re.findall(r"\d\.\d+(?= \()", row)[::2] == ["1.250", "2.000", "1.000"]


def test_the_page_has_a_row_per_packing_and_its_picture(report):
    page = (ROOT / "benchmarks" / "convergence.md").read_text()
    assert (ROOT / "benchmarks" / re.search(r"!\[[^]]*\]\(([^)]+)\)", page)[1]).exists()
    for packing in report.COLORS:
        assert len(re.findall(rf"(?m)^\| `?{re.escape(packing)}`? \|", page)) == 2, packing

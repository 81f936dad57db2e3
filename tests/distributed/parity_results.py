"""Reads what parity_worlds.py left, and says what it means for two runs to be the same training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity_layouts import TOLERANCE, Layout


def of_all_ranks(folder: Path, layout: Layout) -> list[Any]:
    """A Result per rank of a layout; fails the test with the rank's own error where there are none."""
    return [of_rank(folder, layout.name, rank) for rank in range(layout.ranks)]


def of_rank_0(folder: Path, name: str) -> Any:
    """The Result of a run in one process."""
    return of_rank(folder, name, 0)


def of_rank(folder: Path, name: str, rank: int) -> Any:
    """The Result of one rank."""
    results = folder / name / f"rank{rank}.pt"
    error = folder / name / "error.txt"
    if error.exists() or not results.exists():
        pytest.fail(error.read_text() if error.exists() else f"{name} left no result; see {folder / 'output.txt'}")
    return torch.load(results, weights_only=False)


def segments(plan: Any) -> list[Any]:
    """Of all micro-batches of a step."""
    return [segment for micro_batch in plan.micro_batches for segment in micro_batch.segments]


def assert_same_training(found: Any, expected: Any) -> None:
    """Losses, norms and every parameter's gradient are equal within the tolerance, relative to the expected ones."""
    assert len(found.losses) == len(expected.losses)
    assert found.losses == pytest.approx(expected.losses, rel=TOLERANCE, abs=0)
    assert found.norms == pytest.approx(expected.norms, rel=TOLERANCE, abs=0)
    assert set(found.gradients) == set(expected.gradients)
    errors = {name: relative_error(found.gradients[name], expected.gradients[name]) for name in expected.gradients}
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||."""
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()

"""What parity_worlds.py leaves of a run, and what it means for two runs to be the same training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from parity_layouts import TOLERANCE, Layout

from titan_wlb.planning.plan import Segment, StepPlan


@dataclass
class Result:
    """What one rank saw of a run.

    Args:
        losses: per step, the mean over the step's labels.
        norms: per step, of the gradient before clipping.
        gradients: after step 1's backward, before clipping: the full tensor of every parameter that this rank knows.
        plans: of every step.
        graphs: per step, how many graphs torch.compile has made so far.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    plans: list[StepPlan] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)


def of_all_ranks(folder: Path, layout: Layout) -> list[Result]:
    """A Result per rank of a layout; fails the test with the rank's own error where there are none."""
    return [of_rank(folder, layout.name, rank) for rank in range(layout.ranks)]


def of_rank_0(folder: Path, name: str) -> Result:
    """The Result of a run in one process."""
    return of_rank(folder, name, 0)


def of_rank(folder: Path, name: str, rank: int) -> Result:
    """The Result of one rank."""
    results, error = folder / name / f"rank{rank}.pt", folder / name / "error.txt"
    if error.exists():
        pytest.fail(f"{name}: {error.read_text()}")
    if not results.exists():
        pytest.fail(f"{name} left no result. The end of the output:\n{(folder / 'output.txt').read_text()[-4000:]}")
    return torch.load(results, weights_only=False)


def segments(plan: StepPlan) -> list[Segment]:
    """Of all micro-batches of a step."""
    return [segment for micro_batch in plan.micro_batches for segment in micro_batch.segments]


def assert_same_training(found: Result, expected: Result) -> None:
    """Losses, norms and every parameter's gradient are equal within the tolerance, relative to the expected ones."""
    assert len(found.losses) == len(expected.losses)
    assert set(found.gradients) == set(expected.gradients)
    pairs = {f"gradient of {name}": (found.gradients[name], expected.gradients[name]) for name in expected.gradients}
    for what, of_found, of_expected in (("loss", found.losses, expected.losses), ("norm", found.norms, expected.norms)):
        for step, values in enumerate(zip(of_found, of_expected, strict=True), start=1):
            pairs[f"{what} of step {step}"] = tuple(map(torch.tensor, values))
    errors = {what: relative_error(*pair) for what, pair in pairs.items()}
    wrong = {what: error for what, error in errors.items() if not error <= TOLERANCE}
    assert not wrong, f"relative errors above {TOLERANCE}: {wrong}"


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||."""
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()

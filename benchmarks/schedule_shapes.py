"""Which shape of a step's micro-batches suits a pipeline schedule: python benchmarks/schedule_shapes.py [--seeds 3]

Prints the tables of schedule_shapes.md: shapes and what they gain, orders of given micro-batches, and packers whose
steps are packed again to a shape. Step times are replays of torch's schedules, not measurements.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from titan_wlb.planning.intake import Intake
from titan_wlb.planning.length_families import lengths_of_family
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.order import InOrder
from titan_wlb.planning.packing.lookahead import Lookahead
from titan_wlb.planning.packing.measures import imbalance_degree
from titan_wlb.planning.packing.packer import Packer
from titan_wlb.planning.packing.shape import build_shape
from titan_wlb.planning.packing.shaped import Shaped
from titan_wlb.planning.packing.variable_length import VariableLength
from titan_wlb.planning.plan import Segment
from titan_wlb.planning.timeline import build_schedule, order_for_schedule, step_time_over_balanced, target_works
from titan_wlb.planning.timeline.events import WIRES
from titan_wlb.planning.timeline.works import step_times_of_works
from titan_wlb.planning.workload import Workload

WINDOW = 131_072
WORKLOAD = Workload(0, 24_576, 1, 24_576)
WARMUP, SCORED = 60, 200
NOISE = 0.05  # standard deviation of a micro-batch's true cost around the predicted one
SHAPES = [
    ("1F1B", 2, 2),
    ("1F1B", 4, 4),
    ("1F1B", 4, 8),
    ("1F1B", 4, 16),
    ("1F1B", 8, 8),
    ("1F1B", 8, 16),
    ("1F1B", 16, 16),
    ("GPipe", 4, 4),
    ("Interleaved1F1B", 4, 4),
    ("Interleaved1F1B", 4, 8),
    ("Interleaved1F1B", 4, 16),
    ("Interleaved1F1B", 8, 8),
]
LAYOUTS = [(4, 1), (8, 2)]  # PP, DP; N = PP x DP, plain 1F1B


def shapes() -> Iterator[str]:
    """Per layout the targets, and step times over those of equal micro-batches on the same wires."""
    yield "| schedule | PP | M | targets | imbalance degree | independent | in order | costs off | equal, in order |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, pp, num in SHAPES:
        targets = target_works(name, pp, num)
        gains = [step_time_over_balanced([targets], name, pp, wires=wires) for wires in WIRES]
        schedule, equal = build_schedule(name, pp, num), np.ones((1, num))
        independent, in_order = (step_times_of_works(schedule, equal, wires=wires)[0] for wires in WIRES)
        noise = 1 + NOISE * np.random.default_rng(0).standard_normal((2000, num))
        shaped = step_times_of_works(schedule, np.array(targets) * noise).mean()
        values = [*gains, shaped / step_times_of_works(schedule, noise).mean(), in_order / independent]
        shown = " ".join(f"{target:.2f}" for target in targets[:8]) + (" ..." if num > 8 else "")
        yield (
            f"| {name} | {pp} | {num} | {'equal' if max(targets) == 1 else shown} | {imbalance_degree(targets):.2f} | "
            + " | ".join(f"{value:.4f}" for value in values)
            + " |"
        )


def orders() -> Iterator[str]:
    """Mean step time over the balanced one of the same micro-batches in several orders."""
    yield "| schedule | PP | M | spread | as they come | rising | falling | found | falling ranks of the found order |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, pp, num in [("1F1B", 4, 4), ("1F1B", 8, 8), ("1F1B", 4, 16), ("Interleaved1F1B", 4, 8)]:
        for spread in (0.02, 0.1, 0.4):
            random = np.random.default_rng(0)
            draws = [np.exp(spread * random.standard_normal(num)) for _ in range(50)]
            found = [order_for_schedule(works.tolist(), name, pp) for works in draws]
            candidates = [
                draws,
                [np.sort(works) for works in draws],
                [np.sort(works)[::-1] for works in draws],
                [works[list(order)] for works, order in zip(draws, found, strict=True)],
            ]
            means = [np.mean([step_time_over_balanced([works], name, pp) for works in group]) for group in candidates]
            ranks = np.argsort(np.argsort(-draws[0]))[list(found[0])] + 1
            values = " | ".join(f"{value:.3f}" for value in means)
            yield f"| {name} | {pp} | {num} | {100 * spread:.0f} % | {values} | {' '.join(map(str, ranks))} |"


def packers(num_seeds: int) -> Iterator[str]:
    """Step times as packed, in the best order, and to the shape; the last two also with other costs."""
    columns = [
        "layout",
        "lengths",
        "packer",
        "delay",
        "packed",
        "ordered",
        "shape",
        "p95",
        "ordered, off",
        "shape, off",
    ]
    yield "| " + " | ".join(columns) + " | imbalance degree |"
    yield "|---" * (len(columns) + 1) + "|"
    lists = [("skewed_web", seed) for seed in range(1, num_seeds + 1)] + [("long_context", 1), ("code_like", 1)]
    for pp, dp in LAYOUTS:
        for family, seed in tqdm(lists, desc=f"PP {pp} x DP {dp}", unit="list"):
            for name, packer in _packers(pp * dp):
                yield f"| {pp} x {dp} | {family} {seed} | {name} | {_row(packer, pp, dp, family, seed)} |"


def _packers(num: int) -> Iterator[tuple[str, Packer]]:
    for queues in ((WINDOW // 4, WINDOW // 2), (WINDOW // 4, WINDOW // 2, 3 * WINDOW // 4)):
        yield f"variable_length, {len(queues)} queues", VariableLength(num, WINDOW, 2 * WINDOW, queues, WORKLOAD)
    yield "lookahead", Lookahead(num, WINDOW, 2 * WINDOW, WORKLOAD, balance_tolerance=0.001)


def _row(packer: Packer, pp: int, dp: int, family: str, seed: int) -> str:
    num = pp * dp
    equal, shape = (build_shape(name, "1F1B", pp, dp, num) for name in ("equal", "schedule"))
    times: list[list[float]] = [
        [],
        [],
        [],
        [],
        [],
    ]  # packed, ordered, ordered with costs off; shape, shape with costs off
    degrees = []
    random = np.random.default_rng(seed)
    for works, _, _ in _steps(packer, num, family, seed):
        ordered = equal.deal(works.tolist())
        times[0].append(_over_balanced(works, [sorted(run) for run in ordered], pp))
        times[1].append(_over_balanced(works, ordered, pp))
        times[2].append(_over_balanced(works * (1 + NOISE * random.standard_normal(num)), ordered, pp))
    waiting_tokens = trained_tokens = 0
    random = np.random.default_rng(seed)
    shaped = Shaped(packer, 2 * WINDOW, WORKLOAD, shape.targets)
    for works, trained, waiting in _steps(shaped, num, family, seed):
        dealt = shape.deal(works.tolist())
        times[3].append(_over_balanced(works, dealt, pp))
        times[4].append(_over_balanced(works * (1 + NOISE * random.standard_normal(num)), dealt, pp))
        degrees.append(imbalance_degree(works.tolist()))
        trained_tokens += trained
        waiting_tokens += waiting
    packed, ordered_, ordered_off, shape_, shape_off = (float(np.mean(of_steps)) for of_steps in times)
    p95 = np.sort(times[3])[-(-len(times[3]) * 95 // 100) - 1]
    shown = " | ".join(f"{value:.4f}" for value in (packed, ordered_, shape_, p95, ordered_off, shape_off))
    return f"{waiting_tokens / trained_tokens:.2f} | {shown} | {np.mean(degrees):.2f}"


def _steps(packer: Packer, num: int, family: str, seed: int) -> Iterator[tuple[npt.NDArray[np.int64], int, int]]:
    """(works of the micro-batches, tokens trained, tokens that wait after them) of the scored steps."""
    num_tokens = (WARMUP + SCORED + 20) * num * WINDOW  # 20 steps more than are packed, to look ahead at
    stream = Intake(InOrder(KnownLengths(lengths_of_family(family, num_tokens=num_tokens, seed=seed))))
    waiting = packer.empty()
    for step in range(1, WARMUP + SCORED + 1):
        stream.step = step
        packed, waiting = packer.pack(waiting, stream)
        if step > WARMUP:
            trained = sum(segment.length for segments in packed for segment in segments)
            yield _works(packed), trained, sum(segment.length for segment in waiting)


def _works(packed: Sequence[Sequence[Segment]]) -> npt.NDArray[np.int64]:
    return np.array([WORKLOAD.costs(segment.length for segment in segments) for segments in packed])


def _over_balanced(works: npt.NDArray[Any], dealt: Sequence[Sequence[int]], pp: int) -> float:
    return step_time_over_balanced([works[list(run)].tolist() for run in dealt], "1F1B", pp)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="length lists of the skewed-web family")
    options = parser.parse_args()
    for title, lines in (("Shapes", shapes()), ("Orders", orders()), ("Packers", packers(options.seeds))):
        print(f"\n{title}\n")
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()

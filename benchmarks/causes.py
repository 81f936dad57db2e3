"""Are causes found, is the replay right, and what does it cost? python benchmarks/causes.py plant | cost

plant    every delay of tests/distributed/causes_cases.py under the real trainer (two and four gloo ranks), and the
         replayed step times against the measured ones: ``--layouts``, ``--rounds``, ``--folder``
cost     milliseconds of one step's causes, on simulated records of 8 to 4,096 ranks
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "distributed"), str(REPOSITORY / "tests" / "unit" / "planning")]

from causes_cases import CELLS, LAYOUTS, Run, table  # noqa: E402
from simulated_step import Job, simulate  # noqa: E402

from titan_wlb.planning.timeline.causes import causes, causes_of  # noqa: E402
from titan_wlb.planning.timeline.measured import measured_of_packed  # noqa: E402
from titan_wlb.records import Layout, pack  # noqa: E402

COSTS = (
    ("PP 2 x DP 2 x CP 2", Job(Layout(2, 2, 2))),
    ("DP 8", Job(Layout(dp=8))),
    ("PP 4 x DP 16 x CP 8", Job(Layout(4, 16, 8), micro_batches=8)),
    ("PP 8 x DP 64 x CP 8", Job(Layout(8, 64, 8), micro_batches=16)),
    ("PP 8 x DP 32 x CP 2 x TP 8", Job(Layout(8, 32, 2, 8), micro_batches=16)),
)
REPEATS = 5


def main() -> None:
    """What the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plant", "cost"))
    parser.add_argument("--layouts", nargs="+", default=[layout.name for layout in LAYOUTS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.what == "cost":
        cost()
        return
    with tempfile.TemporaryDirectory() as temporary:
        plant(args.folder or Path(temporary), args.layouts, args.rounds)


def plant(folder: Path, layouts: list[str], rounds: int) -> None:
    """Runs all that is not in the folder yet; prints the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    program = REPOSITORY / "tests" / "distributed" / "causes_worlds.py"
    for layout in layouts:
        if (folder / layout / "late.json").exists():
            continue
        before = os.getloadavg()[0]
        request = {"layouts": {layout: [cell.name for cell in CELLS]}, "rounds": rounds}
        with open(folder / f"{layout}.log", "w") as output:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            command = [sys.executable, str(program), str(folder), json.dumps(request)]
            subprocess.run(command, check=True, stdout=output, stderr=subprocess.STDOUT, env=environment)
        print(f"{layout}: load average {before:.1f} before, {os.getloadavg()[0]:.1f} after", flush=True)
    print(table([Run(folder, layout) for layout in LAYOUTS if layout.name in layouts]))


def cost() -> None:
    """Of every job in ``COSTS``."""
    for name, job in COSTS:
        records = simulate(job)
        sections = sum(len(record.times.sections) for record in records)
        rows = [pack(record) for record in records]
        packed = np.array([[*row, *(0.0,) * (max(map(len, rows)) - len(row))] for row in rows])
        of_records = milliseconds(lambda job=job, records=records: causes(records, job.layout, job.pipeline))
        of_packed = milliseconds(
            lambda job=job, packed=packed: causes_of(measured_of_packed(packed, job.layout), job.pipeline, number=1)
        )
        print(
            f"{name:<28}{len(records):>6} ranks{sections:>8} sections{of_records:>9.1f} ms from records"
            f"{of_packed:>9.1f} ms packed",
            flush=True,
        )


def milliseconds(call: Callable[[], object]) -> float:
    """Median of ``REPEATS`` calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


if __name__ == "__main__":
    main()

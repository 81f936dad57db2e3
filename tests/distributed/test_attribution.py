"""A rank that is made late is seen computing, and its peer waiting, by the real trainer's clocks.

The delays are planted by hooks in two gloo ranks, see planted_worlds.py; ``-s`` shows what each of them added.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from planted_cases import CELLS, LAYOUTS, NONE, OWN, Cell, Layout, Results, wrong_medians

from titan_wlb.records import WAITS

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name.lower().replace(" ", ""))
cells = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name.replace(", ", "-").replace(" ", ""))


@pytest.fixture(scope="module")
def planted(request, tmp_path_factory) -> dict[str, Results]:
    """Results by layout; what no selected test asks for does not run."""
    wanted: dict[str, list[str]] = {}
    for item in request.session.items:
        if item.path == Path(__file__):
            cells_of_layout = wanted.setdefault(item.callspec.params["layout"].name, [])
            name = item.callspec.params["cell"].name if "cell" in item.callspec.params else NONE
            if name != NONE and name not in cells_of_layout:
                cells_of_layout.append(name)
    folder = tmp_path_factory.mktemp("planted")
    program = Path(__file__).with_name("planted_worlds.py")
    with open(folder / "output.txt", "w") as output:
        run = subprocess.run(
            [sys.executable, str(program), str(folder), json.dumps(wanted)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
    assert run.returncode == 0, (folder / "output.txt").read_text()[-6000:]
    results = {layout.name: Results(folder, layout) for layout in LAYOUTS if layout.name in wanted}
    print(table(results))
    return results


@layouts
@cells
def test_a_planted_delay_lies_inside_the_late_ranks_own_time(planted, layout: Layout, cell: Cell):
    steps = planted[layout.name].of(cell.name)
    assert steps
    for pair in steps:
        assert pair.late.planted_ns >= 0.99e6 * cell.delay_ms
        # on the timeline, starved is not told from the rest
        assert pair.late.inside_ns.get(OWN[cell.place], 0) >= 0.99 * pair.late.planted_ns
        assert pair.peer.planted_ns == 0


@layouts
@cells
def test_medians_show_a_planted_delay_in_the_late_rank_and_as_its_peers_waiting(planted, layout: Layout, cell: Cell):
    added = planted[layout.name].added(cell)
    assert not wrong_medians(added, cell), added


@layouts
def test_ranks_wait_in_the_categories_of_their_own_axes_alone(planted, layout: Layout):
    expected = {*layout.waits, "data", "other"}
    for pair in planted[layout.name].pairs:
        for step in (pair.late, pair.peer):
            assert set(step.categories) == {"compute", *expected}
            assert not any(step.ms(category) for category in set(WAITS) - expected)
    for category in layout.waits:
        assert sum(pair.peer.ms(category) for pair in planted[layout.name].pairs) > 0


@layouts
def test_no_wait_is_missed_where_nothing_is_planted(planted, layout: Layout):
    assert planted[layout.name].blocked_ms() < 1


@layouts
def test_the_categories_of_every_step_sum_up_to_its_wall_time(planted, layout: Layout):
    for pair in planted[layout.name].pairs:
        for step in (pair.late, pair.peer):
            assert step.ms("compute", "starved", *WAITS) == pytest.approx(step.wall_ns / 1e6, abs=1e-6)


def table(results: dict[str, Results]) -> str:
    """What every delay added to the median step, and below it the median step without a delay; ms."""
    head = f"{'':<8}{'place':<9}{'kind':<6}{'delay':>6}{'took':>7} | {'late rank':>9}{'+ starved':>10}"
    lines = ["", f"{head} | {'peer idle':>9}  of it in"]
    for name, result in results.items():
        for cell in CELLS:
            if result.of(cell.name):
                added = result.added(cell)
                lines.append(
                    f"{name:<8}{cell.place:<9}{cell.kind:<6}{cell.delay_ms:>6}{added.planted:>7.1f} | "
                    f"{added.own:>9.1f}{added.own_and_starved:>10.1f} | "
                    f"{added.idle:>9.1f}{added.landed:>7.1f} {result.layout.lands_in[cell.place]}"
                )
    columns = ("wall", "compute", "blocked", "starved", *WAITS)
    lines += ["", f"{'':<17}" + "".join(f"{column:>9}" for column in (*columns, "moments"))]
    for name, result in results.items():
        plain = result.of(NONE)
        for who, steps in (("late rank", [pair.late for pair in plain]), ("peer", [pair.peer for pair in plain])):
            medians = (median(step.ms(column) for step in steps) for column in columns)
            moments = median(step.moments for step in steps)
            lines.append(f"{name:<8}{who:<9}" + "".join(f"{value:>9.1f}" for value in medians) + f"{moments:>9.0f}")
    return "\n".join(lines)

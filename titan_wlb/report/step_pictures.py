"""Pictures of one step: which documents a micro-batch holds, and what every rank did when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from titan_wlb.metrics.step_view import ranks_shown
from titan_wlb.metrics.stragglers import place_name
from titan_wlb.metrics.trace import NAMES, spans
from titan_wlb.records import COMPUTE, Layout, StepRecord
from titan_wlb.report.facts import evenly
from titan_wlb.report.runs import cost_features, document_lengths
from titan_wlb.report.svg import Plot, line, rect, svg, text
from titan_wlb.report.words import duration

WIDTH = 1000
_MICRO_BATCHES = 48
_SHADES = 6  # of micro-batches, in the style sheet


def heights(line_of_step: dict[str, Any], costs: npt.NDArray[np.float64]) -> list[list[tuple[int, float]]]:
    """Per micro-batch (tokens, predicted work over the mean micro-batch's) of its documents, the longest first.

    Micro-batches by DP rank, in the order in which it runs them; of many, some of each size.

    Args:
        line_of_step: of ``documents.jsonl``.
        costs: of ``document_costs``.
    """
    micro_batches = _shown(line_of_step)
    lengths = [document_lengths(micro_batch) for micro_batch in micro_batches]
    works = [np.maximum(cost_features(of_one) @ costs, 0.0) for of_one in lengths]
    everything = line_of_step["micro_batches"]
    mean = sum(micro_batch["cost"] for micro_batch in everything) / len(everything) / 1e6
    return [
        [(length, float(work) / max(mean, 1e-9)) for length, work in zip(*both, strict=True)]
        for both in zip(lengths, works, strict=True)
    ]


def micro_batches(line_of_step: dict[str, Any], costs: npt.NDArray[np.float64], highest: float) -> str:
    """The step's micro-batches as stacks of documents, as high as their predicted work.

    Args:
        highest: of all stacks that are to be compared, over the mean.
    """
    stacks, shown = heights(line_of_step, costs), _shown(line_of_step)
    plot = Plot(40, 10, WIDTH / 2 - 50, 190, (0, len(stacks)), (0, 1.05 * highest))
    parts = plot.y_axis(lambda value: f"{value:g}")
    width = plot.width / len(stacks)
    for place, stack in enumerate(stacks):
        below = 0.0
        for length, height in stack:
            y = plot.py(below + height)
            parts.append(
                rect(plot.px(place + 0.08), y, 0.84 * width, plot.py(below) - y, "document", f"{length:,} tokens")
            )
            below += height
    parts.append(line(plot.left, plot.py(1), plot.left + plot.width, plot.py(1), "ideal"))
    dealt = [micro_batch["dp_rank"] for micro_batch in shown]
    for dp_rank in dict.fromkeys(dealt):
        x, room = plot.px(dealt.index(dp_rank)), width * dealt.count(dp_rank)
        if x > plot.left:
            parts.append(line(x, plot.top, x, plot.top + plot.height + 16, "grid"))
        words = f"DP rank {dp_rank}" if room >= 72 else f"DP {dp_rank}" if room >= 42 else f"{dp_rank}"
        parts.append(text(x + 4, plot.top + plot.height + 15, words, "small"))
    return svg(WIDTH / 2, plot.top + plot.height + 24, parts, "Predicted work of the step's micro-batches")


def timeline(layout: Layout, records: Sequence[StepRecord], longest_ms: float) -> str:
    """What each rank did when: micro-batches as blocks, waits as strips in the colour of their place.

    Args:
        longest_ms: the axis' end.
    """
    ranks = ranks_shown([record.times.times_ms[COMPUTE] for record in records], layout)
    row_height = 22 if len(ranks) <= 24 else 16
    places = {rank: place_name(layout, rank) for rank in ranks}
    left = 66 + 7 * max(map(len, places.values()))
    plot = Plot(left, 6, WIDTH - left - 12, row_height * len(ranks), (0, longest_ms), (0, 1))
    parts = []
    for row, rank in enumerate(ranks):
        y = plot.top + row * row_height
        parts.append(text(left - 8, y + row_height - 7, f"rank {rank} {places[rank]}".strip(), "small", "end"))
        for section in records[rank].times.sections:
            for name, start, ms in spans(section):
                x, width = plot.px(start), plot.px(start + ms) - plot.px(start)
                if width < 0.15:
                    continue
                words = NAMES[section.kind]
                words += f" of micro-batch {section.micro_batch}" if section.micro_batch >= 0 else ""
                words += f", stage {section.stage}" if section.stage >= 0 and layout.pp > 1 else ""
                if name != "compute":
                    title = f"rank {rank}: {name} {duration(ms)} in {words}"
                    parts.append(rect(x, y + row_height - 7, width, 4, f"at-{name}", title))
                    continue
                shade = f"shade{section.micro_batch % _SHADES}" if section.micro_batch >= 0 else "phase"
                kind = f"{shade}{'' if section.kind == 'F' or section.micro_batch < 0 else ' back'}"
                parts.append(
                    rect(x, y + 1, width, row_height - 3, kind, f"rank {rank}: {words}, compute {duration(ms)}")
                )
                if width > 26 and section.micro_batch >= 0 and row_height > 20:
                    label = f"{section.kind}{section.micro_batch}"
                    parts.append(text(x + width / 2, y + 15, label, f"on on-{shade}", "middle"))
    parts += plot.x_axis(lambda ms: f"{ms:,g} ms", 8)
    return svg(WIDTH, plot.top + plot.height + 24, parts, "What every rank did in the step")


def _shown(line_of_step: dict[str, Any]) -> list[dict[str, Any]]:
    """Micro-batches by DP rank; of many, some of each size."""
    found = sorted(line_of_step["micro_batches"], key=lambda micro_batch: -micro_batch["cost"])
    kept = [found[place] for place in evenly(len(found), _MICRO_BATCHES)]
    order = {id(micro_batch): place for place, micro_batch in enumerate(line_of_step["micro_batches"])}
    return sorted(kept, key=lambda micro_batch: (micro_batch["dp_rank"], order[id(micro_batch)]))

"""Records of the logged steps as JSON lines, for reports and replays after the run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from titan_wlb.records import TIMES, Layout, StepRecord, from_json, to_json


class RecordWriter:
    """Appends a line per logged step; after a resume a step's later line replaces the earlier one.

    Args:
        path: usually ``<dump_folder>/wlb/records.jsonl``; folders are made.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        end_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, records: Sequence[StepRecord], layout: Layout, measures: Mapping[str, Any]) -> None:
        """One step.

        Args:
            records: of all ranks.
            measures: of the plan and the step: plain JSON values, named as the caller likes (the scalars, say).
        """
        line = {
            "step": records[0].times.step,
            "layout": {"pp": layout.pp, "dp": layout.dp, "cp": layout.cp, "tp": layout.tp},
            "measures": dict(measures),
            "section_fields": ["kind", "stage", "micro_batch", "start_ms", *(f"{name}_ms" for name in TIMES)],
            "ranks": [to_json(record) for record in records],
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def end_torn_line(path: str | Path) -> None:
    """Ends a last line that a kill tore, so that it does not swallow the line that is appended next."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def read_records(path: str | Path) -> Iterator[tuple[int, Layout, dict[str, Any], list[StepRecord]]]:
    """(step, layout, measures, records of all ranks) in the order of the steps; a torn last line is left out."""
    lines: dict[int, dict[str, Any]] = {}
    for text in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        lines[line["step"]] = line
    for step in sorted(lines):
        line = lines[step]
        yield step, Layout(**line["layout"]), line["measures"], [from_json(rank, step) for rank in line["ranks"]]

"""The JSON lines of a run that count, one a step, in a file that may be larger than memory.

    in the file, steps    1 2 3 4 5 | 3 4        the run was stopped and resumed after step 2
    that count            1 2         3 4        step 5 was taken back with 3 and 4

A process that starts again at a step takes back whatever came from there on, since it trained from the step before.
Source: ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STEP = re.compile(rb'\{"step": (\d+),')


class StepLines:
    """Knows where the lines lie and reads one at a time.

    Args:
        path: of ``records.jsonl`` or ``documents.jsonl``; other lines than a step's, and torn ones, are left out.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.restarts: list[int] = []  # steps at which a process took back earlier lines, of lines that count
        self._places: dict[int, int] = {}
        last = -1
        with path.open("rb") as file:
            place = 0
            for line in file:
                found = _STEP.match(line)
                if found and line.count(b"{") == line.count(b"}"):  # else torn: the first brace closes last
                    step = int(found[1])
                    if step <= last:
                        self._places = {kept: at for kept, at in self._places.items() if kept < step}
                        self.restarts = [*(kept for kept in self.restarts if kept < step), step]
                    self._places[step] = place
                    last = step
                place += len(line)

    @property
    def steps(self) -> list[int]:
        """In order."""
        return list(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, step: int) -> bool:
        return step in self._places

    def read(self, step: int) -> dict[str, Any]:
        """The line of a step.

        Raises:
            ValueError: it is no JSON.
        """
        with self.path.open("rb") as file:
            file.seek(self._places[step])
            return self._parsed(file.readline(), step)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self.path.open("rb") as file:
            for step, place in self._places.items():
                file.seek(place)
                yield step, self._parsed(file.readline(), step)

    def _parsed(self, line: bytes, step: int) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self.path}: the line of step {step} is no JSON ({error})") from None
        return values

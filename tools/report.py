#!/usr/bin/env python3
"""Tells where the time of a run went: who waits, for whom, and what the packing did about it; or compares several runs.

    tools/report.py outputs/debug                                             as text
    tools/report.py outputs/plain outputs/wlb --names Plain-4D WLB-LLM        two runs side by side
    tools/report.py outputs/debug --html report.html --json report.json       a page, and the numbers
    tools/report.py outputs/debug --trace step.json --step 20                 a step's timeline, for ui.perfetto.dev

A RUN is a job's dump folder. Its wlb/records.jsonl is read, which every run writes, and wlb/documents.jsonl where the
run had --wlb.log_documents. The page is one file without scripts or network. No torch is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from titan_wlb.metrics.trace import TracedStep, chrome_trace
from titan_wlb.report.facts import facts_of
from titan_wlb.report.runs import Run, read_run
from titan_wlb.report.text import text_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the runs, shows the text and writes the files."""
    options = _parser().parse_args(arguments)
    try:
        _report(options)
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        sys.stderr.close()
    except (ValueError, OSError) as error:
        sys.exit(f"report: {' '.join(str(error).split())}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """In one line, as everything else that is refused."""
        sys.exit(f"{self.prog}: {message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="dump folder of a run; the first is the baseline of the others",
    )
    add("--names", nargs="+", metavar="NAME", help="of the runs; default: the folders'")
    add("--json", type=Path, metavar="OUT", help="all numbers, with those of each logged step")
    add("--html", type=Path, metavar="OUT", help="a page with pictures")
    add("--trace", type=Path, metavar="OUT", help="a step of each run as a Chrome trace")
    add("--step", type=int, metavar="N", help="that is drawn and traced; default: the one with the median idle share")
    return parser


def _report(options: argparse.Namespace) -> None:
    names = options.names or [None] * len(options.runs)
    if len(names) != len(options.runs):
        raise ValueError(f"--names has {len(names)} names for {len(options.runs)} runs")
    watch = partial(tqdm, desc="reading", unit="step", disable=None, leave=False)
    runs = [read_run(folder, name, watch) for folder, name in zip(options.runs, names, strict=True)]
    facts = [facts_of(run) for run in runs]
    steps = [options.step if options.step is not None else run.typical().number for run in runs]
    if options.json:
        values = {"runs": [of_run.to_json() for of_run in facts]}
        options.json.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if options.html:
        from titan_wlb.report.page import page

        options.html.write_text(page(runs, facts, steps), encoding="utf-8")
    if options.trace:
        options.trace.write_text(json.dumps(chrome_trace(_traced(runs, steps))) + "\n", encoding="utf-8")
    print(text_report(facts))


def _traced(runs: Sequence[Run], steps: Sequence[int]) -> list[TracedStep]:
    names = [run.name if len(runs) > 1 else "" for run in runs]
    return [TracedStep(name, step, *run.records(step)) for name, run, step in zip(names, runs, steps, strict=True)]


if __name__ == "__main__":
    main()

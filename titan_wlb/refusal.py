"""How a rank ends when the person who started it can mend what is wrong: with one line instead of a traceback."""

from __future__ import annotations

import contextlib
import dis
import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from titan_wlb.agreement import PlanMismatch
from titan_wlb.command_line import one_line
from titan_wlb.launch import REFUSED

__all__ = ["line_of", "refuse"]


def line_of(error: BaseException) -> str | None:
    """The line for an error that a user can mend; None for one that needs its traceback.

    Such errors are the ValueErrors that this package raises, by a ``raise`` of its own: one that torch or TorchTitan
    raises, or that Python raises in the middle of our code ("not enough values to unpack"), is a bug until proven
    otherwise.
    """
    if isinstance(error, PlanMismatch) or (isinstance(error, ValueError) and _raised_by_us(error)):
        return one_line(error)
    return None


def refuse(line: str) -> NoReturn:
    """Ends this rank at once: other ranks may be inside a collective that will never end.

    Under torchrun the line goes into the rank's error file, which the launcher shows: it stops all ranks when one
    ends, perhaps before the one whose output is on the screen came to its own refusal.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        message = {"message": f"titan_wlb: {line}", "extraInfo": {"timestamp": int(time.time())}}
        Path(error_file).write_text(json.dumps({"message": message}))
    else:
        print(f"titan_wlb: {line}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(REFUSED)


def _raised_by_us(error: BaseException) -> bool:
    place = error.__traceback__
    if place is None:
        return False
    while place.tb_next is not None:
        place = place.tb_next
    frame = place.tb_frame
    by_raise = frame.f_code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return by_raise and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "titan_wlb"

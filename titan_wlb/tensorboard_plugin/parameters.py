"""Parameters of a request: each is known and checked, or the request is refused with a line that says why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from werkzeug.datastructures import MultiDict


class Refused(ValueError):
    """A request that is not answered.

    Args:
        message: for the person who sent it.
        code: of HTTP.
    """

    def __init__(self, message: str, code: int = 400):
        super().__init__(message)
        self.code = code


def parsed(arguments: MultiDict[str, str], known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The request's parameters.

    Args:
        arguments: as sent.
        known: name -> what checks its value; all are required.

    Raises:
        Refused: one is unknown, missing, given twice or has a value that is not allowed.
    """
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise Refused(f"unknown parameter {unknown[0][:40]!r}; known are {', '.join(known) or 'none'}")
    values = {}
    for name, check in known.items():
        given = arguments.getlist(name)
        if len(given) != 1:
            raise Refused(f"parameter {name!r} is needed once, it came {len(given)} times")
        try:
            values[name] = check(given[0])
        except ValueError as error:
            raise Refused(f"parameter {name!r}: {error}") from None
    return values


def integer(low: int, high: int) -> Callable[[str], int]:
    """Checks for a whole number from ``low`` to ``high``."""

    def check(text: str) -> int:
        # int() would take "1_0", " 1" and digits of other scripts, too.
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise ValueError(f"{text[:40]!r} is no whole number")
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"{value} is not in [{low}, {high}]")
        return value

    return check


def one_of(allowed: Collection[str]) -> Callable[[str], str]:
    """Checks for one of these words."""

    def check(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text[:40]!r} is none of {', '.join(allowed)}")
        return text

    return check

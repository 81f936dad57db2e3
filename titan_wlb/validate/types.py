"""Keys, types and choices of configuration values, read off the annotations of the sections' dataclasses.

TorchTitan checks flags, but takes what a TOML file says as it is.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_ONE = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_MANY = {int: "integers", float: "numbers", str: "strings"}


def toml_problems(values: Mapping[str, Any], sections: type) -> Iterator[str]:
    """What is wrong with the keys and types of a file.

    Args:
        values: the file's tables.
        sections: dataclass of the configuration, a field a section.
    """
    yield from _problems(values, sections, "")


def type_problems(config: Any) -> Iterator[str]:
    """What is wrong with the types of a whole configuration, wherever its values come from."""
    yield from _problems(vars(config), type(config), "")


def shown(value: Any) -> str:
    """A value as TOML writes it, near enough."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _problems(values: Mapping[str, Any], cls: type, path: str) -> Iterator[str]:
    hints = get_type_hints(cls)
    keys = [entry.name for entry in fields(cls)]
    for key, value in values.items():
        name = f"{path}{key}"
        if key not in keys:
            yield _unknown(key, keys, path)
            continue
        hint = hints[key]
        if isinstance(hint, type) and is_dataclass(hint):
            inner = value if isinstance(value, Mapping) else vars(value) if is_dataclass(value) else None
            if inner is None:
                yield f"{name} = {shown(value)} is not a section; write [{name}] and its keys below it"
            else:
                yield from _problems(inner, hint, f"{name}.")
        elif not _fits(value, hint):
            yield f"{name} = {shown(value)} is not {_described(hint)}"


def _unknown(key: str, keys: list[str], path: str) -> str:
    near = get_close_matches(key, keys, n=1, cutoff=0.75)
    if not path:
        instead = f"did you mean [{near[0]}]?" if near else f"there are {', '.join(keys)}"
        return f"[{key}] is not a section; {instead}"
    instead = f"did you mean {path}{near[0]}?" if near else f"there are {', '.join(keys)} in [{path[:-1]}]"
    return f"{path}{key} is not a key; {instead}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as TOML can say it; types of a user's own section pass."""
    origin = get_origin(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, type(None)) else True


def _described(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return f"one of {', '.join(shown(choice) for choice in get_args(hint))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_described(choice) for choice in get_args(hint) if choice is not type(None))
    if origin is list:
        (item,) = get_args(hint)
        return f"a list of {_MANY[item]}" if item in _MANY else "a list of lists of strings"
    return _ONE.get(hint, getattr(hint, "__name__", str(hint)))

"""A kernel profile as JSON: a section "kernel" of the file that tools/profile_latency.py writes, or a file of its own.

    {"schema": "titan_wlb.kernel/1", "units": {...}, "origin": "measured", "note": ..., "device": "NVIDIA H100",
     "clock": "CUDA events", "kernel": "flash_attn", "dtype": "bfloat16", "versions": {...},
     "heads": 8, "kv_heads": 8, "head_dim": 128, "queries": [128, 256, ...], "keys": [128, 1024, ...],
     "forward": {"tile": "128x128", "one_tile": ..., "per_launch": ..., "per_chunk": 0, "per_exchange": ...,
                 "square": [...], "rectangle": [[...], ...]},
     "backward": {...}, "exchange_origin": "assumed", "exchange": {"all_gather": {"latency": ..., ...}, ...},
     "select_bytes": ..., "add_bytes": ...}

Profiles that ship with the package lie in ``kernel_profiles/``; ``default_kernel_profile`` picks one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from titan_wlb.planning.kernel_profile import COLLECTIVES, DIRECTIONS, KernelProfile, Link, Rates
from titan_wlb.planning.tiles import Tile

SCHEMA = "titan_wlb.kernel/1"
_UNITS = {
    "square, rectangle": "FLOP/s by query rows, and by query rows and keys before them; 4 FLOP a cell, head and "
    "dimension forward, 10 backward; cells of whole tiles",
    "tile": "query rows x keys",
    "one_tile": "FLOP/s of one head's deepest tile alone; 0: tiles run one after another",
    "per_launch, per_chunk, per_exchange, latency": "ns",
    "bytes_per_second, select_bytes, add_bytes": "bytes/s of a rank",
}
_TEXTS = ("origin", "note", "device", "clock", "kernel", "dtype", "exchange_origin")
_NUMBERS = ("heads", "kv_heads", "head_dim", "select_bytes", "add_bytes")
_ORIGINS = ("measured", "assumed")
_REMEDY = "measure again with tools/profile_latency.py"
# Head dimensions that a profile of the CPU ships for; a model takes the nearest.
_CPU_HEAD_DIMS = (16, 64, 128)


def default_kernel_profile(device: str, head_dim: int = 128) -> KernelProfile:
    """What ships for a device, until it is measured.

    Args:
        device: "cpu", or the name of a GPU; one with "H200" in its name is taken for that, all others for an H100.
        head_dim: of the model; CPU profiles ship for 16, 64 and 128, and the nearest by ratio is taken.
    """
    if device != "cpu":
        return _shipped("h200" if "H200" in device.upper() else "h100")
    nearest = min(_CPU_HEAD_DIMS, key=lambda known: (max(known, head_dim) / min(known, head_dim), known))
    return _shipped(f"cpu_{nearest}")


@cache
def _shipped(name: str) -> KernelProfile:
    text = (files("titan_wlb.planning") / "kernel_profiles" / f"{name}.json").read_text(encoding="utf-8")
    return kernel_from_json(json.loads(text))


def read_kernel_profile(path: str | Path) -> KernelProfile | None:
    """The kernel profile of a file of its own, or the section of a workload profile; None where that has none.

    Raises:
        ValueError: it cannot be read or is no profile; one line with the file, the key, its value and what is allowed.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("schema") != SCHEMA:
            values = values.get("kernel")
            if values is None:
                return None
        return kernel_from_json(values)
    except OSError as error:
        raise ValueError(f"profile {str(path)!r} cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"profile {str(path)!r} is no JSON: {error}; {_REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"profile {str(path)!r}: {error}") from None


def write_kernel_profile(profile: KernelProfile, path: str | Path) -> None:
    """Writes a file of its own, and the folder that it lies in; a row of a table is a line of text."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(_text(kernel_to_json(profile)) + "\n", encoding="utf-8")


def add_kernel_profile(profile: KernelProfile, path: str | Path) -> None:
    """Adds the section "kernel" to a workload profile, in place of one that is there."""
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    values["kernel"] = kernel_to_json(profile)
    Path(path).write_text(_text(values) + "\n", encoding="utf-8")


def kernel_to_json(profile: KernelProfile) -> dict[str, Any]:
    """As plain JSON values."""
    values: dict[str, Any] = {"schema": SCHEMA, "units": _UNITS}
    values |= {key: getattr(profile, key) for key in (*_TEXTS, "versions", *_NUMBERS)}
    values |= {"queries": list(profile.queries), "keys": list(profile.keys)}
    for direction in DIRECTIONS:
        rates = profile.rates(direction)
        values[direction] = {
            "tile": str(rates.tile),
            "one_tile": rates.one_tile,
            "per_launch": rates.per_launch,
            "per_chunk": rates.per_chunk,
            "per_exchange": rates.per_exchange,
            "square": list(rates.square),
            "rectangle": [list(row) for row in rates.rectangle],
        }
    return values | {"exchange": {name: asdict(link) for name, link in profile.exchange.items()}}


def kernel_from_json(values: Any) -> KernelProfile:
    """What ``kernel_to_json`` gave.

    Raises:
        ValueError: a key is missing, or its value is none of what is allowed; one line.
    """
    found = values.get("schema") if isinstance(values, dict) else None
    if found != SCHEMA:
        raise ValueError(f"schema is {found!r}, this program reads {SCHEMA!r}; {_REMEDY}")
    texts = {key: _at(values, key, kind=str) for key in _TEXTS}
    for key in ("origin", "exchange_origin"):
        if texts[key] not in _ORIGINS:
            raise ValueError(f"{key} is {texts[key]!r}, it must be one of {', '.join(_ORIGINS)}; {_REMEDY}")
    queries, keys = (_rising(values, key) for key in ("queries", "keys"))
    plain: dict[str, Any] = texts | {key: _integer(values, key) for key in _NUMBERS}
    return KernelProfile(
        **plain,
        versions={key: _at(values, "versions", key, kind=str) for key in _at(values, "versions", kind=dict)},
        queries=queries,
        keys=keys,
        forward=_rates(values, "forward", len(queries), len(keys)),
        backward=_rates(values, "backward", len(queries), len(keys)),
        exchange={name: _link(values, "exchange", name) for name in COLLECTIVES},
    )


def _rates(values: Any, direction: str, num_queries: int, num_keys: int) -> Rates:
    return Rates(
        tile=Tile.of_text(_at(values, direction, "tile", kind=str)),
        square=_integers(values, direction, "square", number=num_queries),
        rectangle=tuple(_integers(values, direction, "rectangle", row, number=num_keys) for row in range(num_queries)),
        one_tile=_integer(values, direction, "one_tile", least=0),
        per_launch=_integer(values, direction, "per_launch", least=0),
        per_chunk=_integer(values, direction, "per_chunk", least=0),
        per_exchange=_integer(values, direction, "per_exchange", least=0),
    )


def _link(values: Any, *keys: str) -> Link:
    return Link(
        latency=_integer(values, *keys, "latency", least=0),
        bytes_per_second=_integer(values, *keys, "bytes_per_second"),
    )


def _rising(values: Any, key: str) -> tuple[int, ...]:
    numbers = _integers(values, key)
    if not numbers or list(numbers) != sorted(set(numbers)):
        raise ValueError(f"{key} is {list(numbers)}, it must be rising numbers; {_REMEDY}")
    return numbers


def _integers(values: Any, *keys: str | int, number: int | None = None) -> tuple[int, ...]:
    found = len(_at(values, *keys, kind=list))
    if number is not None and found != number:
        raise ValueError(f"{'.'.join(map(str, keys))} has {found} numbers, it must have {number}; {_REMEDY}")
    return tuple(_integer(values, *keys, place) for place in range(found))


def _integer(values: Any, *keys: str | int, least: int = 1) -> int:
    number: int = _at(values, *keys, kind=int)
    if number < least:
        raise ValueError(f"{'.'.join(map(str, keys))} is {number}, it must be at least {least}; {_REMEDY}")
    return number


def _at(values: Any, *keys: str | int, kind: type) -> Any:
    name = ".".join(map(str, keys))
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{name} is missing; {_REMEDY}") from None
    if not isinstance(values, kind) or isinstance(values, bool):
        kinds = {dict: "an object", list: "an array", str: "a text", int: "a whole number"}
        raise ValueError(f"{name} is {values!r}, it must be {kinds[kind]}; {_REMEDY}")
    return values


def _text(values: Any, indent: str = "") -> str:
    """JSON with a line for each entry of an object, and for each list or object inside a list."""
    inner = indent + " "
    if isinstance(values, dict) and any(isinstance(value, (dict, list)) for value in values.values()):
        parts: Sequence[str] = [f"{json.dumps(key)}: {_text(value, inner)}" for key, value in values.items()]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    if isinstance(values, list) and any(isinstance(value, (dict, list)) for value in values):
        return "[\n" + ",\n".join(inner + json.dumps(value) for value in values) + f"\n{indent}]"
    return json.dumps(values)

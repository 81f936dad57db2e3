"""A profile as a JSON file, written by tools/profile_latency.py and read by training (``wlb.profile``) and tools.

    {
     "schema": "titan_wlb.profile/1",
     "units": ..., "device": "NVIDIA H100", "clock": "CUDA events", "settings": {"dtype": "bfloat16", ...},
     "versions": {...}, "model_shape": {"dim": 4096, ...}, "layout": {"tp": 1, "cp": 1}, "attention_runs": 1,
     "fit": {"attention": {"per_micro_batch": ..., "per_document": ..., "per_token": ..., "per_token_squared": ...},
             "rest": ..., "head": ..., "model": ...},
     "residuals": {"attention": {"max": 0.1, "mean": 0.03}, ...},
     "measured": [{"part": "attention", "layers": 1, "documents": [[16, 256]], "forward": ..., "backward": ...}, ...]
    }

"model" of the fit and the residuals follow from the others; they are there for the reader.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from titan_wlb.planning.profile import PARTS, Latency, Measurement, Profile
from titan_wlb.planning.workload import ModelShape

_SCHEMA = "titan_wlb.profile/1"
_UNITS = {
    "fit": "ns, forward + backward, of a micro-batch: per_micro_batch + per_document x documents + per_token x tokens "
    "+ per_token_squared x sum of squared document lengths",
    "residuals": "|predicted - measured| / measured",
    "measured": "forward, backward: ns, median of the repeats; documents: [how many, tokens of each]",
}
_KINDS: dict[Any, str] = {
    dict: "an object",
    list: "an array",
    str: "a text",
    int: "a whole number",
    (int, float): "a number",
}
_REMEDY = "measure again with tools/profile_latency.py"


def write_profile(profile: Profile, path: str | Path) -> None:
    """Writes the file, and the folder that it lies in; a line of the table is a line of text."""
    values = to_json(profile)
    lines = ",\n".join(f"  {json.dumps(line)}" for line in values.pop("measured"))
    head = json.dumps(values, indent=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(f'{head[:-2]},\n "measured": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def read_profile(path: str | Path) -> Profile:
    """Reads the file.

    Raises:
        ValueError: it cannot be read or is no profile; one line with the file, the key, its value and what is allowed.
    """
    try:
        return from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"wlb.profile {str(path)!r} cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"wlb.profile {str(path)!r} is no JSON: {error}; {_REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"wlb.profile {str(path)!r}: {error}") from None


def to_json(profile: Profile) -> dict[str, Any]:
    """As plain JSON values."""
    latencies = {part: asdict(getattr(profile, part)) for part in ("attention", "rest", "head", "model")}
    return {
        "schema": _SCHEMA,
        "units": _UNITS,
        "device": profile.device,
        "clock": profile.clock,
        "settings": profile.settings,
        "versions": profile.versions,
        "model_shape": asdict(profile.shape),
        "layout": {"tp": profile.tp, "cp": profile.cp},
        "attention_runs": profile.attention_runs,
        "fit": latencies,
        "residuals": {part: dict(zip(("max", "mean"), profile.residual(part), strict=True)) for part in PARTS},
        "measured": [asdict(line) for line in profile.measured],
    }


def from_json(values: Any) -> Profile:
    """What ``to_json`` gave.

    Raises:
        ValueError: a key is missing, or its value is none of what is allowed; one line.
    """
    if not isinstance(values, dict) or values.get("schema") != _SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else None
        raise ValueError(f"schema is {found!r}, this program reads {_SCHEMA!r}; {_REMEDY}")
    shape = {field.name: _integer(values, "model_shape", field.name) for field in fields(ModelShape)}
    return Profile(
        shape=ModelShape(**shape),
        tp=_integer(values, "layout", "tp"),
        cp=_integer(values, "layout", "cp"),
        device=_text(values, "device"),
        clock=_text(values, "clock"),
        settings=_texts(values, "settings"),
        versions=_texts(values, "versions"),
        attention_runs=_number(values, "attention_runs"),
        attention=_latency(values, "attention"),
        rest=_latency(values, "rest"),
        head=_latency(values, "head"),
        measured=tuple(_measurement(values, place) for place in range(len(_at(values, "measured", kind=list)))),
    )


def _at(values: Any, *keys: str | int, kind: type | tuple[type, ...]) -> Any:
    name = ".".join(map(str, keys))
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{name} is missing; {_REMEDY}") from None
    if not isinstance(values, kind) or isinstance(values, bool):
        raise ValueError(f"{name} is {values!r}, it must be {_KINDS[kind]}; {_REMEDY}")
    return values


def _text(values: Any, *keys: str | int) -> str:
    text: str = _at(values, *keys, kind=str)
    return text


def _texts(values: Any, key: str) -> dict[str, str]:
    return {name: _text(values, key, name) for name in _at(values, key, kind=dict)}


def _integer(values: Any, *keys: str | int, least: int = 1) -> int:
    number: int = _at(values, *keys, kind=int)
    if number < least:
        raise ValueError(f"{'.'.join(map(str, keys))} is {number}, it must be at least {least}; {_REMEDY}")
    return number


def _number(values: Any, *keys: str | int) -> float:
    number = _at(values, *keys, kind=(int, float))
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{'.'.join(map(str, keys))} is {number}, it must be a finite number >= 0; {_REMEDY}")
    return float(number)


def _latency(values: Any, part: str) -> Latency:
    return Latency(*(_number(values, "fit", part, field.name) for field in fields(Latency)))


def _measurement(values: Any, place: int) -> Measurement:
    line = "measured", place
    groups = len(_at(values, *line, "documents", kind=list))
    return Measurement(
        part=_part(values, *line, "part"),
        layers=_integer(values, *line, "layers", least=0),
        documents=tuple(
            (_integer(values, *line, "documents", group, 0), _integer(values, *line, "documents", group, 1))
            for group in range(groups)
        ),
        forward=_integer(values, *line, "forward"),
        backward=_integer(values, *line, "backward"),
    )


def _part(values: Any, *keys: str | int) -> str:
    part = _text(values, *keys)
    if part not in PARTS:
        raise ValueError(f"{'.'.join(map(str, keys))} is {part!r}, it must be one of {', '.join(PARTS)}; {_REMEDY}")
    return part

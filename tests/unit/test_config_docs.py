"""docs/torchtitan_options.md has every option of TorchTitan once, and says "refused" exactly where the program does."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
from torchtitan.config import JobConfig

from titan_wlb.validate.unsupported import UNSUPPORTED

PAGE = Path(__file__).parents[2] / "docs" / "torchtitan_options.md"
WORDS = {"works", "CUDA only", "not run yet", "refused", "no effect"}


def options(cls: type, path: str = "") -> list[str]:
    """Dotted names of all options below a dataclass."""
    hints = get_type_hints(cls)
    names = []
    for entry in fields(cls):
        name, hint = f"{path}{entry.name}", hints[entry.name]
        names += options(hint, f"{name}.") if is_dataclass(hint) else [name]
    return names


def table() -> dict[str, str]:
    """What the page says of each name; names that end in * stand for the rest of their section."""
    said = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            names, word, _ = (cell.strip() for cell in line.strip("|").split("|", 2))
            for name in re.findall(r"`([^`]+)`", names):
                assert name not in said, f"{name} stands there twice"
                said[name] = word
    return said


def test_every_option_of_torchtitan_stands_in_the_table_and_nothing_else():
    said = table()
    assert set(said.values()) == WORDS
    known = options(JobConfig)
    whole_sections = tuple(name.removesuffix("*") for name in said if name.endswith("*"))
    assert not [name for name in known if name not in said and not name.startswith(whole_sections)]
    assert not [name for name in said if name not in known and not name.endswith("*")]


def test_what_the_table_calls_refused_is_what_the_program_refuses():
    assert {name for name, word in table().items() if word == "refused"} == {option.key for option in UNSUPPORTED}

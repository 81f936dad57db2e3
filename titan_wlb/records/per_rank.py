"""A step of every rank as one table, ranks by fields: what lies in an event file as ``wlb/per_rank``.

    fields      wall   compute   pipeline   cp   ...                       ms, float32
    rank 0      52.1   41.0      8.2        2.9
    rank 1      52.1   47.5      1.7        2.9

The fields, their units and where each rank stands in the mesh are written beside it as JSON, once a run, so that a
reader needs nothing else and an older table stays readable. Source: ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from titan_wlb.records.steps import Layout, StepRecord

PLUGIN_NAME = "titan_wlb"
PER_RANK_TAG = "wlb/per_rank"
SCHEMA_VERSION = 1
AXES = ("pp", "dp", "cp", "tp")
# (name, unit) in the order of the columns; a reader looks columns up by name.
FIELDS = tuple(
    (name, "ms")
    for name in (
        "wall",
        "compute",
        "blocked",
        "starved",
        "idle",
        "pipeline",
        "cp",
        "cp_transfer",
        "cp_waiting",
        "fsdp",
        "fsdp_transfer",
        "fsdp_waiting",
        "data",
        "other",
    )
)


@dataclass(frozen=True)
class PerRankSchema:
    """What the columns and rows of a table are.

    Args:
        fields: names of the columns.
        units: one for each.
        axes: names of the mesh's axes.
        coordinates: per rank its place on each axis.
    """

    fields: tuple[str, ...]
    units: tuple[str, ...]
    axes: tuple[str, ...]
    coordinates: tuple[tuple[int, ...], ...]

    @classmethod
    def of_layout(cls, layout: Layout) -> PerRankSchema:
        """Of a job with this layout, as this version writes it."""
        places = tuple(layout.coordinates(rank) for rank in range(layout.size))
        names, units = zip(*FIELDS, strict=True)
        return cls(names, units, AXES, places)

    def to_json(self) -> str:
        """The text that is written."""
        values = {
            "version": SCHEMA_VERSION,
            "fields": self.fields,
            "units": self.units,
            "axes": self.axes,
            "coordinates": self.coordinates,
        }
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> PerRankSchema:
        """What was written.

        Raises:
            ValueError: it is none of ours, or of a version that this program does not read.
        """
        try:
            values = json.loads(text)
            version = values["version"]
            if version != SCHEMA_VERSION:
                raise ValueError(f"schema version {version!r} of {PER_RANK_TAG}, this program reads {SCHEMA_VERSION}")
            coordinates = tuple(tuple(map(int, place)) for place in values["coordinates"])
            return cls(tuple(values["fields"]), tuple(values["units"]), tuple(values["axes"]), coordinates)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no schema of {PER_RANK_TAG}: {error!r}") from None


def per_rank_rows(records: Sequence[StepRecord]) -> list[list[float]]:
    """The table of a step, [num_ranks][num_fields].

    Args:
        records: of all ranks, in the order of ranks.
    """
    return [[record.ms(name) for name, _ in FIELDS] for record in records]

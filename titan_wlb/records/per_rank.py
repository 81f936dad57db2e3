"""A step of every rank as one table, ranks by fields: what lies in an event file as ``wlb/per_rank``.

    fields      wall   compute   pipeline   cp   ...                       ms, float32
    rank 0      52.1   41.0      8.2        2.9
    rank 1      52.1   47.5      1.7        2.9

The fields, their units and where each rank stands in the mesh are written beside it as JSON, so that a reader needs
nothing else and an older table stays readable: as metadata of the tag's first table of a process, and as text under
``wlb/schema`` at the step of that table. A run that was resumed with other ranks into the same folder has tables of
both shapes: TensorBoard keeps the first metadata of a tag, ``wlb/schema`` tells from which step on which ranks stood
where (``schema_of``). Source: ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from titan_wlb.records.steps import IDLE, TIMES, Layout, StepRecord

PLUGIN_NAME = "titan_wlb"
PER_RANK_TAG = "wlb/per_rank"
SCHEMA_TAG = "wlb/schema"  # text: PerRankSchema.to_json()
PLAN_TAG = "wlb/plan"  # text: titan_wlb.metrics.step_view.plan_text
ACTIONS_TAG = "wlb/actions"  # text: titan_wlb.metrics.step_view.actions_text
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

# Of these, where a rank's time goes without overlap: they add up to its wall time.
PLACES = (
    "compute",
    "pipeline",
    "cp_waiting",
    "cp_transfer",
    "fsdp_waiting",
    "fsdp_transfer",
    "data",
    "starved",
    "other",
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


def schema_of(schemas: Mapping[int, PerRankSchema], step: int, num_ranks: int) -> PerRankSchema | None:
    """What the table of a step with so many rows was written as; None if nothing written fits.

        schemas written at steps 1 (4 ranks) and 21 (2 ranks)
        step 20, 4 rows    the first          step 30, 2 rows    the second
        step 25, 4 rows    the first: the resume went back to step 20, and this table is of before

    Args:
        schemas: step -> what ``wlb/schema`` holds there.
        step: of the table.
        num_ranks: its rows.
    """
    fitting = {at: schema for at, schema in schemas.items() if len(schema.coordinates) == num_ranks}
    if not fitting:
        return None
    return fitting[max((at for at in fitting if at <= step), default=min(fitting))]


def per_rank_rows(records: Sequence[StepRecord]) -> list[list[float]]:
    """The table of a step, [num_ranks][num_fields], ms: what ``StepRecord.ms`` gives for each of ``FIELDS``.

    Args:
        records: of all ranks, in the order of ranks.
    """
    return [_row(record) for record in records]


def columns(rows: Sequence[Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """The same table by field: name of ``FIELDS`` -> a value per rank."""
    return {name: column for (name, _), column in zip(FIELDS, zip(*rows, strict=True), strict=True)}


def _row(record: StepRecord) -> list[float]:
    # StepRecord.ms sums up all sections at each call, which thousands of ranks would feel.
    times_ms = record.times.times_ms
    values = dict(zip(TIMES, times_ms, strict=True))
    values["wall"] = sum(times_ms) - values["blocked"]
    values["blocked"] = max(values["blocked"], 0.0)
    values["idle"] = sum(values[name] for name in IDLE)
    for name, transfer in (("cp", record.cp_transfer_ms), ("fsdp", record.fsdp_transfer_ms)):
        values[f"{name}_transfer"] = transfer
        values[f"{name}_waiting"] = max(values[name] - transfer, 0.0)
    return [values[name] for name, _ in FIELDS]

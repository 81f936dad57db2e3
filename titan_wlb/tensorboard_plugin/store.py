"""What event files hold of a run, read through TensorBoard's data provider alone: so it works with every loader.

    store.runs(...)               {"plain": Found(last_step=60, ...), "ours": ...}
    store.tables(...)             the per-rank tables of a run, one a logged step
    store.texts(...), .scalars(...)

A provider gives whole series only. Tables are kept until the series has grown, and are then read again at most as often
as to spend a tenth of the time on it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.data.provider import DataProvider, RunTagFilter

from titan_wlb.records import Layout
from titan_wlb.records.per_rank import PER_RANK_TAG, PLUGIN_NAME, SCHEMA_TAG, PerRankSchema, schema_of

STEPS_READ = 1000
# The fast loader answers with one message of 256 MiB at most. Of series that do not fit, steps are left out evenly.
MAX_BYTES = 240_000_000
RUNS_CACHED = 4
REST_PER_READING = 10  # times as long as reading took, the tables are not read again


@dataclass(frozen=True)
class Found:
    """A run that has tables.

    Args:
        last_step, last_time: of its newest table; time in seconds since the epoch.
        schema: JSON of the run's first process.
        tags: of all that this plugin wrote there.
    """

    last_step: int
    last_time: float
    schema: bytes
    tags: frozenset[str]


@dataclass(frozen=True)
class Tables:
    """The tables of a run, in the order of steps.

    Args:
        steps: their numbers.
        tables: float32 [ranks, fields], ms; ranks may differ between steps of a resumed run.
        schemas: of each table.
    """

    steps: tuple[int, ...]
    tables: tuple[npt.NDArray[np.float32], ...]
    schemas: tuple[PerRankSchema, ...]

    @property
    def num_ranks(self) -> int:
        """Most ranks that a step had."""
        return max((len(table) for table in self.tables), default=0)

    def field(self, name: str) -> npt.NDArray[np.float32]:
        """One field of all steps, float32 [steps, ranks]; NaN where a step lacks the rank or the field."""
        values = np.full((len(self.steps), self.num_ranks), np.nan, dtype=np.float32)
        for i, (table, schema) in enumerate(zip(self.tables, self.schemas, strict=True)):
            if name in schema.fields:
                values[i, : len(table)] = table[:, schema.fields.index(name)]
        return values

    def last(self, number: int) -> Tables:
        """The newest of them; all for 0."""
        return Tables(self.steps[-number:], self.tables[-number:], self.schemas[-number:])

    def thinned(self, most: int) -> Tables:
        """At most so many of them, evenly spread, the newest among them."""
        number = min(most, len(self.steps))
        kept = [(i + 1) * len(self.steps) // number - 1 for i in range(number)]
        return Tables(*(tuple(of[i] for i in kept) for of in (self.steps, self.tables, self.schemas)))

    def eras(self) -> list[tuple[int, int]]:
        """Indices [first, past the last) of neighbouring steps with the same ranks."""
        starts = [i for i in range(len(self.steps)) if i == 0 or self.schemas[i] != self.schemas[i - 1]]
        return list(zip(starts, [*starts[1:], len(self.steps)], strict=True))


def layout_of(schema: PerRankSchema) -> Layout:
    """Degrees of the axes; an axis that the schema does not name has degree 1."""
    sizes = [max(column) + 1 for column in zip(*schema.coordinates, strict=True)]
    degrees = dict(zip(schema.axes, sizes, strict=True))
    return Layout(**{axis: degrees.get(axis, 1) for axis in ("pp", "dp", "cp", "tp")})


@dataclass
class _Kept:
    newest: tuple[int, float]
    tables: Tables
    read_at: float
    seconds: float


class Store:
    """Reads what this plugin and the scalars hold.

    Args:
        provider: TensorBoard's.
    """

    def __init__(self, provider: DataProvider):
        self._provider = provider
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._lock = threading.Lock()  # of the cache; held while reading, so that two requests do not read twice

    def runs(self, ctx: Any, experiment: str) -> dict[str, Found]:
        """All runs with tables, by name."""
        listed = self._provider.list_tensors(ctx, experiment_id=experiment, plugin_name=PLUGIN_NAME)
        found = {}
        for run, tags in sorted(listed.items()):
            series = tags.get(PER_RANK_TAG)
            if series is not None and series.max_step is not None:
                content = series.plugin_content
                found[run] = Found(series.max_step, series.max_wall_time, content, frozenset(tags))
        return found

    def tables(self, ctx: Any, experiment: str, run: str, found: Found) -> Tables:
        """The tables of a run; those that nothing describes are left out."""
        key, newest = (experiment, run), (found.last_step, found.last_time)
        with self._lock:
            kept = self._kept.get(key)
            rests = kept is not None and time.monotonic() - kept.read_at < REST_PER_READING * kept.seconds
            if kept is None or (kept.newest != newest and not rests):
                begin = time.monotonic()
                tables = self._read_tables(ctx, experiment, run, found)
                end = time.monotonic()
                kept = self._kept[key] = _Kept(newest, tables, end, end - begin)
            self._kept.move_to_end(key)
            while len(self._kept) > RUNS_CACHED:
                self._kept.popitem(last=False)
            return kept.tables

    def texts(self, ctx: Any, experiment: str, run: str, tag: str) -> dict[int, str]:
        """Step -> text of one of our tags."""
        data = self._read(ctx, experiment, run, tag, STEPS_READ)
        return {datum.step: _text(datum.numpy) for datum in data}

    def scalars(
        self, ctx: Any, experiment: str, run: str, tags: Collection[str]
    ) -> Mapping[str, list[tuple[int, float]]]:
        """Tag -> (step, value); tags that the run lacks are left out."""
        data = self._provider.read_scalars(
            ctx,
            experiment_id=experiment,
            plugin_name="scalars",
            downsample=STEPS_READ,
            run_tag_filter=RunTagFilter(runs=[run], tags=list(tags)),
        )
        return {tag: [(datum.step, datum.value) for datum in series] for tag, series in data.get(run, {}).items()}

    def _read(self, ctx: Any, experiment: str, run: str, tag: str, most: int) -> list[Any]:
        data = self._provider.read_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=PLUGIN_NAME,
            downsample=most,
            run_tag_filter=RunTagFilter(runs=[run], tags=[tag]),
        )
        return list(data.get(run, {}).get(tag, []))

    def _read_tables(self, ctx: Any, experiment: str, run: str, found: Found) -> Tables:
        schemas = {}
        for step, text in self.texts(ctx, experiment, run, SCHEMA_TAG).items():
            schemas[step] = PerRankSchema.from_json(text)
        if not schemas:
            schemas[0] = PerRankSchema.from_json(found.schema)
        largest = max(4 * len(schema.coordinates) * len(schema.fields) for schema in schemas.values())
        data = self._read(ctx, experiment, run, PER_RANK_TAG, max(min(STEPS_READ, MAX_BYTES // max(largest, 1)), 2))
        described = []
        for datum in sorted(data, key=lambda datum: datum.step):
            table = datum.numpy
            schema = schema_of(schemas, datum.step, len(table)) if table.ndim == 2 else None
            if schema is not None and table.shape[1] == len(schema.fields):
                described.append((datum.step, table, schema))
        steps, tables, of_tables = zip(*described, strict=True) if described else ((), (), ())
        return Tables(steps, tables, of_tables)


def _text(value: npt.NDArray[Any]) -> str:
    item = value.item() if value.size == 1 else b""
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)

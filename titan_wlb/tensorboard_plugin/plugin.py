"""Routes of the tab, below ``/data/plugin/titan_wlb``.

    /static/<file>      the page; the files of ``static/`` and no others
    /runs               runs that have tables
    /overview           run, last                                         see overview.py
    /heatmap            run, last, value, group, sort, rows, columns      see _heatmap
    /step               run, step                                         see step_view.py

All answer GET alone, read through the data provider, and carry ``X-Content-Type-Options: nosniff`` (TensorBoard's
``Respond`` adds it).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from titan_wlb.records.per_rank import ACTIONS_TAG, PLAN_TAG, PLUGIN_NAME
from titan_wlb.tensorboard_plugin.grid import arranged, over_mean, over_peers, pooled
from titan_wlb.tensorboard_plugin.overview import HEADLINES, PLACES, counted, overview
from titan_wlb.tensorboard_plugin.parameters import Refused, integer, one_of, parsed
from titan_wlb.tensorboard_plugin.step_view import step_view
from titan_wlb.tensorboard_plugin.store import Found, Store, Tables

STATIC = Path(__file__).parent / "static"
MIME_TYPES = {".js": "text/javascript", ".css": "text/css"}
OVER_MEAN, OVER_PEERS, IDLE = "compute_over_mean", "compute_over_peers", "idle"
VALUES = (OVER_MEAN, OVER_PEERS, IDLE, *PLACES[1:], "blocked")
GROUPS = ("none", "pp", "dp", "cp", "tp")
_LAST = integer(0, 1_000_000)
Answer = Callable[[wrappers.Request], wrappers.Response]


class ImbalancePlugin(base_plugin.TBPlugin):
    """The tab "Imbalance".

    Args:
        context: TensorBoard's.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext):
        self._store = None if context.data_provider is None else Store(context.data_provider)

    def get_plugin_apps(self) -> dict[str, Any]:
        """Path -> application."""
        files = sorted(path for path in STATIC.iterdir() if path.suffix in MIME_TYPES)
        apps = {f"/static/{path.name}": _application(_file(path)) for path in files}
        for name, answer in (
            ("runs", self._runs),
            ("overview", self._overview),
            ("heatmap", self._heatmap),
            ("step", self._step),
        ):
            apps[f"/{name}"] = _application(answer)
        return apps

    def is_active(self) -> bool:
        """TensorBoard asks the data provider itself which plugins have data."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The tab's name and module."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="Imbalance")

    def _runs(self, request: wrappers.Request) -> wrappers.Response:
        """[{"run", "last_step", "last_time", "has_steps": whether plans or actions were written}]."""
        parsed(request.args, {})
        runs = [
            {
                "run": run,
                "last_step": found.last_step,
                "last_time": found.last_time,
                "has_steps": bool({PLAN_TAG, ACTIONS_TAG} & found.tags),
            }
            for run, found in self._found(request).items()
        ]
        return _json(request, runs)

    def _overview(self, request: wrappers.Request) -> wrappers.Response:
        sent = parsed(request.args, {"run": str, "last": _LAST})
        _, tables = self._tables(request, sent["run"])
        store, (ctx, experiment) = self._opened, _place(request)
        scalars = store.scalars(ctx, experiment, sent["run"], sorted(HEADLINES.values()))
        return _json(request, {"run": sent["run"], **overview(tables, scalars, sent["last"])})

    def _heatmap(self, request: wrappers.Request) -> wrappers.Response:
        """Little-endian: uint32 n, JSON of n bytes (padded so that 4 + n is a multiple of 4), float32 [rows, columns],
        int32 [rows, columns]: the largest value of each cell and the rank whose it is; NaN and -1 where none is."""
        sent = parsed(
            request.args,
            {
                "run": str,
                "last": _LAST,
                "value": one_of(VALUES),
                "group": one_of(GROUPS),
                "sort": one_of(("rank", "value")),
                "rows": integer(1, 512),
                "columns": integer(1, 1024),
            },
        )
        _, tables = self._tables(request, sent["run"])
        window = counted(tables).last(sent["last"])
        values = _values(window, sent["value"])
        coordinates = _coordinates(window)
        of_axis = coordinates.get(sent["group"], np.zeros(window.num_ranks, dtype=np.int64))
        means = np.nanmean(values, axis=0) if sent["sort"] == "value" else None
        rows = arranged(of_axis, means, sent["rows"])
        cells, whose, edges = pooled(values, rows, sent["columns"])
        header = {
            "value": sent["value"],
            "rows": len(cells),
            "columns": len(edges) - 1,
            "num_ranks": window.num_ranks,
            "num_steps": len(window.steps),
            "steps": [[window.steps[a], window.steps[b - 1]] for a, b in pairwise(edges)],
            "row_sizes": np.diff(rows.edges).tolist(),
            "groups": rows.groups,
            "coordinates": {axis: places.tolist() for axis, places in coordinates.items()},
            "eras": [window.steps[first] for first, _ in window.eras()[1:]],
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        body = struct.pack("<I", len(text)) + text + cells.astype("<f4").tobytes() + whose.astype("<i4").tobytes()
        return http_util.Respond(request, body, "application/octet-stream")

    def _step(self, request: wrappers.Request) -> wrappers.Response:
        sent = parsed(request.args, {"run": str, "step": integer(0, 10**15)})
        self._found_run(request, sent["run"])
        ctx, experiment = _place(request)
        plans, actions = (self._opened.texts(ctx, experiment, sent["run"], tag) for tag in (PLAN_TAG, ACTIONS_TAG))
        return _json(request, {"run": sent["run"], **step_view(plans, actions, sent["step"])})

    @property
    def _opened(self) -> Store:
        if self._store is None:
            raise Refused("this TensorBoard has no data provider (--generic_data=false)", 503)
        return self._store

    def _found(self, request: wrappers.Request) -> dict[str, Found]:
        return self._opened.runs(*_place(request))

    def _found_run(self, request: wrappers.Request, run: str) -> Found:
        found = self._found(request)
        if run not in found:
            raise Refused("no such run with tables of titan_wlb", 404)
        return found[run]

    def _tables(self, request: wrappers.Request, run: str) -> tuple[Found, Tables]:
        found = self._found_run(request, run)
        try:
            tables = self._opened.tables(*_place(request), run, found)
        except ValueError as error:
            raise Refused(str(error), 422) from None
        if not tables.steps:
            raise Refused("the tables of this run are not described by what lies beside them", 422)
        return found, tables


def _values(tables: Tables, name: str) -> np.ndarray:
    """[steps, ranks]: compute over the step's mean or the median of the rank's stage, others as share of wall time."""
    if name == OVER_MEAN:
        return over_mean(tables.field("compute"))
    if name == OVER_PEERS:
        stages = _coordinates(tables).get("pp", np.zeros(tables.num_ranks, dtype=np.int64))
        return over_peers(tables.field("compute"), stages.tolist())
    wall = tables.field("wall")
    return np.divide(tables.field(name), wall, out=np.full_like(wall, np.nan), where=wall > 0)


def _coordinates(tables: Tables) -> dict[str, np.ndarray]:
    """Axis -> place of each rank, by the newest layout; -1 for ranks that only an earlier one had."""
    schema = tables.schemas[-1]
    places = np.full((tables.num_ranks, len(schema.axes)), -1, dtype=np.int64)
    places[: len(schema.coordinates)] = schema.coordinates
    return {axis: places[:, i] for i, axis in enumerate(schema.axes)}


def _place(request: wrappers.Request) -> tuple[Any, str]:
    return plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)


def _file(path: Path) -> Answer:
    def answer(request: wrappers.Request) -> wrappers.Response:
        return http_util.Respond(request, path.read_bytes(), MIME_TYPES[path.suffix])

    return answer


def _application(answer: Answer) -> Any:
    """Of WSGI: refuses what is no GET, and tells a refused request why."""

    @wrappers.Request.application
    def application(request: wrappers.Request) -> wrappers.Response:
        try:
            if request.method not in ("GET", "HEAD"):
                raise Refused("only GET is answered", 405)
            return answer(request)
        except Refused as refused:
            return http_util.Respond(request, {"error": str(refused)}, "application/json", code=refused.code)

    return application


def _json(request: wrappers.Request, values: Any) -> wrappers.Response:
    return http_util.Respond(request, json.dumps(_finite(values), allow_nan=False), "application/json")


def _finite(values: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return values

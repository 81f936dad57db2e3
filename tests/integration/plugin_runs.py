"""Event files of runs that never were, with a planted imbalance; and a TensorBoard that shows them.

python tests/integration/plugin_runs.py FOLDER --pp 1 --dp 512 --cp 8 --steps 1000 --slow_rank 2049
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from titan_wlb.records import TIMES, Layout
from titan_wlb.records.per_rank import FIELDS, PER_RANK_TAG, PLUGIN_NAME, SCHEMA_TAG, PerRankSchema

ROOT = Path(__file__).parents[2]
BASE_MS = 40.0
STEP_VIEW_BYTES = 16_384
NAMES = [name for name, _ in FIELDS]


class EventWriter:
    """Writes an event file the way a training run does, without waiting for one."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / f"events.out.tfevents.{time.time_ns() // 10**9}.{time.time_ns()}", "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._described: set[str] = set()
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """As ``torch.utils.tensorboard`` writes them."""
        self._summary(step, [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])

    def table(self, step: int, table: np.ndarray, schema: str) -> None:
        """``wlb/per_rank``."""
        if PER_RANK_TAG not in self._described:
            self.text(SCHEMA_TAG, step, schema)
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in table.shape])
        tensor = TensorProto(dtype=DT_FLOAT, tensor_shape=shape, tensor_content=table.astype("<f4").tobytes())
        self._tensor(PER_RANK_TAG, step, tensor, schema)

    def text(self, tag: str, step: int, text: str) -> None:
        """A string tensor of the plugin."""
        self._tensor(tag, step, TensorProto(dtype=DT_STRING, tensor_shape={}, string_val=[text.encode()]))

    def forget(self) -> None:
        """As a new process, which writes all descriptions again."""
        self._described.clear()

    def flush(self) -> None:
        """To the file."""
        self._records.flush()

    def close(self) -> None:
        """Ends the file."""
        self._records.close()

    def _tensor(self, tag: str, step: int, tensor: TensorProto, content: str = "") -> None:
        metadata = None
        if tag not in self._described:
            self._described.add(tag)
            data = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content.encode())
            metadata = SummaryMetadata(plugin_data=data, data_class="DATA_CLASS_TENSOR")
        self._summary(step, [Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])

    def _summary(self, step: int, values: list[Summary.Value]) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


def planted_table(layout: Layout, step: int, *, slow_rank: int | None, spread: float, seed: int) -> np.ndarray:
    """A step in which every rank computes ``BASE_MS``, scattered by the data, and waits for the slowest at the end.

    Args:
        slow_rank: computes 1.5 times as long, in every step.
        spread: of the data, as a share of ``BASE_MS``: another rank leads in each step.

    Returns:
        float32 [ranks, fields]
    """
    random = np.random.default_rng([seed, step])
    of_dp = random.gamma(4, 0.25, layout.dp)
    dp_ranks = np.array([layout.coordinates(rank)[1] for rank in range(layout.size)])
    compute = BASE_MS * (1 + spread * (of_dp[dp_ranks] - 1) + 0.01 * random.standard_normal(layout.size))
    if slow_rank is not None:
        compute[slow_rank] *= 1.5
    waiting = compute.max() - compute
    table = np.zeros((layout.size, len(NAMES)), dtype=np.float32)
    pipeline = 6.0 if layout.pp > 1 else 0.0
    cp_waiting = 0.25 * waiting if layout.cp > 1 else 0.0
    for name, values in {
        "compute": compute,
        "pipeline": pipeline,
        "cp_transfer": 0.5 if layout.cp > 1 else 0.0,
        "cp_waiting": cp_waiting,
        "fsdp_transfer": 1.5,
        "fsdp_waiting": waiting - cp_waiting,
        "data": 0.2,
        "other": 0.3,
    }.items():
        table[:, NAMES.index(name)] = values
    for name in ("cp", "fsdp"):
        table[:, NAMES.index(name)] = sum(table[:, NAMES.index(f"{name}_{part}")] for part in ("transfer", "waiting"))
    idle = sum(table[:, NAMES.index(name)] for name in ("pipeline", "cp", "fsdp", "data"))
    table[:, NAMES.index("idle")] = idle
    table[:, NAMES.index("wall")] = table[:, NAMES.index("compute")] + idle + 0.3
    return table


def write_run(
    folder: Path,
    layout: Layout,
    steps: range,
    *,
    slow_rank: int | None = None,
    spread: float = 0.05,
    seed: int = 0,
    packing: str = "variable_length",
    step_views: bool = True,
) -> None:
    """An event file of these steps."""
    writer = EventWriter(folder)
    schema = PerRankSchema.of_layout(layout).to_json()
    next_view = 0
    for step in steps:
        table = planted_table(layout, step, slow_rank=slow_rank, spread=spread, seed=seed)
        writer.table(step, table, schema)
        writer.scalars(step, planted_scalars(table, step, spread))
        if step_views and step % 5 == 0 and step >= next_view:
            plan, actions = planted_plan(layout, step, packing, seed), planted_actions(layout, step, table)
            writer.text("wlb/plan", step, plan)
            writer.text("wlb/actions", step, actions)
            next_view = step + (len(plan) + len(actions)) // STEP_VIEW_BYTES  # as EventFile bounds them
    writer.close()


def planted_scalars(table: np.ndarray, step: int, spread: float) -> dict[str, float]:
    """What stock scalars would hold of it."""
    of = {name: table[:, i].astype(float) for i, name in enumerate(NAMES)}
    wall = float(of["wall"].max())
    gain = float(of["compute"].max() - of["compute"].mean())
    return {
        "wlb/step_ms": wall,
        "wlb/imbalance_degree/measured": float(of["compute"].max() / of["compute"].mean()),
        "wlb/imbalance_degree/predicted": 1 + 0.8 * gain / BASE_MS,
        "wlb/idle_share": float(of["idle"].sum() / of["wall"].sum()),
        "wlb/tokens_per_second": 65536 / wall * 1e3,
        "wlb/delay_iterations": 0.4 * spread,
        "wlb/micro_batch_cost/error": 0.04,
        "wlb/micro_batch_cost/measured_over_predicted": 1.1,
        "wlb/lost_rank_hours": step * float(of["idle"].sum()) / 3.6e6,
        "wlb/lost/dp_ms": 0.8 * gain,
        "wlb/lost/cp_ms": 0.1 * gain,
        "wlb/lost/pipeline_ms": float(of["pipeline"].mean()) / 2,
        "wlb/lost/data_ms": 0.2,
        "wlb/lost/slow_rank_ms": 0.0,
        "wlb/lost/slow_rank": -1.0,
    }


def planted_plan(layout: Layout, step: int, packing: str, seed: int) -> str:
    """``wlb/plan``: two micro-batches per stage of each of at most 16 DP ranks, documents long and short."""
    random = np.random.default_rng([seed, step, 1])
    window = 16384
    micro_batches: list[dict[str, Any]] = []
    for dp_rank in range(min(layout.dp, 16)):
        for place in range(2 * layout.pp):
            lengths = np.minimum(random.lognormal(6.5, 1.2, 24).astype(int) + 16, window)
            lengths = lengths[np.cumsum(lengths) <= window] if packing != "variable_length" else lengths[:14]
            cost = float((lengths**2).sum() / 1e7 + lengths.sum() / 4e3)
            micro_batches.append(
                {
                    "dp_rank": dp_rank,
                    "place": place,
                    "tokens": int(lengths.sum()),
                    "sharding": "per_document",
                    "predicted_ms": round(cost, 3),
                    "measured_ms": round(cost * 1.1 * float(random.normal(1, 0.04)), 3),
                    "num_documents": len(lengths),
                    "lengths": sorted(map(int, lengths), reverse=True),
                    "arrivals": [step - int(random.random() < 0.1) for _ in lengths],
                }
            )
    values = {"version": 1, "step": step, "packing": packing, "context_window": window, "micro_batches": micro_batches}
    return json.dumps(values, separators=(",", ":"))


def planted_actions(layout: Layout, step: int, table: np.ndarray) -> str:
    """``wlb/actions``: forward and backward of the micro-batches, one after the other, of at most 64 ranks."""
    fields = ["kind", "stage", "micro_batch", "start", "wall", *TIMES]
    ranks = []
    for rank in range(min(layout.size, 64)):
        compute = float(table[rank, NAMES.index("compute")])
        idle = float(table[rank, NAMES.index("idle")])
        stage, start, actions = layout.coordinates(rank)[0], 0.0, []
        number = 2 * layout.pp
        for kind, share in (("F", 1 / 3), ("B", 2 / 3)):
            for micro_batch in range(number):
                own, waits = compute * share / number, idle * 0.5 / (2 * number)
                times = [own, 0.0, 0.0, waits, 0.0, 0.0, 0.0, 0.0]
                actions.append([kind, stage, micro_batch, round(start, 2), round(own + waits, 2), *times])
                start += own + waits
        times = [0.0, 0.0, 0.0, 0.0, 0.0, idle * 0.5, 0.0, 0.3]
        actions.append(["norm", -1, -1, round(start, 2), round(idle * 0.5 + 0.3, 2), *times])
        ranks.append({"rank": rank, "actions": actions})
    values = {"version": 1, "step": step, "num_ranks": layout.size, "fields": fields, "ranks": ranks}
    return json.dumps(values, separators=(",", ":"))


@contextmanager
def tensorboard(logdir: Path, scratch: Path, *, load_fast: bool) -> Iterator[str]:
    """The real program on a free port, its address; the plugin is registered for it alone where it is not installed.

    Args:
        scratch: for the registration and the log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    information = scratch / "registration" / "titan_wlb_tab-0.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: titan-wlb-tab\nVersion: 0\n")
    entry = "titan_wlb = titan_wlb.tensorboard_plugin.loader:Loader\n"
    paths = [str(ROOT)]
    if not _registered():
        (information / "entry_points.txt").write_text(f"[tensorboard_plugins]\n{entry}")
        paths.append(str(information.parent))
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", f"--port={port}", "--host=127.0.0.1"]
    command += [f"--load_fast={str(load_fast).lower()}", "--reload_interval=1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    with open(scratch / "tensorboard.log", "ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


def fetch(url: str, *, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body)."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def wait_for_runs(address: str, last_steps: dict[str, int], seconds: float = 120) -> None:
    """Until these runs are read up to these steps: not until the server answers, which it does before."""
    end = time.monotonic() + seconds
    told: Any = None
    while time.monotonic() < end:
        try:
            status, _, body = fetch(f"{address}data/plugin/titan_wlb/runs")
            told = json.loads(body) if status == 200 else (status, body[:300])
            if status == 200 and {run["run"]: run["last_step"] for run in told} == last_steps:
                return
        except (OSError, ValueError) as error:
            told = error
        time.sleep(0.2)
    raise TimeoutError(f"TensorBoard did not come to {last_steps} in {seconds} s; last: {told}")


def _registered() -> bool:
    from importlib.metadata import entry_points

    return any(entry.name == "titan_wlb" for entry in entry_points(group="tensorboard_plugins"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for axis in ("pp", "dp", "cp", "tp"):
        parser.add_argument(f"--{axis}", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--slow_rank", type=int)
    parser.add_argument("--spread", type=float, default=0.05)
    parser.add_argument("--packing", default="variable_length")
    given = parser.parse_args()
    degrees = Layout(given.pp, given.dp, given.cp, given.tp)
    write_run(
        given.folder,
        degrees,
        range(1, given.steps + 1),
        slow_rank=given.slow_rank,
        spread=given.spread,
        packing=given.packing,
    )

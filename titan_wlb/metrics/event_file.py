"""What scalars cannot hold, written into the same event file as they: a step's tables, the run's settings.

    events = EventFile(writer, layout)           TorchTitan's SummaryWriter
    events.describe_run(settings)                once: hparams and a layout of charts
    events.write_step(step, rows, step_view)     each logged step

``SummaryWriter.add_tensor`` writes no plugin metadata, hence the protocol buffers. Tags and their contents are
described in ``titan_wlb.records.per_rank`` and ``titan_wlb.metrics.step_view``. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from torch.utils.tensorboard.summary import hparams

from titan_wlb.metrics.budget import Budget
from titan_wlb.planning.timeline.causes import CAUSES
from titan_wlb.records import Layout
from titan_wlb.records.per_rank import ACTIONS_TAG, PER_RANK_TAG, PLAN_TAG, PLUGIN_NAME, SCHEMA_TAG, PerRankSchema

STEP_VIEW_BYTES = 32_768  # of plan and actions together, per logged step on the mean
COMPARED = ("wlb/run/imbalance_degree", "wlb/run/idle_share", "wlb/run/tokens_per_second")  # of the HParams tab
CHARTS = {
    "Imbalance": {
        "Compute of the ranks, ms (mean, min to max)": [
            "Margin",
            ["wlb/compute_ms/mean", "wlb/compute_ms/min", "wlb/compute_ms/max"],
        ],
        "Idle by place, ms (where a rank waits)": [
            "Multiline",
            [f"wlb/idle/{place}_ms" for place in ("pipeline", "cp", "fsdp", "data")],
        ],
        "Lost by cause, ms (what the step would have gained)": [
            "Multiline",
            [f"wlb/lost/{cause}_ms" for cause in CAUSES],
        ],
        "Imbalance degree by axis": [
            "Multiline",
            [f"wlb/imbalance_degree/{axis}" for axis in ("measured", "ranks", "cp", "pp", "stages", "dp")],
        ],
    }
}


class EventFile:
    """Writes what belongs to no scalar.

    The step's plan and actions are written at every logged step while they take ``STEP_VIEW_BYTES`` together or less,
    else so seldom that they take no more on the mean.

    Args:
        writer: TorchTitan's ``SummaryWriter``; None where TensorBoard is off: then nothing is written.
        layout: of the job.
    """

    def __init__(self, writer: Any | None, layout: Layout):
        self._file = None if writer is None else writer.file_writer
        self._writer = writer
        self._schema = PerRankSchema.of_layout(layout).to_json()
        self._described: set[str] = set()  # tags whose metadata this process has written
        self._step_views = Budget(STEP_VIEW_BYTES)

    def describe_run(self, settings: Mapping[str, str | int | float]) -> None:
        """The run's settings for the HParams tab, beside the scalars ``COMPARED``; charts for the Custom Scalars tab.

        Args:
            settings: name -> value, equal names in all runs that are to be compared.
        """
        if self._writer is None or self._file is None:
            return
        self._writer.add_custom_scalars(CHARTS)
        for summary in hparams(dict(settings), dict.fromkeys(COMPARED, 0.0)):
            self._file.add_summary(summary)

    def write_step(
        self,
        step: int,
        rows: Sequence[Sequence[float]],
        step_view: Callable[[], tuple[str, str]] | None = None,
    ) -> None:
        """A logged step.

        Args:
            step: its number.
            rows: of ``per_rank_rows``.
            step_view: makes (plan, actions) of ``step_view.py``; called only where they are written.
        """
        if self._file is None:
            return
        table = np.asarray(rows, dtype=np.float32)
        tensor = TensorProto(dtype=DT_FLOAT, tensor_shape=_shape(*table.shape), tensor_content=table.tobytes())
        if PER_RANK_TAG not in self._described:
            self._add(SCHEMA_TAG, _text(self._schema), step)
        self._add(PER_RANK_TAG, tensor, step, self._schema)
        if step_view is not None and self._step_views.is_due():
            plan, actions = step_view()
            self._add(PLAN_TAG, _text(plan), step)
            self._add(ACTIONS_TAG, _text(actions), step)
            self._step_views.spend(len(plan) + len(actions))

    def write_text(self, tag: str, markdown: str, step: int) -> None:
        """A text for the Text tab."""
        if self._writer is not None:
            self._writer.add_text(tag, markdown, step)

    def _add(self, tag: str, tensor: TensorProto, step: int, content: str = "") -> None:
        """Adds a summary; plugin and content go with the tag's first one only, which is what TensorBoard keeps."""
        assert self._file is not None, "no event file"
        metadata = None
        if tag not in self._described:
            self._described.add(tag)
            plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content.encode())
            metadata = SummaryMetadata(plugin_data=plugin, data_class="DATA_CLASS_TENSOR")
        self._file.add_summary(Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)]), step)


def _text(text: str) -> TensorProto:
    return TensorProto(dtype=DT_STRING, tensor_shape=_shape(), string_val=[text.encode()])


def _shape(*sizes: int) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])

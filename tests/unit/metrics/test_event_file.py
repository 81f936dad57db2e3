import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from titan_wlb.metrics.event_file import STEP_VIEW_BYTES, EventFile
from titan_wlb.records import Layout
from titan_wlb.records.per_rank import FIELDS, PerRankSchema, schema_of


def rows_of(num_ranks, offset=0.0):
    return [[offset + rank + field / 100 for field in range(len(FIELDS))] for rank in range(num_ranks)]


def process(folder, layout, steps, view=lambda: ("{}", "{}"), settings=None):
    """What one process of a run writes."""
    writer = SummaryWriter(folder)
    events = EventFile(writer, layout)
    if settings is not None:
        events.describe_run(settings)
    for step in steps:
        writer.add_scalar("wlb/idle_share", 0.5, step)
        events.write_step(step, rows_of(layout.size, step), view)
    writer.close()


def read(folder):
    run = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    run.Reload()
    return run


def texts(run, tag):
    return {event.step: event.tensor_proto.string_val[0].decode() for event in run.Tensors(tag)}


def test_a_table_comes_back_with_its_schema_from_the_file_of_the_scalars(tmp_path):
    layout = Layout(pp=2, cp=2)
    process(tmp_path, layout, (1, 10))
    assert len(list(tmp_path.iterdir())) == 1
    run = read(tmp_path)
    tables = {event.step: make_ndarray(event.tensor_proto) for event in run.Tensors("wlb/per_rank")}
    assert sorted(tables) == [1, 10]
    assert tables[10].dtype == np.float32 and tables[10].shape == (4, len(FIELDS))
    np.testing.assert_array_equal(tables[10], np.float32(rows_of(4, 10)))
    plugin = run.SummaryMetadata("wlb/per_rank").plugin_data
    assert plugin.plugin_name == "titan_wlb"
    assert PerRankSchema.from_json(plugin.content) == PerRankSchema.of_layout(layout)
    assert [event.step for event in run.Scalars("wlb/idle_share")] == [1, 10]


def test_a_run_resumed_with_other_ranks_into_the_same_folder_stays_readable(tmp_path):
    process(tmp_path, Layout(dp=4), (1, 10, 20))
    process(tmp_path, Layout(dp=2), (21, 30))
    run = read(tmp_path)
    schemas = {step: PerRankSchema.from_json(text) for step, text in texts(run, "wlb/schema").items()}
    assert sorted(schemas) == [1, 21]
    for event in run.Tensors("wlb/per_rank"):
        table = make_ndarray(event.tensor_proto)
        schema = schema_of(schemas, event.step, len(table))
        assert schema == PerRankSchema.of_layout(Layout(dp=4 if event.step <= 20 else 2))


def test_plans_and_actions_lie_beside_the_table_of_their_step(tmp_path):
    process(tmp_path, Layout(), (1, 2), lambda: ('{"step": 1}', '{"ranks": []}'))
    run = read(tmp_path)
    assert texts(run, "wlb/plan") == dict.fromkeys((1, 2), '{"step": 1}')
    assert json.loads(texts(run, "wlb/actions")[2]) == {"ranks": []}
    assert run.SummaryMetadata("wlb/plan").plugin_data.plugin_name == "titan_wlb"


@pytest.mark.parametrize("size, written", [(0.5, 12), (1, 12), (1.2, 6), (3, 4), (100, 1)])
def test_large_steps_are_told_so_seldom_that_the_file_grows_no_faster(tmp_path, size, written):
    made = []

    def view():
        made.append(1)
        return "x" * int(size * STEP_VIEW_BYTES), ""

    process(tmp_path, Layout(), range(12), view)
    assert len(made) == written


def test_settings_and_charts_are_written_once(tmp_path):
    process(tmp_path, Layout(), (1, 2), settings={"packing": "original", "context_window": 4096})
    run = read(tmp_path)
    assert "custom_scalars__config__" in run.Tags()["tensors"]
    plugins = run.PluginTagToContent("hparams")
    assert set(plugins) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    assert b"original" in plugins["_hparams_/session_start_info"]
    assert b"wlb/run/idle_share" in plugins["_hparams_/experiment"]


def test_without_tensorboard_nothing_is_made():
    events = EventFile(None, Layout())
    events.describe_run({"packing": "original"})
    events.write_step(1, rows_of(1), lambda: pytest.fail("made for nobody"))
    events.write_text("wlb/slowest_ranks", "", 1)

"""Requests: every parameter is checked; what a step holds is checked before it goes to the page."""

import argparse
import json
import subprocess
import sys

import pytest
from werkzeug.datastructures import MultiDict

from titan_wlb.tensorboard_plugin.loader import STEPS_KEPT, Loader
from titan_wlb.tensorboard_plugin.parameters import Refused, integer, one_of, parsed
from titan_wlb.tensorboard_plugin.step_view import step_view

KNOWN = {"run": str, "rows": integer(1, 512), "sort": one_of(("rank", "value"))}


def test_known_values_pass():
    sent = MultiDict([("run", "a/../b"), ("rows", "512"), ("sort", "rank")])
    assert parsed(sent, KNOWN) == {"run": "a/../b", "rows": 512, "sort": "rank"}


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ([("run", "a"), ("rows", "513"), ("sort", "rank")], "513 is not in"),
        ([("run", "a"), ("rows", "-1"), ("sort", "rank")], "no whole number"),
        ([("run", "a"), ("rows", "1_0"), ("sort", "rank")], "no whole number"),
        ([("run", "a"), ("rows", "１"), ("sort", "rank")], "no whole number"),
        ([("run", "a"), ("rows", "9" * 5000), ("sort", "rank")], "no whole number"),
        ([("run", "a"), ("rows", "nan"), ("sort", "rank")], "no whole number"),
        ([("run", "a"), ("rows", "1"), ("sort", "<b>")], "is none of rank, value"),
        ([("run", "a"), ("rows", "1")], "needed once"),
        ([("run", "a"), ("run", "b"), ("rows", "1"), ("sort", "rank")], "needed once"),
        ([("run", "a"), ("rows", "1"), ("sort", "rank"), ("path", "/etc")], "unknown parameter 'path'"),
    ],
)
def test_others_are_refused_in_a_line_that_says_why(sent, says):
    with pytest.raises(Refused, match=says):
        parsed(MultiDict(sent), KNOWN)


def _plan(step):
    micro_batch = {"dp_rank": 0, "place": 0, "tokens": 5, "num_documents": 1, "lengths": [5], "arrivals": [step]}
    plan = {"version": 1, "step": step, "packing": "original", "context_window": 8, "micro_batches": [micro_batch]}
    return json.dumps(plan)


def test_the_nearest_written_step_is_shown():
    plans = {10: _plan(10), 20: _plan(20)}
    assert step_view(plans, {}, 14)["step"] == 10
    assert step_view(plans, {}, 16)["step"] == 20
    assert step_view(plans, {}, 16)["written"] == [10, 20]
    assert step_view({}, {}, 16)["plan"] is None


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"version": 1}', _plan(3).replace("[{", "[7,{")])
def test_what_is_no_plan_is_not_shown_and_said_so(text):
    view = step_view({3: text}, {}, 3)
    assert view["plan"] is None
    assert view["note"]


def test_steps_are_kept_unless_the_user_says_how_many():
    flags = argparse.Namespace(samples_per_plugin={})
    Loader().fix_flags(flags)
    assert flags.samples_per_plugin == {"titan_wlb": STEPS_KEPT}
    flags = argparse.Namespace(samples_per_plugin={"titan_wlb": 7, "images": 3})
    Loader().fix_flags(flags)
    assert flags.samples_per_plugin == {"titan_wlb": 7, "images": 3}
    flags = argparse.Namespace(samples_per_plugin="")
    Loader().fix_flags(flags)
    assert flags.samples_per_plugin == {"titan_wlb": STEPS_KEPT}


def test_the_loader_imports_nothing_heavy_and_survives_a_broken_plugin():
    code = (
        "import sys\n"
        "from titan_wlb.tensorboard_plugin.loader import Loader\n"
        "assert 'titan_wlb.records' not in sys.modules, 'the loader imports the plugin'\n"
        "sys.modules['titan_wlb.tensorboard_plugin.plugin'] = None\n"
        "assert Loader().load(None) is None\n"
        "del sys.modules['titan_wlb.tensorboard_plugin.plugin']\n"
        "import titan_wlb.tensorboard_plugin.plugin\n"
        "assert 'torch' not in sys.modules, 'the plugin imports torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr

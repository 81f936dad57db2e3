"""The tab "Imbalance" as TensorBoard serves it, with its fast loader and without."""

import json
import struct

import numpy as np
import pytest
from plugin_runs import EventWriter, fetch, planted_table, tensorboard, wait_for_runs, write_run

from titan_wlb.records import Layout
from titan_wlb.records.per_rank import PerRankSchema

SLOW_RANK = 5
LAYOUT = Layout(pp=2, dp=2, cp=2)
HEATMAP = "heatmap?last=0&value=compute_over_mean&group=none&sort=rank&rows=300&columns=700&run="


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def address(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "plain", LAYOUT, range(1, 41), spread=0.5, packing="original")
    write_run(folder / "wlb" / "tb", LAYOUT, range(1, 41), slow_rank=SLOW_RANK)
    _write_resumed(folder / "resumed")
    EventWriter(folder / "others").close()
    with tensorboard(folder, tmp_path_factory.mktemp("scratch"), load_fast=request.param) as root:
        wait_for_runs(root, {"plain": 40, "wlb/tb": 40, "resumed": 30})
        yield f"{root}data/plugin/titan_wlb/"


def _write_resumed(folder):
    """20 steps of 8 ranks, then 10 of 4."""
    writer = EventWriter(folder)
    for layout, steps in ((LAYOUT, range(1, 21)), (Layout(dp=4), range(21, 31))):
        for step in steps:
            table = planted_table(layout, step, slow_rank=None, spread=0.1, seed=0)
            writer.table(step, table, PerRankSchema.of_layout(layout).to_json())
        writer.forget()
    writer.close()


def _json(url):
    status, _, body = fetch(url)
    assert status == 200, body
    return json.loads(body)


def _heatmap(url):
    status, headers, body = fetch(url)
    assert status == 200, body
    assert headers["Content-Type"] == "application/octet-stream"
    (length,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + length])
    shape = header["rows"], header["columns"]
    cells = np.frombuffer(body, "<f4", shape[0] * shape[1], 4 + length).reshape(shape)
    whose = np.frombuffer(body, "<i4", shape[0] * shape[1], 4 + length + cells.nbytes).reshape(shape)
    return header, cells, whose


def test_the_tab_is_listed_and_active(address):
    listing = _json(address.replace("plugin/titan_wlb/", "plugins_listing"))
    assert listing["titan_wlb"]["tab_name"] == "Imbalance"
    assert listing["titan_wlb"]["enabled"]


def test_all_retained_steps_are_there_and_the_heatmap_holds_what_was_written(address):
    header, cells, whose = _heatmap(address + HEATMAP + "wlb/tb")
    assert (header["num_ranks"], header["num_steps"]) == (8, 38)
    compute = np.stack([planted_table(LAYOUT, s, slow_rank=SLOW_RANK, spread=0.05, seed=0)[:, 1] for s in range(3, 41)])
    np.testing.assert_allclose(cells, (compute / compute.mean(axis=1, keepdims=True)).T, rtol=1e-6)
    assert (whose == np.arange(8)[:, None]).all()


def test_grouping_and_sorting_order_the_rows(address):
    url = address + HEATMAP + "wlb/tb"
    header, cells, whose = _heatmap(url.replace("group=none", "group=cp"))
    assert header["groups"] == [[0, 0, 4], [1, 4, 8]]
    assert whose[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    _, cells, whose = _heatmap(url.replace("sort=rank", "sort=value"))
    assert whose[0, 0] == SLOW_RANK
    means = cells.mean(axis=1)
    assert (np.diff(means) <= 1e-6).all()


def test_the_overview_tells_a_machine_from_the_data(address):
    slow = _json(address + "overview?last=0&run=wlb/tb")["slow"]
    assert slow["kind"] == "same"
    assert [rank["rank"] for rank in slow["ranks"]] == [SLOW_RANK]
    assert slow["ranks"][0]["place"] == {"pp": 1, "dp": 0, "cp": 1, "tp": 0}
    assert slow["ranks"][0]["excess"] == pytest.approx(0.5, abs=0.05)
    assert _json(address + "overview?last=0&run=plain")["slow"]["kind"] == "rotating"


def test_places_add_up_to_the_step(address):
    view = _json(address + "overview?last=20&run=plain")
    assert view["steps"] == {"first": 21, "last": 40, "counted": 20}
    assert sum(view["places"].values()) == pytest.approx(view["wall"], rel=1e-5)
    assert view["headlines"]["idle_share"]["value"] > 0.05
    assert view["headlines"]["idle_share"]["before"] is not None
    assert view["lost"]["dp"] > view["lost"]["data"]


def test_a_run_resumed_with_other_ranks_opens_and_shows_the_change(address):
    view = _json(address + "overview?last=0&run=resumed")
    assert [(era["first"], era["num_ranks"]) for era in view["eras"]] == [(1, 8), (21, 4)]
    header, cells, whose = _heatmap(address + HEATMAP + "resumed")
    assert header["eras"] == [21]
    assert np.isfinite(cells[:, :18]).all()
    assert np.isnan(cells[4:, 18:]).all() and (whose[4:, 18:] == -1).all()


def test_a_step_has_its_plan_and_actions(address):
    view = _json(address + "step?step=13&run=plain")
    assert view["step"] == 15
    assert view["plan"]["packing"] == "original"
    assert [rank["rank"] for rank in view["actions"]["ranks"]] == list(range(8))
    assert _json(address + "step?step=13&run=resumed")["plan"] is None


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("overview?last=0&run=others", 404),
        ("overview?last=0&run=..%2F..%2Fetc", 404),
        ("overview?last=0", 400),
        ("overview?last=-1&run=plain", 400),
        ("overview?last=0&run=plain&tag=x", 400),
        (HEATMAP.replace("compute_over_mean", "step") + "plain", 400),
        (HEATMAP.replace("rows=300", "rows=100000") + "plain", 400),
        (HEATMAP.replace("group=none", "group=__class__") + "plain", 400),
        ("step?step=1e3&run=plain", 400),
        ("static/../plugin.py", 404),
        ("static/%2e%2e/plugin.py", 404),
        ("static/plugin.py", 404),
    ],
)
def test_other_requests_are_refused(address, query, status):
    code, headers, body = fetch(address + query)
    assert code == status
    assert b"Traceback" not in body
    if status == 400:
        assert "error" in json.loads(body)
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_only_get_is_answered(address):
    assert fetch(address + "runs", method="POST")[0] == 405


def test_assets_are_ours_and_not_sniffed(address):
    for name, kind in (("index.js", "text/javascript"), ("style.css", "text/css")):
        status, headers, body = fetch(address + f"static/{name}")
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert b"//cdn" not in body and b"https://" not in body

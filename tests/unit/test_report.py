"""tools/report.py: what it reads, what it says, how it refuses."""

import importlib.util
import json
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import documents_line, measures_of, step_of, uneven, write_run

from titan_wlb.metrics.jsonl import RecordWriter
from titan_wlb.records import Layout
from titan_wlb.records.per_rank import per_rank_rows
from titan_wlb.report.facts import PLACES, evenly, facts_of
from titan_wlb.report.lines import StepLines
from titan_wlb.report.runs import cost_features, document_costs, read_run
from titan_wlb.report.slow_ranks import most_steps, slow_ranks
from titan_wlb.report.svg import png, ticks
from titan_wlb.report.text import WIDTH, text_report
from titan_wlb.report.words import comparison, comparison_rows, slow_words

TOOL = Path(__file__).parents[2] / "tools" / "report.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("report_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(plain, balanced): uneven micro-batches, and even ones of the same work."""
    folder = tmp_path_factory.mktemp("runs")
    layout = Layout(dp=2)
    plain = write_run(
        folder / "plain", layout, range(1, 21), works=lambda _: [[10.0, 10.0], [10.0, 30.0]], documents=True
    )
    even = write_run(folder / "even", layout, range(1, 31), works=lambda _: [[15.0, 15.0]] * 2, documents=True)
    return plain, even


# what is read


def test_a_process_that_starts_again_takes_back_what_came_from_there_on(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f'{{"step": {step}, "of": {i}}}\n' for i, step in enumerate((1, 2, 3, 4, 5, 3, 4))))
    lines = StepLines(path)
    assert (lines.steps, lines.restarts) == ([1, 2, 3, 4], [3])
    assert [line["of"] for _, line in lines] == [0, 1, 5, 6]
    assert lines.read(3) == {"step": 3, "of": 5} and 5 not in lines


def test_torn_lines_are_left_out(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1, "a": {"b": 1}}\n{"step": 2, "a": {"b": 1}\n{"step": 3}\n\n{"step": 4, "a": {')
    assert StepLines(path).steps == [1]  # a step without anything is none of ours either


def test_the_table_of_a_step_is_that_of_its_records(tmp_path):
    layout = Layout(pp=2, dp=2, cp=2)
    run = read_run(write_run(tmp_path, layout, [1], works=uneven(layout, 3)))
    expected = per_rank_rows(step_of(layout, 1, uneven(layout, 3)(1)))
    assert run.steps[0].table == pytest.approx(np.array(expected), abs=2e-3)
    assert len(run.records(1)[1]) == 8


def test_warm_up_is_left_out_at_each_start_of_a_process(tmp_path):
    write_run(tmp_path, Layout(dp=2), range(1, 11))
    write_run(tmp_path, Layout(dp=4), range(6, 13))
    run = read_run(tmp_path)
    assert [step.number for step in run.counted] == [3, 4, 5, 8, 9, 10, 11, 12]
    assert [(era.first, era.last, era.layout.size) for era in run.all_eras] == [(1, 5, 2), (6, 12, 4)]
    assert run.restarts == (6,)


def test_of_a_run_that_logs_every_tenth_step_only_the_first_is_left_out(tmp_path):
    run = read_run(write_run(tmp_path, Layout(dp=2), [1, 10, 20, 30]))
    assert [step.number for step in run.counted] == [10, 20, 30]


def test_a_run_that_tells_its_warm_up_itself_is_believed(tmp_path):
    writer = RecordWriter(tmp_path / "wlb" / "records.jsonl")
    for step in range(1, 9):
        records = step_of(Layout(), step, [[10.0]])
        known = {"wlb/run/idle_share": 0.1, "wlb/lost_rank_hours": step / 4} if step not in (1, 2, 5, 6) else {}
        writer.write(records, Layout(), measures_of(records, step, [[10.0]]) | known)
    run = read_run(tmp_path)
    assert [step.number for step in run.counted] == [3, 4, 7, 8]
    assert facts_of(run).lost_rank_hours == 2.0


def test_a_run_of_warm_up_alone_is_told_nevertheless(tmp_path):
    assert facts_of(read_run(write_run(tmp_path, Layout(), [1, 2]))).counted == 2


# what it says


def test_facts_are_those_that_were_planted(tmp_path):
    """Two DP ranks: forwards of 10 + 10 and 10 + 30 ms, backwards twice that.

    rank 0    compute 60 + 3.5, fsdp 62, of which 2 transfer, data 0.5, wall 126
    rank 1    compute 120 + 3.5, fsdp 2, all of it transfer
    """
    folder = write_run(tmp_path, Layout(dp=2), range(1, 13), works=lambda _: [[10.0, 10.0], [10.0, 30.0]])
    facts = facts_of(read_run(folder))
    assert (facts.logged, facts.counted) == (12, 10)
    assert facts.step_ms == pytest.approx(126)
    assert facts.times_ms["compute"] == pytest.approx((63.5 + 123.5) / 2)
    assert facts.times_ms["fsdp_waiting"] == pytest.approx(30)
    assert facts.times_ms["fsdp_transfer"] == pytest.approx(2)
    assert facts.idle_share == pytest.approx((62.5 + 2.5) / 252)
    assert sum(facts.times_ms[place] for place in PLACES) == pytest.approx(facts.times_ms["wall"])
    assert facts.tokens_per_second == pytest.approx(1000 / 0.126)
    assert facts.degrees["measured"] == pytest.approx(2.0)
    assert facts.cost.error == pytest.approx(0) and facts.cost.scale == pytest.approx(2)
    assert facts.losses == ((1, 7.9), (12, pytest.approx(6.8)))
    assert facts.lost_rank_hours == pytest.approx(12 * 65 / 3.6e6)
    assert [rank.idle_share for rank in facts.ranks] == pytest.approx([62.5 / 126, 2.5 / 126])


def test_steps_that_were_not_logged_count_as_those_that_were(tmp_path):
    every = facts_of(read_run(write_run(tmp_path / "every", Layout(dp=2), range(1, 31))))
    tenth = facts_of(read_run(write_run(tmp_path / "tenth", Layout(dp=2), [1, 10, 20, 30])))
    assert tenth.lost_rank_hours == pytest.approx(every.lost_rank_hours)


def test_what_a_step_lost_is_told_by_cause(tmp_path):
    lost = {"cp_ms": 3.0, "dp_ms": 12.0, "slow_rank_ms": 6.0, "data_ms": 0.0, "slow_rank": 1.0, "replay_error": 0.01}
    facts = facts_of(read_run(write_run(tmp_path, Layout(dp=2), range(1, 13), lost=lost)))
    assert facts.lost_ms == {"cp": 3.0, "dp": 12.0, "slow_rank": 6.0, "data": 0.0}
    assert facts.slow_rank == (1, 1.0)
    said = " ".join(text_report([facts]).split())
    assert "had only these been even: DP ranks 12.0 ms" in said and "the loader 0" not in said
    assert "Rank 1 is named as the slow one in 100.0 % of the steps" in said


def test_means_by_place_are_told_where_ranks_share_one(tmp_path):
    layout = Layout(pp=2, dp=2)
    facts = facts_of(read_run(write_run(tmp_path, layout, range(1, 5), works=lambda _: [[10.0], [20.0]])))
    assert [member.times_ms["compute"] for member in facts.axes["dp"]] == pytest.approx([33.5, 63.5])
    assert facts.axes.keys() == {"pp", "dp"}
    assert facts_of(read_run(write_run(tmp_path / "alone", Layout(dp=2), [1]))).axes == {}


@pytest.mark.parametrize("layout", [Layout(), Layout(dp=2), Layout(4, 16, 2, 4)])
def test_no_line_is_wider_than_a_terminal(tmp_path, layout):
    folder = write_run(tmp_path, layout, range(1, 13), works=uneven(layout, 2), lost={"cp_ms": 1.0, "slow_rank": 0.0})
    facts = facts_of(read_run(folder))
    assert max(map(len, text_report([facts, facts]).splitlines())) <= 100 and WIDTH <= 100


def test_two_runs_are_compared_in_words_and_numbers(runs):
    facts = [facts_of(read_run(folder)) for folder in runs]
    said = comparison(facts)
    assert said[0] == "even trains 1.31 times as many tokens a second as plain (10,417 against 7,937)."
    assert said[1].startswith(
        "2.6 % of its rank time is idle, against 25.8 %; imbalance degree 1.00 against 2.00 predicted"
    )
    rows = {row.label: row for row in comparison_rows(facts)}
    assert rows["ms per step"].values == ("126.0", "96.0") and rows["ms per step"].ratios == ("", "0.76x")
    assert rows["loss at step 20"].values == ("6.0000", "6.0000")


def test_other_layouts_and_taken_cores_are_warned_of(tmp_path, runs):
    other = facts_of(read_run(write_run(tmp_path, Layout(dp=4), range(1, 13))))
    assert any("not like with like" in line for line in comparison([facts_of(read_run(runs[0])), other]))


# which ranks are slow


def own_work(layout, steps, seed=0, noise=0.01):
    rng = np.random.default_rng(seed)
    return (100 * (1 + noise * rng.standard_normal((steps, layout.size)))).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*(st.sampled_from([1, 2, 3]) for _ in range(4))).filter(lambda degrees: np.prod(degrees[1:]) > 1),
    st.integers(10, 60),
    st.data(),
)
def test_a_rank_that_is_slow_in_all_steps_is_named_whatever_the_data_do(degrees, steps, data):
    layout = Layout(*degrees)
    rank = data.draw(st.integers(0, layout.size - 1))
    own = own_work(layout, steps, seed=data.draw(st.integers(0, 99)))
    if layout.cp * layout.tp > 1:  # else what the data do and what the rank does cannot be told apart in each step
        by_dp = np.random.default_rng(steps).uniform(0.5, 2, size=(steps, 1, layout.dp, 1))
        own = (own.reshape(steps, layout.pp, layout.dp, -1) * by_dp).reshape(steps, -1).astype(np.float32)
    own[:, rank] *= 1.5
    found = slow_ranks(own, layout)
    assert found.kind == "same" and rank in [slow.rank for slow in found.ranks]
    assert next(slow for slow in found.ranks if slow.rank == rank).share_of_steps == 1.0


def test_another_slow_rank_in_each_step_is_the_data():
    own = own_work(Layout(dp=4), 40)
    own[np.arange(40), np.arange(40) % 4] *= 1.3
    found = slow_ranks(own, Layout(dp=4))
    assert (found.kind, found.num_same, found.share_of_steps) == ("rotating", 0, 1.0)


def test_even_few_and_lonely_ranks_are_told():
    assert slow_ranks(own_work(Layout(dp=4), 40), Layout(dp=4)).kind == "even"
    slow = own_work(Layout(dp=4), 8)
    slow[:, 2] *= 2
    assert slow_ranks(slow, Layout(dp=4)).kind == "few"
    assert slow_ranks(own_work(Layout(pp=4), 40) * [1, 2, 3, 4], Layout(pp=4)).kind == "alone"


def test_of_two_ranks_chance_does_not_make_a_slow_one():
    """Either is the slower by far in each step, by a coin: of 1,000 runs at most 1 % are told wrong."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        own = np.full((20, 2), 100, dtype=np.float32)
        own[np.arange(20), rng.integers(0, 2, 20)] = 200
        wrong += slow_ranks(own, Layout(dp=2)).kind == "same"
    assert wrong <= 10
    assert [most_steps(steps) for steps in (9, 16, 36, 1000)] == [1.0, 0.875, 0.75, 0.75]


def test_a_planted_slow_rank_is_named_in_words(tmp_path):
    layout = Layout(dp=2, cp=2)
    folder = write_run(tmp_path, layout, range(1, 31), works=uneven(layout, 2), slow=lambda _: {3: 1.2})
    assert "Always the same rank is slow" in slow_words(facts_of(read_run(folder)))[0]
    assert "rank 3 (slow in 100.0 % of the steps" in slow_words(facts_of(read_run(folder)))[0]


# the pieces


def test_round_values_lie_on_an_axis():
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.03, 1.47, 4) == [0.5, 1]
    assert ticks(5, 5, 4) == [5]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_round_values_are_inside_and_not_too_many(low, width, most):
    found = ticks(low, low + width, most)
    assert all(low - 1e-6 * width <= value <= low + (1 + 1e-6) * width for value in found)
    assert len(found) <= most + 1


def test_pixels_survive_the_picture():
    rgba = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    data = png(rgba)
    place, chunks = 8, {}
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size]) == (zlib.crc32(kind + body),)
        chunks[kind], place = body, place + 12 + size
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (3, 2)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(2, 13)
    assert (rows[:, 1:].reshape(2, 3, 4) == rgba).all() and not rows[:, 0].any()


@given(st.integers(1, 500), st.integers(1, 60))
def test_places_are_spread_evenly(number, most):
    places = evenly(number, most)
    assert places[0] == 0 and len(places) == len(set(places)) == min(number, most) and places[-1] < number


def test_the_cost_model_is_found_in_the_documents():
    lines = [documents_line(step, uneven(Layout(dp=2), 3)(step)) for step in range(1, 9)]
    assert cost_features([500, 2000]) @ document_costs(lines) == pytest.approx([0.75, 6.0], rel=1e-3)


# the tool


def test_text_json_page_and_trace_come_from_one_call(tool, runs, tmp_path, capsys):
    out = {name: tmp_path / f"out.{name}" for name in ("json", "html", "trace")}
    flags = [part for name, path in out.items() for part in (f"--{name}", str(path))]
    tool.main([*map(str, runs), "--names", "Plain-4D", "<b>ours</b>", *flags, "--step", "7"])
    assert "<b>ours</b> trains 1.31 times as many tokens a second as Plain-4D" in " ".join(
        capsys.readouterr().out.split()
    )
    values = json.loads(out["json"].read_text())
    assert [run["name"] for run in values["runs"]] == ["Plain-4D", "<b>ours</b>"]
    assert values["runs"][0]["idle_share"] == pytest.approx(65 / 252) and len(values["runs"][0]["series"]["step"]) == 20
    assert json.loads(out["trace"].read_text())["otherData"] == {"step of Plain-4D": 7, "step of <b>ours</b>": 7}
    page = out["html"].read_text()
    assert "<b>ours</b>" not in page and "&lt;b&gt;ours&lt;/b&gt;" in page
    for title in (
        "Where a rank&#x27;s time goes",
        "Which ranks are slow",
        "What the packing did",
        "One step",
        "Numbers",
    ):
        assert title.replace("&#x27;", "'") in page


class _Page(HTMLParser):
    """Collects what a page refers to, and whether its elements close."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.names = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.references += [value for key, value in attributes if key in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.references += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("layout", [Layout(), Layout(dp=2), Layout(pp=2, dp=2, cp=2), Layout(2, 8, 4, 2)])
def test_the_page_needs_nothing_and_nobody(tool, tmp_path, layout):
    lost = {"dp_ms": 12.0, "slow_rank": -1.0}
    folder = write_run(tmp_path / "run", layout, range(1, 13), works=uneven(layout, 4), documents=True, lost=lost)
    tool.main([str(folder), "--html", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == [] and "script" not in page.names and "link" not in page.names
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not re.search(r"url\(|@import|nan|inf[^o]", re.sub(r"base64,[^\"]*", "", text))


def test_a_run_of_one_step_without_anything_else_still_has_a_page(tool, tmp_path):
    records = step_of(Layout(), 1, [[10.0]])
    writer = RecordWriter(tmp_path / "wlb" / "records.jsonl")
    writer.write(records, Layout(), {"loss": float("nan")})
    tool.main([str(tmp_path), "--html", str(tmp_path / "page.html"), "--json", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["runs"][0]["series"]["loss"] == [None]


def test_a_run_resumed_with_other_ranks_is_shown_with_the_change(tool, tmp_path, capsys):
    write_run(tmp_path, Layout(dp=2), range(1, 21), documents=True)
    write_run(tmp_path, Layout(dp=4), range(15, 31), documents=True)
    tool.main([str(tmp_path), "--html", str(tmp_path / "page.html")])
    said = " ".join(capsys.readouterr().out.split())
    assert "steps 1 to 14 on 2 ranks (DP 2); steps 15 to 30 on 4 ranks (DP 4)" in said
    assert "Taken up again at step 15" in said
    assert "4 ranks (DP 4)</text>" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{tmp}/none"], "report: .*none is no folder"),
        (["{tmp}"], "report: .*records.jsonl does not exist: .* is not the job.dump_folder"),
        (
            ["{plain}", "--step", "99", "--trace", "{tmp}/t.json"],
            "report: .* has no record of step 99: there are 20 of steps 1",
        ),
        (["{plain}", "--names", "a", "b"], "report: --names has 2 names for 1 runs"),
        (["{plain}", "--json", "{tmp}/no/such/folder"], "report: .*No such file"),
        (["{plain}", "--step", "x"], "report: argument --step: invalid int value"),
        ([], "report: the following arguments are required: RUN"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tool, runs, tmp_path, arguments, line):
    with pytest.raises(SystemExit) as refusal:
        tool.main([part.format(tmp=tmp_path, plain=runs[0]) for part in arguments])
    assert re.match(line, refusal.value.code) and "\n" not in refusal.value.code


@pytest.mark.parametrize(
    "content", ["", "nonsense\n", '{"step": 1, "layout": {"pp": 1}, "measures": {}, "ranks": []}\n']
)
def test_records_that_are_none_are_refused(tool, tmp_path, content):
    (tmp_path / "wlb").mkdir()
    (tmp_path / "wlb" / "records.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=r"report: .*records\.jsonl"):
        tool.main([str(tmp_path)])


def test_the_report_never_imports_torch():
    code = (
        "import sys, titan_wlb.report.page, titan_wlb.report.text, titan_wlb.metrics.trace;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'tensorboard')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

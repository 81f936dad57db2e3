"""tools/tune_thresholds.py: the frontier of balance against delay, and how it refuses."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from titan_wlb.data.corpora import Corpus, RawDocument
from titan_wlb.data.encoders import ByteEncoder
from titan_wlb.data.growing import complete_index
from titan_wlb.data.index_builder import IndexBuilder
from titan_wlb.planning.length_families import lengths_of_family
from titan_wlb.planning.lengths_file import read_lengths
from titan_wlb.planning.packing import trials
from titan_wlb.planning.packing.trials import Tried, Tuned

ROOT = Path(__file__).parents[2]
WINDOW = 512
COMMON = ("--context-window", str(WINDOW), "--micro-batches", "2")
COST = ("--cost", "0,1,1/96")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tune_thresholds", ROOT / "tools" / "tune_thresholds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lengths_file(tmp_path) -> Path:
    lengths = lengths_of_family("skewed_web", num_tokens=20 * 2 * WINDOW, seed=1, context_window=WINDOW)
    path = tmp_path / "lengths.txt"
    path.write_text("\n".join(map(str, lengths.tolist())))
    return path


@pytest.fixture
def few_steps(monkeypatch) -> None:
    """Trials as short as they can be: this is about the tool."""
    monkeypatch.setattr(trials, "STEPS_SCORED", (10, 10))


def test_the_frontier_of_both_packers_is_shown_drawn_and_written(
    tool, few_steps, lengths_file, tmp_path, capsys
) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "frontier.png"
    tool.main(
        ["--lengths", str(lengths_file), *COMMON, *COST, "--max-delay-iterations", "0.7", "--json", str(out),
         "--plot", str(picture)]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert said.count("**picked**") == 2
    assert "| variable_length | outlier_thresholds = [" in said and "| lookahead | balance_tolerance = " in said
    assert "lower bound on the delay of packers that keep every step within 0.1 %" in said
    values = json.loads(out.read_text())
    assert [found["packer"] for found in values["packers"]] == ["variable_length", "lookahead"]
    for found in values["packers"]:
        assert found["best"] in found["tried"] and found["frontier"]
        assert found["within_limit"] == (found["best"]["delay"] <= 0.7)
        assert min(bound["delay"] for bound in values["delay_lower_bound"]) >= 0
    assert picture.stat().st_size > 1000


def test_a_limit_that_is_not_met_is_said(tool) -> None:
    tried = Tried((7,), 1.1, 1.2, 0.9, 100)
    lines = tool.report({"variable_length": Tuned(tried, (tried,), 0.5)}, {0.01: 0.25})
    assert "variable_length: nothing tried stays within a delay of 0.5; picked the least" in lines
    assert lines[-1] == "lower bound on the delay of packers that keep every step within 1 %: 0.250"


def test_only_the_first_global_batches_are_looked_at(tool, few_steps, lengths_file, tmp_path) -> None:
    out = tmp_path / "out.json"
    tool.main(
        ["--lengths", str(lengths_file), *COMMON, *COST, "--sample", "3", "--packers", "variable_length",
         "--json", str(out)]
    )  # fmt: skip
    lengths = read_lengths(lengths_file)
    documents = json.loads(out.read_text())["documents"]
    assert lengths[: documents - 1].sum() < 3 * 2 * WINDOW <= lengths[:documents].sum()


def test_an_index_is_sampled_over_all_its_segments(tool, few_steps, tmp_path) -> None:
    texts = ["x" * (1 + place % 60) for place in range(400)]
    corpus = Corpus("texts", "", None, lambda: (RawDocument(str(i), text, i + 1, "") for i, text in enumerate(texts)))
    index = complete_index(IndexBuilder(corpus, ByteEncoder(), tmp_path / "index", segment_tokens=4000))
    out = tmp_path / "out.json"
    tool.main(["--index", str(index.folder), *COMMON, *COST, "--packers", "variable_length", "--json", str(out)])
    assert 350 < json.loads(out.read_text())["documents"] <= 400, "at a window of 512, 2 x 60 windows hold them all"
    with pytest.raises(SystemExit, match="tune_thresholds: there is no segment"):
        tool.main(["--index", str(tmp_path), *COMMON, *COST])


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((*COMMON, "--cost", "a"), "tune_thresholds: --cost 'a' must be"),
        (
            ("--context-window", "0", "--micro-batches", "2", *COST),
            "tune_thresholds: --context-window 0 must be at least 1",
        ),
        (
            (*COMMON, *COST, "--max-tokens", "9"),
            "tune_thresholds: wlb.max_tokens 9 must be at least training.seq_len 512",
        ),
        ((*COMMON, *COST, "--max-delay-iterations", "nan"), "tune_thresholds: --max-delay-iterations nan must be"),
        ((*COMMON, "--profile", "none.json"), "tune_thresholds: wlb.profile 'none.json' cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tool, lengths_file, flags, line) -> None:
    with pytest.raises(SystemExit) as refusal:
        tool.main(["--lengths", str(lengths_file), *flags])
    assert str(refusal.value).startswith(line) and "\n" not in str(refusal.value)


def test_lengths_are_read_from_lines_and_from_json(tmp_path) -> None:
    lines, array = tmp_path / "lines.txt", tmp_path / "array.json"
    lines.write_text("3\n1\n4\n")
    array.write_text("[3, 1, 4]")
    for path in (lines, array):
        assert read_lengths(path).tolist() == [3, 1, 4] and read_lengths(path).dtype == np.int64


@pytest.mark.parametrize("text", ["", "[]", "3\nx\n", "[1.5]", "[[1], [2]]", "{}", "[1, null]"])
def test_a_file_without_lengths_is_refused_in_one_line(tmp_path, text: str) -> None:
    path = tmp_path / "lengths"
    path.write_text(text)
    with pytest.raises(ValueError, match="must hold lengths in tokens") as refusal:
        read_lengths(path)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_and_a_document_without_a_token_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_lengths(tmp_path / "none")
    (tmp_path / "zero").write_text("3\n0\n")
    with pytest.raises(ValueError, match="document 1 of the index has no token"):
        read_lengths(tmp_path / "zero")

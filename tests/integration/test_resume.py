"""A run that is killed and resumed is the run that was not stopped: to the bit, on other layouts but for rounding.

seed        one rank                step 0
straight    DP 2                    1 2 3 4 5 6 7 8 9    checkpoints 3, 6, 9
killed      DP 2                    1 2 3|               killed right after checkpoint 3
                                          4 5|           in step 5, before its optimizer step
                                          4 5 6 7 8|     in step 8, while checkpoint 6 is written in the background
                                          4 5 6 7 8 9    checkpoints in the background; [wlb] and the cost model changed
moved       CP 2                          4 5 6|         from the straight run's 3; killed while checkpoint 6 is written
            PP 2, 1F1B                        6 7|       right after checkpoint 7
            TP 2                                  8 9
elsewhere   PP 2 x CP 2             1 2 3|               from the seed, Interleaved1F1B
            TP 2                    1 2 3|               from the seed

An epoch lasts three to four steps. Each row is a start of the program.
"""

import json
import random
import string
from collections import Counter
from pathlib import Path

import pytest
import torch
from runs import Run, launch, parameters

from titan_wlb.data.index import Index, open_index
from titan_wlb.launch import REFUSED
from titan_wlb.planning.planner import Planner, PlannerConfig
from titan_wlb.planning.shuffle import Shuffle

KILLED = -9
CONFIG = """
[job]
description = "Resumed runs"

[model]
name = "llama3_wlb"
flavor = "debugmodel"
hf_assets_path = ""

[training]
dataset = "jsonl"
dataset_path = "{corpus}"
seq_len = 128
global_batch_size = 4
steps = 9
mixed_precision_param = "float32"

[wlb]
packing = "variable_length"
sharding = "per_document"
segment_tokens = 500
log_documents = true

[optimizer]
lr = 1e-3

[lr_scheduler]
warmup_steps = 2

[activation_checkpoint]
mode = "none"

[metrics]
log_freq = 1

[checkpoint]
enable = true
interval = 3
last_save_model_only = false

[comm]
trace_buf_size = 0

[debug]
seed = 0
"""
CP2 = ["--parallelism.context_parallel_degree", "2"]
TP2 = ["--parallelism.tensor_parallel_degree", "2"]
PP2 = ["--parallelism.pipeline_parallel_degree", "2", "--parallelism.pipeline_parallel_schedule"]
EVERY_STEP = ["--checkpoint.interval", "1"]
ASYNC = ["--checkpoint.async_mode", "async"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where all runs lie, with their configuration and corpus."""
    place = tmp_path_factory.mktemp("resume")
    write_corpus(place / "corpus.jsonl", seed=0)
    (place / "config.toml").write_text(CONFIG.format(corpus=place / "corpus.jsonl"))
    return place


@pytest.fixture(scope="module")
def config(place) -> Path:
    return place / "config.toml"


@pytest.fixture(scope="module")
def seed(place, config) -> Run:
    run = Run(place / "seed")
    launch(config, run, ["--checkpoint.create_seed_checkpoint"], ranks=1)
    return run


@pytest.fixture(scope="module")
def straight(place, config, seed) -> Run:
    """Nobody stops this one."""
    run = seed.copy(place / "straight", 0)
    launch(config, run, ranks=2)
    return run


@pytest.fixture(scope="module")
def killed(place, config, seed) -> Run:
    """The same, killed at three moments; a line of documents.jsonl torn by a kill is planted too."""
    run = seed.copy(place / "killed", 0)
    launch(config, run, ranks=2, plant={"kill": ["saved", 3]}, status=KILLED)
    launch(config, run, ranks=2, plant={"kill": ["training", 5]}, status=KILLED)
    with open(run.folder / "wlb" / "documents.jsonl", "a") as file:
        file.write('{"step": 5, "epo')
    launch(config, run, ASYNC, ranks=2, plant={"kill": ["saving", 6, 8]}, status=KILLED)
    assert run.saved_steps() == [0, 3], "checkpoint 6 must be incomplete"
    changed = ["--wlb.packing", "original", "--wlb.outlier_thresholds", "100", "--wlb.max_tokens", "200"]
    launch(config, run, ASYNC + changed, ranks=2, plant={"flops_per_second": 10**9})
    return run


@pytest.fixture(scope="module")
def moved(place, config, straight) -> Run:
    """The straight run's step 3 on three other layouts in turn."""
    run = straight.copy(place / "moved", 3)
    launch(config, run, CP2 + EVERY_STEP, ranks=2, plant={"kill": ["saving", 6]}, status=KILLED)
    assert run.saved_steps() == [3, 4, 5], "checkpoint 6 must be incomplete"
    launch(config, run, [*PP2, "1F1B", *EVERY_STEP], ranks=2, plant={"kill": ["saved", 7]}, status=KILLED)
    launch(config, run, TP2 + EVERY_STEP, ranks=2)
    return run


def test_the_corpus_is_what_these_tests_need(straight):
    index, lines = index_of(straight), straight.documents()
    assert max(lengths_of(index)) > 128, "a document that is cut into pieces"
    assert len(index.opened) >= 3, "segments, which the run has built in the background"
    assert [line["epoch"] for line in lines.values()][-1] >= 2, "ends of epochs"
    assert any(
        arrival < step
        for step, line in lines.items()
        for micro_batch in line["micro_batches"]
        for *_, arrival in micro_batch["documents"]
    ), "documents that wait"


def test_a_killed_run_trains_the_same_documents(straight, killed):
    assert killed.documents() == straight.documents()


def test_a_steps_later_line_replaces_the_earlier_one(killed):
    assert [line["step"] for line in killed.lines()] == [*range(1, 4), 4, *range(4, 8), *range(4, 10)]
    assert sorted(killed.documents()) == list(range(1, 10))


def test_a_killed_runs_losses_are_equal_to_the_bit(straight, killed):
    assert sorted(straight.losses()) == list(range(1, 10))
    assert killed.losses() == straight.losses()


@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_killed_runs_checkpoints_are_equal_to_the_bit(straight, killed, step):
    expected, found = straight.checkpoint(step), killed.checkpoint(step)
    assert len(parameters(expected)) > 50 and len(expected) > 3 * len(parameters(expected)), "the optimizer's state too"
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not equal(found[name], value)] == []


def test_on_other_layouts_the_micro_batches_are_the_same(straight, moved):
    expected = {step: without_dealing(line) for step, line in straight.documents().items() if step > 3}
    assert {step: without_dealing(line) for step, line in moved.documents().items()} == expected
    assert [line["step"] for line in moved.lines()] == [4, 5, 6, 6, 7, 8, 9]


def test_on_other_layouts_losses_and_parameters_differ_by_rounding_alone(straight, moved):
    expected = straight.losses()
    assert moved.losses() == pytest.approx({step: expected[step] for step in range(4, 10)}, rel=1e-5)
    for step in (6, 9):
        assert_close(moved.checkpoint(step), straight.checkpoint(step))


@pytest.mark.parametrize("name", ["straight", "killed", "moved"])
def test_a_checkpoint_holds_the_planner_of_the_step_just_trained_though_steps_are_planned_ahead(request, name):
    run = request.getfixturevalue(name)
    index = index_of(run)
    steps = [step for step in run.saved_steps() if step > 0]
    assert steps[-1] == 9
    for step in steps:
        saved = run.checkpoint(step)["dataloader.planner"]
        config = PlannerConfig.from_json(json.loads(saved)["config"], sharding="per_document")
        planner = Planner(index, config, dp=1, cp=1)
        for _ in range(step):
            planner.plan()
        assert saved == planner.state


@pytest.mark.parametrize("name", ["killed", "moved"])
def test_every_document_is_trained_exactly_once_per_epoch_across_the_resumes(request, straight, name):
    run = request.getfixturevalue(name)
    index = index_of(run)
    lengths = lengths_of(index)
    lines = {**straight.documents(), **run.documents()}  # the moved run's first steps are the straight one's
    state = json.loads(run.checkpoint(9)["dataloader.planner"])
    epoch, place, offset, *_ = state["intake"]
    pieces = [piece for line in lines.values() for part in line["micro_batches"] for piece in part["documents"]]
    pieces = [(id, start, stop) for id, start, stop, _ in pieces]
    pieces += [(id, start, stop) for queue in state["waiting"] for id, _, start, stop, *_ in queue]  # not yet trained
    tokens = Counter((id, token) for id, start, stop in pieces for token in range(start, stop))
    drawn = [{tokens[id, token] for token in range(length)} for id, length in enumerate(lengths)]
    assert sum(tokens.values()) == sum(length * max(counts) for length, counts in zip(lengths, drawn, strict=True))
    assert all(counts in ({epoch}, {epoch + 1}) for counts in drawn), "a document's tokens equally often"
    assert epoch > 0, "the segments, too, are shuffled"
    order = Shuffle(len(index.opened), 0, epoch).ids(0, len(index.opened))
    before = sum(index.opened[number].num_documents for number in order[:place])
    assert drawn.count({epoch + 1}) == before + offset


def test_what_the_checkpoint_packed_with_stays_in_force_and_the_log_says_so_in_a_line_each(killed):
    log = (killed.folder / "life-3.log").read_text()
    said = [line.split(" WARNING - ")[-1] for line in log.splitlines() if "in the checkpoint stays in force" in line]
    assert [line.split(":")[0] for line in said] == [
        "wlb.packing",
        "wlb.max_tokens",
        "wlb.outlier_thresholds",
        "cost model",
    ]
    assert said[0] == "wlb.packing: variable_length in the checkpoint stays in force, original is not used"
    assert "this run: variable_length" in log, "the closing table"


@pytest.mark.parametrize(
    ("key", "value", "refusal"),
    [
        (
            "training.global_batch_size",
            "8",
            "training.global_batch_size = 8 cannot replace the checkpoint's 4 on resume",
        ),
        ("training.seq_len", "64", "training.seq_len = 64 is below the checkpoint's context window of 128"),
        ("training.dataset_path", "other.jsonl", "cannot resume: the checkpoint's data position belongs to another"),
    ],
    ids=["another N", "a smaller window", "another corpus"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(place, config, straight, key, value, refusal):
    run = straight.copy(place / f"refused for {key}", 3)
    if key == "training.dataset_path":
        value = str(place / value)
        write_corpus(Path(value), seed=1)
    output = launch(config, run, [f"--{key}", value], ranks=1, status=REFUSED)
    *_, last = output.splitlines()
    assert f"titan_wlb: {refusal}" in last
    assert "Traceback" not in output and "torch/distributed/elastic" not in output


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [(4, [*PP2, "Interleaved1F1B", *CP2]), (2, TP2)],
    ids=["PP 2 x CP 2", "TP 2"],
)
def test_the_seed_checkpoint_starts_every_layout_at_the_same_parameters(place, config, seed, straight, ranks, flags):
    run = seed.copy(place / f"from the seed on {ranks}", 0)
    launch(config, run, flags, ranks=ranks, plant={"kill": ["saved", 3]}, status=KILLED)
    expected = straight.losses()
    assert run.losses() == pytest.approx({step: expected[step] for step in (1, 2, 3)}, rel=1e-5)
    assert_close(run.checkpoint(3), straight.checkpoint(3))


def write_corpus(path: Path, seed: int) -> None:
    """32 documents of 3 to 500 random letters."""
    generator = random.Random(seed)
    with open(path, "w") as file:
        for _ in range(32):
            length = min(int(generator.lognormvariate(4.2, 1.0)) + 2, 500)
            file.write(json.dumps({"text": "".join(generator.choices(string.ascii_letters, k=length))}) + "\n")


def index_of(run: Run) -> Index:
    (segment,) = (run.folder / "wlb" / "index").glob("*/segment-00000")
    return open_index(segment.parent)


def lengths_of(index: Index) -> list[int]:
    return [length for segment in index.segments() for length in segment.lengths().tolist()]


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def assert_close(found: dict, expected: dict) -> None:
    """Every parameter within 1e-4 in norm."""
    found, expected = parameters(found), parameters(expected)
    assert found.keys() == expected.keys()
    differences = {name: float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected}
    assert max(differences.values()) < 1e-4, differences


def without_dealing(line: dict) -> list:
    return [(part["tokens"], part["cost"], part["documents"]) for part in line["micro_batches"]]

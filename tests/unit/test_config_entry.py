"""How a rank ends: users get one line and status 78, programmers their traceback; nothing starts before the checks."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from config_cases import ENVIRONMENT

import titan_wlb.train
from titan_wlb import launch, refusal
from titan_wlb.agreement import PlanMismatch
from titan_wlb.data.corpora import build_corpus
from titan_wlb.launch import REFUSED

CONFIG = """
[model]
name = "llama3_wlb"
hf_assets_path = ""
[training]
global_batch_size = 4
"""


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def rank(tmp_path, monkeypatch, capfd):
    """Runs ``main`` as a rank with these flags; returns (exit status, stderr)."""
    (tmp_path / "job.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.setattr(titan_wlb.train, "init_logger", lambda: None)
    monkeypatch.setattr(titan_wlb.train, "_silence_what_does_not_matter", lambda: None)
    monkeypatch.setattr(titan_wlb.train, "models", SimpleNamespace(register=lambda: None))
    monkeypatch.setattr(titan_wlb.train, "device_type", "cpu")
    monkeypatch.setattr(titan_wlb.train, "SECONDS_UNTIL_STOPPED", 0.0)
    monkeypatch.setattr(refusal.os, "_exit", ended)

    def run(*flags: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train", "--job.config_file", "job.toml", *flags])
        with pytest.raises(Ended) as end:
            titan_wlb.train.main()
        return end.value.args[0], capfd.readouterr().err

    return run


def ended(status: int) -> None:
    raise Ended(status)


@pytest.fixture
def trainer(monkeypatch):
    """Stands in for WLBTrainer; what is set here is called while it is built, trains, and is closed."""
    behaviour = SimpleNamespace(building=None, training=None, closing=None, closed=0, written=0)

    class Stand:
        def __init__(self, config):
            self.metrics_processor = SimpleNamespace(close=self.write)
            if behaviour.building:
                behaviour.building()

        def train(self):
            behaviour.training()

        def write(self):
            behaviour.written += 1

        def close(self):
            behaviour.closed += 1
            if behaviour.closing:
                behaviour.closing()

    monkeypatch.setattr(titan_wlb.train, "WLBTrainer", Stand)
    return behaviour


def fails(error: BaseException, module: str = "titan_wlb.data.pretended"):
    """A function of a module that raises this."""
    namespace = {"__name__": module, "error": error}
    exec("def fail():\n    raise error\n", namespace)
    return namespace["fail"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--training.stpes", "3"],
        ["--training.steps", "0"],
        ["--training.dataset", "text"],
        ["--parallelism.context_parallel_degree", "2"],
        ["--wlb.attention_backend", "flash_attn"],
        ["--training.gc_debug"],
    ],
)
def test_a_configuration_is_refused_in_one_line_before_any_process_group(rank, monkeypatch, flags):
    def none_yet(*args, **kwargs):
        raise AssertionError("a process group was made")

    monkeypatch.setattr(torch.distributed, "init_process_group", none_yet)
    monkeypatch.setattr(titan_wlb.train, "WLBTrainer", none_yet)
    status, said = rank(*flags)
    assert status == REFUSED
    assert said.startswith("titan_wlb: ") and said.count("\n") == 1
    assert flags[0].removeprefix("--") in said or "cp 2" in said


def test_the_launcher_gets_the_line_of_a_rank_that_it_started(rank, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    status, said = rank("--training.steps", "0")
    assert (status, said) == (REFUSED, "")
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"] == "titan_wlb: training.steps = 0 is too small; use 1 or more"
    assert message["extraInfo"]["timestamp"] > 0


@pytest.mark.parametrize("when", ["building", "training"])
def test_an_error_of_ours_ends_in_its_line_and_what_was_measured_is_written(rank, trainer, when):
    setattr(trainer, when, fails(ValueError("training.dataset: it holds\nno document")))
    assert rank() == (REFUSED, "titan_wlb: training.dataset: it holds no document\n")
    assert (trainer.written, trainer.closed) == ((1, 0) if when == "training" else (0, 0))


def test_different_plans_end_in_their_line(rank, trainer):
    trainer.training = fails(PlanMismatch("step 3: rank 1 planned another step"), "torch.pretended")
    assert rank() == (REFUSED, "titan_wlb: step 3: rank 1 planned another step\n")


@pytest.mark.parametrize(
    "error",
    [
        fails(ValueError("of torch"), "torch.pretended"),
        fails(ValueError("of TorchTitan"), "torchtitan.pretended"),
        fails(RuntimeError("of ours")),
        fails(AssertionError("of ours")),
    ],
)
def test_any_other_error_keeps_its_traceback_and_closing_does_not_hide_it(rank, trainer, monkeypatch, error):
    trainer.training, trainer.closing = error, fails(RuntimeError("while closing"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(sys, "argv", ["train", "--job.config_file", "job.toml"])
    with pytest.raises(Exception, match=r"of (torch|TorchTitan|ours)") as raised:
        titan_wlb.train.main()
    assert raised.value.__context__ is None
    assert trainer.closed == 1


def test_our_own_error_counts_wherever_it_is_called_from():
    error = raised_by(lambda: torch.utils._pytree.tree_map(lambda _: build_corpus("text"), [1]))
    assert refusal.line_of(error).startswith("training.dataset = 'text' needs dataset_path")


def test_an_error_that_python_raises_in_our_code_is_a_bug():
    namespace = {"__name__": "titan_wlb.pretended"}
    exec("def fail():\n    first, second = [1]\n", namespace)
    assert refusal.line_of(raised_by(namespace["fail"])) is None
    exec("def fail():\n    int('x')\n", namespace)
    assert refusal.line_of(raised_by(namespace["fail"])) is None


def test_an_error_raised_in_place_of_another_counts_as_ours():
    namespace = {"__name__": "titan_wlb.pretended"}
    exec(
        "def fail():\n"
        "    try:\n"
        "        int('x')\n"
        "    except ValueError as error:\n"
        "        raise ValueError(\n"
        "            'it is no number'\n"
        "        ) from error\n",
        namespace,
    )
    assert refusal.line_of(raised_by(namespace["fail"])) == "it is no number"


def raised_by(function) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


def test_help_is_asked_of_the_module_without_ranks(monkeypatch):
    asked = []
    monkeypatch.setattr(launch.os, "execv", lambda program, arguments: asked.append(arguments[1:]))
    launch._help_without_ranks(["--nproc_per_node=4", "-m", "titan_wlb.train", "--training.steps", "3", "--help"])
    launch._help_without_ranks(["--help"])
    launch._help_without_ranks(["--nproc_per_node=4", "-m", "titan_wlb.train", "--training.steps", "3"])
    assert asked == [["-m", "titan_wlb.train", "--training.steps", "3", "--help"]]

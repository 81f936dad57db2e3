"""What a TOML file and flags may say: unknown keys and wrong types are refused in one line, before anything is made."""

import logging
import sys

import pytest
from config_cases import ENVIRONMENT

from titan_wlb.command_line import _what_tyro_said, parse
from titan_wlb.validate import ConfigError

SOUND = """
[model]
name = "llama3_wlb"
hf_assets_path = ""
[training]
global_batch_size = 4
seq_len = 512
[wlb]
outlier_thresholds = [128, 256]
"""

FILES = [
    ("[training\n", "job.config_file = 'job.toml' cannot be read: ", "(at line 1, column 10)"),
    ("steps = 3\n", "job.toml: [steps] is not a section; there are job, profiling"),
    ("training = 3\n", "job.toml: training = 3 is not a section; write [training] and its keys below it"),
    ("[trainin]\nsteps = 3\n", "job.toml: [trainin] is not a section; did you mean [training]?"),
    ("[training]\nstpes = 3\n", "job.toml: training.stpes is not a key; did you mean training.steps?"),
    ("[wlb]\nsteady = true\n", "job.toml: wlb.steady is not a key; ", "packing"),
    ("[job]\nx = 1\n", "job.toml: job.x is not a key; there are config_file, dump_folder", "in [job]"),
    ('[training]\nsteps = "10"\n', "job.toml: training.steps = '10' is not an integer"),
    ("[training]\nsteps = 10.0\n", "job.toml: training.steps = 10.0 is not an integer"),
    ("[training]\nsteps = true\n", "job.toml: training.steps = true is not an integer"),
    ('[training]\nmax_norm = "1"\n', "job.toml: training.max_norm = '1' is not a number or an integer"),
    ('[training.dataloader]\nnum_workers = "2"\n', "job.toml: training.dataloader.num_workers = '2' is not an integer"),
    ('[optimizer]\nlr = "3e-4"\n', "job.toml: optimizer.lr = '3e-4' is not a number"),
    ("[lr_scheduler]\ndecay_ratio = [1]\n", "job.toml: lr_scheduler.decay_ratio = [1] is not a number"),
    ("[model]\nflavor = 8\n", "job.toml: model.flavor = 8 is not a string"),
    ('[checkpoint]\nenable = "yes"\n', "job.toml: checkpoint.enable = 'yes' is not true or false"),
    ("[activation_checkpoint]\nselective_ac_option = 2\n", "selective_ac_option = 2 is not a string"),
    ('[compile]\ncomponents = "model"\n', "job.toml: compile.components = 'model' is not a list of strings"),
    (
        '[parallelism]\nmodule_fqns_per_model_part = ["output"]\n',
        "module_fqns_per_model_part = ['output'] is not a list of lists of strings",
    ),
    ("[validation]\nsteps = 0\n", "validation steps must be positive or -1"),
    ('[wlb]\npacking = "best"\n', "job.toml: wlb.packing = 'best' is not one of 'original', 'fixed_length'"),
    ('[wlb]\noutlier_thresholds = [1, "2"]\n', "wlb.outlier_thresholds = [1, '2'] is not a list of integers"),
    ("[wlb]\nlog_documents = 1\n", "job.toml: wlb.log_documents = 1 is not true or false"),
]

FLAGS = [
    (["--training.stpes", "3"], "Unrecognized options: --training.stpes, 3; --help lists all flags"),
    (["--training.steps", "ten"], "Error parsing --training.steps: invalid literal for int() with base 10: 'ten'"),
    (["--training.steps"], "Missing value for argument '--training.steps'"),
    (
        ["--wlb.packing", "best"],
        "invalid choice 'best' for argument '--wlb.packing'",
        "('original', 'fixed_length', 'karmarkar_karp'",
    ),
    (["--wlb.max_tokens", "100"], "wlb.max_tokens = 100 is below training.seq_len = 512"),
    (["--job.custom_config_module", "no.such.module"], "job.custom_config_module: No module named 'no'"),
]

BOX = """
╭─ Parsing error ──────────────────────────╮
│ Unrecognized options: --trainin.steps,   │
│ 3                                        │
│ ──────────────────────────────────────── │
│ For full helptext, run train.py --help   │
╰──────────────────────────────────────────╯
"""
PLAIN = """
 Parsing error
 ----------------------------------------
  Unrecognized options: --trainin.steps,
  3
  ----------------------------------------
  For full helptext, run train.py --help
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Parses a file of this text with these flags, as one rank."""
    monkeypatch.chdir(tmp_path)

    def parsed(text: str, flags: list[str], environment: dict[str, str] = ENVIRONMENT):
        (tmp_path / "job.toml").write_text(text)
        return parse(["--job.config_file", "job.toml", *flags], environment)

    return parsed


def refusal(job, *arguments) -> str:
    with pytest.raises(ConfigError) as refused:
        job(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(("text", "parts"), [(text, parts) for text, *parts in FILES])
def test_a_file_with_a_mistake_is_refused_in_one_line(job, text, parts, caplog, recwarn):
    line = refusal(job, text, [])
    assert all(part in line for part in parts), line
    assert not caplog.records and not recwarn.list


@pytest.mark.parametrize(("flags", "parts"), [(flags, parts) for flags, *parts in FLAGS])
def test_a_flag_with_a_mistake_is_refused_in_one_line(job, flags, parts, capfd):
    line = refusal(job, SOUND, flags)
    assert all(part in line for part in parts), line
    assert not capfd.readouterr().err


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[job]\ndescription = "\xe9"\n')
    for name, reason in (("none.toml", "No such file"), (".", "Is a directory"), ("latin.toml", "can't decode byte")):
        for flags in (["--job.config_file", name], [f"--job.config-file={name}"]):
            with pytest.raises(ConfigError, match=reason) as refused:
                parse(flags, ENVIRONMENT)
            assert str(refused.value).startswith(f"job.config_file = {name!r} cannot be read: ")
    assert not caplog.records


def test_an_old_tokenizer_is_refused_in_one_line(job, tmp_path):
    (tmp_path / "tokenizer.model").touch()
    line = refusal(job, SOUND, ["--model.hf_assets_path", "tokenizer.model"])
    assert line.startswith("You are using the old tokenizer.model, please redownload")


def test_a_sound_file_passes_and_flags_overrule_it(job):
    config = job(SOUND, ["--training.seq_len", "1024", "--wlb.outlier_thresholds", "256", "512"])
    assert (config.training.seq_len, config.wlb.outlier_thresholds) == (1024, [256, 512])
    assert config.model.name == "llama3_wlb"


def test_the_ranks_of_torchrun_count(job):
    assert "there are 3; change NGPU" in refusal(
        job, SOUND, ["--parallelism.context_parallel_degree", "2"], {**ENVIRONMENT, "WORLD_SIZE": "3"}
    )


def test_a_start_without_torchrun_is_refused(job):
    assert refusal(job, SOUND, [], {}) == (
        "RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not in the environment; start with ./run_train.sh, or "
        "with torchrun"
    )


def test_help_is_printed_and_is_no_refusal(job, capsys):
    with pytest.raises(SystemExit) as stop:
        job(SOUND, ["--help"])
    assert not stop.value.code
    assert "--wlb.packing" in capsys.readouterr().out


def test_sections_of_a_module_of_the_user_s_own_are_checked_as_far_as_their_types_are_known(job, tmp_path, monkeypatch):
    (tmp_path / "their_config.py").write_text(
        "from dataclasses import dataclass, field\n"
        "@dataclass\n"
        "class Theirs:\n"
        "    number: int = 1\n"
        "    mapping: dict[str, int] = field(default_factory=dict)\n"
        "@dataclass\n"
        "class JobConfig:\n"
        "    theirs: Theirs = field(default_factory=Theirs)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_config", raising=False)
    text = '[job]\ncustom_config_module = "their_config"\n' + SOUND
    assert job(text + "[theirs]\nnumber = 2\nmapping = {a = 1}\n", []).theirs.number == 2
    assert refusal(job, text + '[theirs]\nnumber = "2"\n', []) == "job.toml: theirs.number = '2' is not an integer"
    assert "theirs.nummer is not a key; did you mean theirs.number?" in refusal(
        job, text + "[theirs]\nnummer = 2\n", []
    )


@pytest.mark.parametrize("text", [BOX, PLAIN])
def test_the_message_is_found_in_both_kinds_of_tyro_s_boxes(text):
    assert _what_tyro_said(text) == "Unrecognized options: --trainin.steps, 3"


@pytest.fixture(autouse=True)
def the_logger_is_left_alone():
    filters = list(logging.getLogger().filters)
    yield
    assert logging.getLogger().filters == filters

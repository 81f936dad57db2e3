"""Every shipped TOML loads, passes the checks at its number of GPUs, and says what the paper says."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from config_cases import ENVIRONMENT

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
import torch
import torchtitan.distributed.pipeline_parallel as titan_pipeline

from titan_wlb.build import model_shape, planner_config
from titan_wlb.command_line import parse
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.models.llama3_wlb.model import WLBTransformer
from titan_wlb.planning.workload import analytic
from titan_wlb.validate import data_parallel_degree, stages_per_rank

FOLDER = Path(__file__).parents[2] / "train_configs"

# the paper's table: flavor, context window, GPUs, (TP, CP, PP, DP)
PAPER = {
    "550m_64k": ("550M", 64, 32, (2, 2, 4, 2)),
    "550m_128k": ("550M", 128, 32, (2, 4, 4, 1)),
    "7b_64k": ("7B", 64, 32, (4, 2, 4, 1)),
    "7b_128k": ("7B", 128, 64, (8, 2, 4, 1)),
    "30b_64k": ("30B", 64, 64, (8, 2, 4, 1)),
    "30b_128k": ("30B", 128, 128, (8, 4, 4, 1)),
    "70b_64k": ("70B", 64, 256, (16, 4, 4, 1)),
    "70b_128k": ("70B", 128, 256, (16, 4, 4, 1)),
}
RANKS = {"debug_cpu.toml": (1, 2, 4), "llama3_8b_128k.toml": (8, 16, 64)} | {
    f"paper/{name}.toml": (gpus,) for name, (_, _, gpus, _) in PAPER.items()
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Parses a shipped file for so many ranks; a tokenizer lies where its flag says."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "tokenizer.json").touch()
    monkeypatch.chdir(tmp_path)

    def loaded(name: str, ranks: int):
        flags = [] if name == "debug_cpu.toml" else ["--model.hf_assets_path", "assets"]
        return parse(["--job.config_file", str(FOLDER / name), *flags], {**ENVIRONMENT, "WORLD_SIZE": str(ranks)})

    return loaded


def test_no_shipped_file_is_forgotten_here():
    assert {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.toml")} == set(RANKS)


@pytest.mark.parametrize(("name", "ranks"), [(name, ranks) for name in RANKS for ranks in RANKS[name]])
def test_a_shipped_file_passes_and_can_be_planned(load, name, ranks):
    config = load(name, ranks)
    workload = analytic(model_shape(FLAVORS[config.model.flavor]), 10**14)
    planned = planner_config(config, workload)
    assert planned.workload == workload
    assert planned.context_window <= planned.max_tokens <= 2 * planned.context_window
    assert config.training.global_batch_size % data_parallel_degree(config, ranks) == 0
    assert config.checkpoint.last_save_model_only is not config.checkpoint.enable, "its last step can be gone on from"


@pytest.mark.parametrize("name", [name for name in RANKS if name != "debug_cpu.toml"])
def test_files_for_clusters_name_a_dataset_with_its_configuration_and_a_tokenizer(name):
    text = (FOLDER / name).read_text()
    assert 'dataset = "allenai/c4:en"' in text
    assert 'hf_assets_path = "./assets/hf/' in text


@pytest.mark.parametrize("name", PAPER)
def test_a_configuration_of_the_paper_has_its_model_window_and_degrees(load, name):
    flavor, window, gpus, degrees = PAPER[name]
    config = load(f"paper/{name}.toml", gpus)
    parallelism = config.parallelism
    tp, cp, pp = (
        parallelism.tensor_parallel_degree,
        parallelism.context_parallel_degree,
        parallelism.pipeline_parallel_degree,
    )
    dp = parallelism.data_parallel_replicate_degree * parallelism.data_parallel_shard_degree
    assert (tp, cp, pp, dp) == degrees
    assert tp * cp * pp * dp == gpus
    assert (config.model.flavor, config.training.seq_len) == (flavor, window * 1024)
    assert config.training.global_batch_size == pp * dp
    assert parallelism.pipeline_parallel_schedule == "Interleaved1F1B"
    assert (config.wlb.packing, config.wlb.sharding) == ("variable_length", "adaptive")
    assert config.wlb.outlier_thresholds == [window * 256, window * 512, window * 768]


@pytest.mark.parametrize("name", ["550m_64k", "7b_128k", "30b_128k", "70b_128k"])
def test_torchtitan_cuts_a_model_of_the_paper_into_stages_that_hold_every_parameter_once(load, name, monkeypatch):
    _, _, gpus, (_, _, pp, _) = PAPER[name]
    config = load(f"paper/{name}.toml", gpus)
    model_args = FLAVORS[config.model.flavor]
    with torch.device("meta"):
        model = WLBTransformer(model_args)
    whole = {key: tuple(value.shape) for key, value in model.named_parameters()}
    stages = pp * stages_per_rank(config)
    parts = titan_pipeline.generate_llm_fqn_per_model_part(stages, model_args.n_layers, 1, 1)
    assert len(parts) == stages == 8
    monkeypatch.setattr(titan_pipeline, "PipelineStage", lambda *args, **kwargs: None)

    found = []
    for rank in range(pp):
        mesh = SimpleNamespace(get_local_rank=lambda rank=rank: rank, size=lambda: pp, get_group=lambda name: None)
        schedule = config.parallelism.pipeline_parallel_schedule
        _, models = titan_pipeline.pipeline_module_split(model, mesh, schedule, torch.device("meta"), parts)
        assert len(models) == 2
        found += [(key, tuple(value.shape)) for part in models for key, value in part.named_parameters()]
    assert len(found) == len(whole) and dict(found) == whole


def test_the_demo_s_layouts_pass_for_every_number_of_ranks_that_run_train_chooses(load, monkeypatch):
    pp, cp, shard = (
        f"--parallelism.{axis}_degree" for axis in ("pipeline_parallel", "context_parallel", "data_parallel_shard")
    )
    for ranks, flags in ((2, [shard, "2"]), (4, [pp, "2", cp, "2"]), (8, [pp, "2", cp, "2", shard, "2"])):
        environment = {**ENVIRONMENT, "WORLD_SIZE": str(ranks)}
        parse(["--job.config_file", str(FOLDER / "debug_cpu.toml"), *flags], environment)

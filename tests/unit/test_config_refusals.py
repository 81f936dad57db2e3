"""Every configuration that cannot run is refused in one line: the key, its value, what is allowed, what to do."""

import os

import pytest
from config_cases import config_with

from titan_wlb.validate import ConfigError, check_config, check_device, data_parallel_degree, stages_per_rank

PP2 = {"parallelism.pipeline_parallel_degree": 2}
CHECKPOINT = {"checkpoint.enable": True}
LAYERS = [f"layers.{i}" for i in range(6)]

VALUES = [
    ({"training.seq_len": 0}, "training.seq_len = 0 is too small; use 1 or more"),
    ({"training.steps": 0}, "training.steps = 0 is too small; use 1 or more"),
    ({"training.steps": "10"}, "training.steps = '10' is not an integer"),
    ({"training.gc_freq": 0}, "training.gc_freq = 0 is too small; use 1 or more"),
    ({"training.local_batch_size": 0}, "training.local_batch_size = 0 is too small; use 1 or more, or -1"),
    ({"training.local_batch_size": 8}, "training.local_batch_size = 8 contradicts", "4 / 1 = 4; remove it"),
    ({"training.global_batch_size": -1}, "training.global_batch_size = -1 is not supported", "a multiple of"),
    ({"training.global_batch_size": 4.0}, "training.global_batch_size = 4.0 is not an integer"),
    ({"training.mixed_precision_param": "fp8"}, "training.mixed_precision_param = 'fp8'", "'bfloat16', 'float32'"),
    ({"metrics.log_freq": 0}, "metrics.log_freq = 0 is too small; use 1 or more"),
    ({"comm.train_timeout_seconds": 0}, "comm.train_timeout_seconds = 0 is too small"),
    (
        {"profiling.enable_profiling": True, "profiling.profile_freq": 3},
        "profiling.profile_freq = 3",
        "3 + 1; raise it",
    ),
    ({"optimizer.name": "SGD"}, "optimizer.name = 'SGD' is not one of 'Adam', 'AdamW'"),
    ({"optimizer.lr": -1e-3}, "optimizer.lr = -0.001 is too small; use 0 or more"),
    ({"optimizer.lr": "3e-4"}, "optimizer.lr = '3e-4' is not a number"),
    ({"optimizer.beta2": 1.0}, "optimizer.beta2 = 1.0 is not at least 0 and below 1"),
    ({"lr_scheduler.total_steps": 9}, "lr_scheduler.total_steps = 9 is below training.steps = 10", "use at least 10"),
    ({"lr_scheduler.decay_type": "exp"}, "lr_scheduler.decay_type = 'exp' is not one of 'linear', 'sqrt', 'cosine'"),
    ({"activation_checkpoint.selective_ac_option": "x"}, "selective_ac_option = 'x' is not 'op'", "a number in quotes"),
    ({"activation_checkpoint.determinism_check": "x"}, "determinism_check = 'x' is not 'default' or 'none'"),
    ({"compile.components": ["optimizer"]}, "compile.components = ['optimizer']", "there are model, loss"),
    ({"compile.enable": True, "compile.backend": "x"}, "compile.backend = 'x' is not one of", "inductor"),
    ({"wlb.packing": "best"}, "wlb.packing = 'best' is not one of 'original', 'fixed_length', 'karmarkar_karp'"),
    ({"wlb.sharding": "best"}, "wlb.sharding = 'best' is not one of 'per_sequence', 'per_document'"),
    ({"wlb.attention_backend": "x"}, "wlb.attention_backend = 'x' is not one of 'auto', 'flash_attn'"),
    ({"wlb.on_bad_document": "x"}, "wlb.on_bad_document = 'x' is not one of 'skip', 'stop'"),
    ({"wlb.log_documents": 1}, "wlb.log_documents = 1 is not true or false"),
    ({"wlb.outlier_thresholds": 128}, "wlb.outlier_thresholds = 128 is not a list of integers"),
    ({"wlb.outlier_thresholds": "best"}, "wlb.outlier_thresholds = 'best' is not a list of integers or one of 'auto'"),
    ({"wlb.balance_tolerance": 2.0}, "wlb.balance_tolerance = 2.0 is not between 0 and 1"),
    ({"wlb.balance_tolerance": "best"}, "wlb.balance_tolerance = 'best' is not a number or one of 'auto'"),
    ({"wlb.max_delay_iterations": 0.0}, "wlb.max_delay_iterations = 0.0 is no delay; use a number of steps above 0"),
    ({"wlb.max_rank_tokens": -1}, "wlb.max_rank_tokens = -1 is too small; use 0 or more"),
    ({"wlb.packing_window": 0}, "wlb.packing_window = 0 is too small; use 1 or more"),
    ({"wlb.max_age_iterations": -1}, "wlb.max_age_iterations = -1 is too small; use 0 or more"),
    ({"wlb.micro_batch_shape": "schedule"}, 'wlb.micro_batch_shape = "schedule" does nothing without a pipeline'),
    ({"wlb.profile": "/none.json"}, "wlb.profile '/none.json' cannot be read"),
    ({"wlb.profile": __file__}, "is no JSON", "tools/profile_latency.py"),
    ({"wlb.outlier_thresholds": [0, 128]}, "wlb.outlier_thresholds = [0, 128]", "use positive numbers of tokens"),
    ({"wlb.outlier_thresholds": [128, 64]}, "wlb.outlier_thresholds = [128, 64] does not ascend; write [64, 128]"),
    ({"wlb.outlier_thresholds": [64, 64]}, "wlb.outlier_thresholds = [64, 64] does not ascend; write [64]"),
    (
        {"wlb.outlier_thresholds": [513]},
        "wlb.outlier_thresholds = [513] goes beyond training.seq_len = 512",
        "lower it",
    ),
    ({"wlb.max_tokens": True}, "wlb.max_tokens = true is not an integer"),
    ({"wlb.max_tokens": -1}, "wlb.max_tokens = -1 is too small; use 0 or more"),
    (
        {"wlb.max_tokens": 511},
        "wlb.max_tokens = 511 is below training.seq_len = 512",
        "use at least 512, or 0 for 1024",
    ),
    ({"model.name": "llama3"}, "model.name = 'llama3' is not one of 'llama3_wlb'"),
    ({"model.flavor": "9B"}, "model.flavor = '9B' is not one of 'debugmodel', '8B', '550M', '7B', '30B', '70B'"),
    ({"model.hf_assets_path": "/none"}, "model.hf_assets_path = '/none' holds none of tokenizer.json", "'' for the"),
    ({"training.dataset": ""}, "training.dataset = '' is not a dataset; allowed: python_stdlib, text, jsonl"),
    ({"training.dataset": "my corpus"}, "training.dataset = 'my corpus' is not a dataset; allowed: python_stdlib"),
    ({"training.dataset": "python_stdlb"}, "training.dataset = 'python_stdlb'", "did you mean 'python_stdlib'?"),
    ({"training.dataset": "text"}, "training.dataset = 'text' needs training.dataset_path; name"),
    ({"training.dataset": "jsonl", "training.dataset_path": "/none"}, "training.dataset_path = '/none' does not exist"),
    ({"training.dataset": "a/b", "training.dataset_path": "/none"}, "training.dataset_path = '/none' does not exist"),
    (
        {"training.dataset": "text", "training.dataset_path": __file__},
        "is not a folder, which training.dataset = 'text'",
    ),
    ({"job.dump_folder": f"{__file__}/outputs"}, "job.dump_folder = ", f"{__file__} is not a folder; choose another"),
    ({"checkpoint.create_seed_checkpoint": True}, "create_seed_checkpoint = true saves nothing", "enable = true"),
    ({**CHECKPOINT, "checkpoint.interval": 0}, "checkpoint.interval = 0 is too small; use 1 or more"),
    ({**CHECKPOINT, "checkpoint.keep_latest_k": 1}, "checkpoint.keep_latest_k = 1", "use 0 (all), 2 or more"),
    ({**CHECKPOINT, "checkpoint.async_mode": "x"}, "checkpoint.async_mode = 'x' is not one of 'disabled', 'async'"),
    (
        {**CHECKPOINT, "checkpoint.last_save_in_hf": True, "checkpoint.last_save_model_only": False},
        "checkpoint.last_save_in_hf = true saves the model alone",
        "last_save_model_only = true",
    ),
    (
        {**CHECKPOINT, "checkpoint.exclude_from_loading": ["optim"]},
        "checkpoint.exclude_from_loading = ['optim'] holds 'optim'; there are model, optimizer, lr_scheduler",
    ),
    (
        {**CHECKPOINT, "checkpoint.exclude_from_loading": ["dataloader"]},
        "checkpoint.exclude_from_loading = ['dataloader']",
        "exclude 'dataloader', 'train_state' and 'lr_scheduler' together",
    ),
    ({**CHECKPOINT, "checkpoint.initial_load_path": "/none"}, "checkpoint.initial_load_path = '/none' is not a folder"),
]

LAYOUTS = [
    ({}, 0, "needs a multiple of 1 ranks, there are 0"),
    ({"parallelism.context_parallel_degree": 0}, 1, "parallelism.context_parallel_degree = 0 is too small; use 1"),
    ({"parallelism.data_parallel_shard_degree": 0}, 1, "data_parallel_shard_degree = 0 is too small", "or -1"),
    ({"parallelism.data_parallel_shard_degree": -2}, 1, "data_parallel_shard_degree = -2 is too small", "or -1"),
    ({"parallelism.context_parallel_degree": 2}, 3, "cp 2 x tp 1 x pp 1 needs a multiple of 2 ranks, there are 3"),
    ({"parallelism.tensor_parallel_degree": 2}, 1, "tp 2 x pp 1 needs a multiple of 2 ranks, there are 1", "NGPU"),
    ({"parallelism.data_parallel_shard_degree": 2}, 4, "dp_shard 2", "needs 2 ranks, there are 4; change NGPU or a"),
    ({"parallelism.data_parallel_replicate_degree": 2}, 2, "replicate_degree = 2 alone (DDP)", "shard_degree (FSDP)"),
    ({"parallelism.tensor_parallel_degree": 4}, 4, "tensor_parallel_degree = 4 does not divide the 2 K/V heads"),
    ({}, 3, "training.global_batch_size = 4 does not divide by the data-parallel degree 3; use 6"),
    ({**CHECKPOINT, "checkpoint.create_seed_checkpoint": True}, 2, "needs one rank, there are 2; start with NGPU=1"),
    ({**PP2, "parallelism.pipeline_parallel_schedule": "ZBVZeroBubble"}, 2, "= 'ZBVZeroBubble' is not one of 'GPipe'"),
    ({**PP2, "parallelism.pipeline_parallel_schedule": "1f1b"}, 2, "= '1f1b' is not one of 'GPipe', '1F1B'"),
    ({**PP2, "training.global_batch_size": 1}, 2, "= 1 gives a pipeline 1 micro-batches, 1F1B needs", "use 2 or more"),
    ({**PP2, "training.global_batch_size": 2}, 4, "= 2 gives a pipeline 1 micro-batches, 1F1B needs", "use 4 or more"),
    (
        {**PP2, "parallelism.pipeline_parallel_schedule": "Interleaved1F1B", "training.global_batch_size": 5},
        2,
        "= 5 gives a pipeline 5 micro-batches, which Interleaved1F1B cannot run in 2 equal rounds; use 6",
    ),
    ({**PP2, "parallelism.pipeline_parallel_layers_per_stage": 0}, 2, "layers_per_stage = 0 is too small; use 1"),
    ({**PP2, "parallelism.pipeline_parallel_layers_per_stage": 3}, 2, "layers_per_stage = 3 makes 3 stages", "equally"),
    (
        {**PP2, "parallelism.pipeline_parallel_layers_per_stage": 2},
        2,
        "= 2 makes 4 stages, 1F1B needs one on each of 2",
    ),
    (
        {
            **PP2,
            "parallelism.pipeline_parallel_schedule": "Interleaved1F1B",
            "parallelism.pipeline_parallel_layers_per_stage": 4,
        },
        2,
        "= 4 makes 2 stages, Interleaved1F1B needs 2 or more on each of 2 pipeline ranks",
    ),
    (
        {"parallelism.pipeline_parallel_degree": 16, "training.global_batch_size": 16},
        16,
        "pipeline_parallel_degree = 16 makes 16 stages of 1F1B, too many for the 6 layers of",
    ),
    ({**PP2, "parallelism.pipeline_parallel_first_stage_less_layers": 8}, 2, "too many for the 6 layers"),
    (
        {**PP2, "parallelism.module_fqns_per_model_part": [["tok_embeddings", *LAYERS[:3]], [*LAYERS[3:], "norm"]]},
        2,
        "parallelism.module_fqns_per_model_part does not cut the model into parts",
        "layers.0 to layers.5, norm and output once",
    ),
    (
        {**PP2, "parallelism.module_fqns_per_model_part": [["tok_embeddings", *LAYERS, "norm", "output"]]},
        2,
        "parallelism.module_fqns_per_model_part makes 1 stages, which 2 pipeline ranks cannot share equally",
    ),
    (
        {"parallelism.tensor_parallel_degree": 2, "compile.enable": True},
        2,
        "compile.components = ['model', 'loss'] holds 'loss'",
        "use ['model']",
    ),
    (
        {"parallelism.tensor_parallel_degree": 2, "parallelism.enable_async_tensor_parallel": True},
        2,
        "parallelism.enable_async_tensor_parallel = true needs compile.enable = true",
    ),
]

UNSUPPORTED = {
    "validation.enable": True,
    "comm.mode": "fake_backend",
    "fault_tolerance.enable": True,
    "memory_estimation.enable": True,
    "model.converters": ["float8"],
    "training.enable_cpu_offload": True,
    "training.dataloader.num_workers": 2,
    "training.dataloader.persistent_workers": True,
    "training.dataloader.pin_memory": True,
    "training.dataloader.prefetch_factor": 2,
    "optimizer.early_step_in_backward": True,
    "activation_checkpoint.mode": "memory_budget",
    "parallelism.context_parallel_load_balancer": "ptrr",
    "parallelism.context_parallel_rotate_method": "alltoall",
    "parallelism.pipeline_parallel_microbatch_size": 2,
    "parallelism.pipeline_parallel_schedule_csv": "schedule.csv",
    "parallelism.expert_parallel_degree": 2,
    "parallelism.expert_tensor_parallel_degree": 2,
    "parallelism.expert_parallel_comm_backend": "deepep",
    "debug.moe_force_load_balance": True,
    "checkpoint.initial_load_in_hf_quantized": True,
    "experimental.custom_args_module": "mine",
}

ON_CPU = [
    ({"profiling.enable_profiling": True}, "profiling.enable_profiling = true needs a CUDA device"),
    ({"profiling.enable_memory_snapshot": True}, "profiling.enable_memory_snapshot = true needs a CUDA device"),
    ({"training.gc_debug": True}, "training.gc_debug = true needs a CUDA device"),
    ({**CHECKPOINT, "checkpoint.async_mode": "async_with_pinned_mem"}, "async_with_pinned_mem' needs a CUDA device"),
    ({"wlb.attention_backend": "flash_attn"}, 'wlb.attention_backend = "flash_attn"', "allowed here: "),
]


def refusal(settings: dict, ranks: int = 1) -> str:
    with pytest.raises(ConfigError) as refused:
        check_config(config_with(settings), ranks)
    return str(refused.value)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("settings", "parts"), [(settings, parts) for settings, *parts in VALUES])
def test_a_value_that_cannot_be_is_refused_in_one_line(settings, parts):
    line = refusal(settings)
    assert all(part in line for part in parts), line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("settings", "ranks", "parts"), [(settings, ranks, parts) for settings, ranks, *parts in LAYOUTS]
)
def test_a_layout_that_cannot_run_is_refused_in_one_line(settings, ranks, parts):
    line = refusal(settings, ranks)
    assert all(part in line for part in parts), line
    assert "\n" not in line


@pytest.mark.parametrize(("key", "value"), UNSUPPORTED.items())
def test_an_option_of_torchtitan_that_we_cannot_honour_is_refused_in_one_line(key, value):
    line = refusal({key: value})
    shown = "true" if value is True else repr(value)
    assert line.startswith(f"{key} = {shown} is not supported: ")
    assert "; remove it" in line and "\n" not in line


@pytest.mark.parametrize(("settings", "parts"), [(settings, parts) for settings, *parts in ON_CPU])
def test_what_a_cpu_cannot_do_is_refused_in_one_line(settings, parts):
    config = config_with({**settings, "profiling.profile_freq": 10})
    check_config(config, 1)
    with pytest.raises(ConfigError) as refused:
        check_device(config, "cpu", 0)
    assert all(part in str(refused.value) for part in parts), str(refused.value)


def test_torch_s_detailed_debugging_is_refused(monkeypatch):
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "detail")
    assert refusal({}).startswith("TORCH_DISTRIBUTED_DEBUG = DETAIL is not supported")
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "INFO")
    check_config(config_with(), 1)


@pytest.mark.parametrize(
    ("key", "value"), [("checkpoint.last_save_in_hf", True), ("checkpoint.initial_load_in_hf", True)]
)
def test_hugging_face_checkpoints_need_safetensors(monkeypatch, key, value):
    monkeypatch.setattr("titan_wlb.validate.checkpoints.find_spec", lambda name: None)
    assert f"{key} = true needs the package safetensors; install it" in refusal({**CHECKPOINT, key: value})


def test_weights_in_hugging_face_s_format_have_to_be_somewhere(monkeypatch, tmp_path):
    monkeypatch.setattr("titan_wlb.validate.checkpoints.find_spec", lambda name: object())
    settings = {**CHECKPOINT, "checkpoint.initial_load_in_hf": True}
    assert "checkpoint.initial_load_in_hf = true finds no weights" in refusal(settings)
    assert "initial_load_model_only" in refusal({**settings, "checkpoint.initial_load_model_only": False})
    check_config(config_with({**settings, "checkpoint.initial_load_path": str(tmp_path)}), 1)


def saved(step: int, *, whole: bool) -> None:
    folder = f"outputs/checkpoint/step-{step}"
    os.makedirs(folder)
    with open(f"{folder}/.metadata", "wb") as file:
        file.write(b"...output.weight..." + b"train_state.step" * whole)


def test_a_step_that_was_not_saved_cannot_be_loaded():
    saved(5, whole=True)
    assert "checkpoint.load_step = 7 is not in outputs/checkpoint: there are 5" in refusal(
        {**CHECKPOINT, "checkpoint.load_step": 7}
    )
    check_config(config_with({**CHECKPOINT, "checkpoint.load_step": 5}), 1)


def test_a_run_does_not_go_on_from_a_model_alone_but_a_seed_is_loaded():
    saved(0, whole=False)
    check_config(config_with(CHECKPOINT), 1)
    saved(5, whole=True)
    saved(10, whole=False)
    line = refusal(CHECKPOINT)
    assert "step-10 holds the model alone" in line and "use checkpoint.load_step = 5" in line
    check_config(config_with({**CHECKPOINT, "checkpoint.load_step": 5}), 1)
    without = ["optimizer", "lr_scheduler", "dataloader", "train_state"]
    check_config(config_with({**CHECKPOINT, "checkpoint.exclude_from_loading": without}), 1)


LEGITIMATE = [
    ({}, 1),
    ({}, 4),
    ({"training.dataset": "allenai/c4:en"}, 1),
    ({"training.dataset": "wikitext"}, 1),
    ({"training.dataset": "c4"}, 1),
    ({"training.dataset": os.path.dirname(__file__)}, 1),
    ({"training.dataset": "parquet", "training.dataset_path": os.path.dirname(__file__)}, 1),
    ({"training.dataset_path": ""}, 1),
    ({"training.local_batch_size": 2}, 2),
    ({"training.max_norm": 1}, 1),
    ({"optimizer.lr": 1}, 1),
    ({"lr_scheduler.warmup_steps": 10**6}, 1),
    ({"debug.seed": -1}, 1),
    ({"wlb.packing": "original", "wlb.outlier_thresholds": [512], "wlb.max_tokens": 512}, 1),
    ({"parallelism.data_parallel_replicate_degree": 2, "parallelism.context_parallel_degree": 2}, 4),
    ({"parallelism.pipeline_parallel_schedule": "ZBVZeroBubble"}, 1),
    ({**PP2, "parallelism.pipeline_parallel_schedule": "GPipe", "training.global_batch_size": 1}, 2),
    ({**PP2, "parallelism.pipeline_parallel_schedule": "Interleaved1F1B", "training.global_batch_size": 1}, 2),
    ({**PP2, "parallelism.pipeline_parallel_schedule": "Interleaved1F1B", "training.global_batch_size": 3}, 2),
    ({**PP2, "parallelism.module_fqns_per_model_part": [["tok_embeddings", *LAYERS], ["norm", "output"]]}, 2),
    ({"checkpoint.load_step": 7}, 1),
    ({"checkpoint.enable": True, "checkpoint.create_seed_checkpoint": True}, 1),
    ({"compile.enable": True, "compile.backend": "aot_eager"}, 1),
    ({"activation_checkpoint.mode": "full", "activation_checkpoint.selective_ac_option": "x"}, 1),
]


@pytest.mark.parametrize(("settings", "ranks"), LEGITIMATE)
def test_what_can_run_passes(settings, ranks):
    check_config(config_with(settings), ranks)


def test_leftover_ranks_are_data_parallel():
    assert data_parallel_degree(config_with(), 6) == 6
    assert data_parallel_degree(config_with(PP2), 6) == 3
    hybrid = {"parallelism.data_parallel_replicate_degree": 2, "parallelism.context_parallel_degree": 2}
    assert data_parallel_degree(config_with(hybrid), 12) == 6


def test_stages_of_a_rank_are_counted_as_torchtitan_does():
    interleaved = {**PP2, "parallelism.pipeline_parallel_schedule": "Interleaved1F1B"}
    assert stages_per_rank(config_with(PP2)) == 1
    assert stages_per_rank(config_with(interleaved)) == 2
    assert stages_per_rank(config_with({**interleaved, "parallelism.pipeline_parallel_layers_per_stage": 1})) == 4
    parts = [["tok_embeddings"], LAYERS, ["norm"], ["output"]]
    assert stages_per_rank(config_with({**interleaved, "parallelism.module_fqns_per_model_part": parts})) == 2

"""tools/profile_latency.py: what it measures, how it fits, what it writes, and how it refuses."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
import torch

from titan_wlb.build import model_shape
from titan_wlb.compat.config import CheckedConfigManager
from titan_wlb.job_config import JobConfig
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.planning.kernel_file import read_kernel_profile
from titan_wlb.planning.profile import Latency, Measurement
from titan_wlb.planning.profile_file import read_profile
from titan_wlb.profiling import kernel, measure
from titan_wlb.profiling.fit import fit, non_negative
from titan_wlb.profiling.grid import attention_grid, check_grid, token_grid
from titan_wlb.profiling.measure import attention_runs, checkpoint_period
from titan_wlb.profiling.site import Site
from titan_wlb.profiling.stopwatch import CpuStopwatch, CudaStopwatch
from titan_wlb.validate import check_toml

ROOT = Path(__file__).parents[2]
CONFIG = """
[model]
name = "llama3_wlb"
flavor = "debugmodel"

[training]
seq_len = 128
global_batch_size = 2
mixed_precision_param = "float32"

[activation_checkpoint]
mode = "none"
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("profile_latency", ROOT / "tools" / "profile_latency.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool, monkeypatch, config: Path, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["profile_latency.py", str(config), *flags])
    tool.main()


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def test_a_profile_is_measured_written_and_read_as_costs_of_the_training(tool, config, tmp_path, monkeypatch, capsys):
    output = tmp_path / "profile.json"
    run(tool, monkeypatch, config, "--repeats", "1", "--output", str(output))
    profile = read_profile(output)
    parts = {line.part for line in profile.measured}
    assert parts == {"attention", "layer", "head", "model"}
    assert (profile.tp, profile.cp, profile.settings["kernel"]) == (1, 1, "cpu")
    assert {"torch", "torchtitan", "python"} <= profile.versions.keys()
    workload = profile.workload(model_shape(FLAVORS["debugmodel"]))
    assert 0 < workload.cost(1) < workload.cost(128)
    of_kernel = read_kernel_profile(output)
    assert of_kernel is not None and (of_kernel.origin, of_kernel.exchange_origin) == ("measured", "assumed")
    assert (of_kernel.heads, of_kernel.kv_heads, of_kernel.head_dim, of_kernel.kernel) == (4, 2, 16, "cpu")
    assert (of_kernel.queries[-1], of_kernel.keys[-1]) == (128, 64)  # the window has 128
    said = capsys.readouterr().out
    assert (
        "relative error of the fit" in said
        and "GFLOP/s by query rows" in said
        and "mixed micro-batches, not fitted" in said
    )
    assert all(f"  {name}" in said for name in ("tokens alone", "analytic", "this profile"))
    assert f"train with --wlb.profile {output}" in said


def test_the_kernel_alone_is_measured_for_the_heads_that_are_asked_for(tool, config, tmp_path, monkeypatch, capsys):
    output = tmp_path / "kernel.json"
    run(tool, monkeypatch, config, "--kernel-of", "2x1x8", "--repeats", "1", "--longest", "64", "--output", str(output))
    profile = read_kernel_profile(output)
    assert profile is not None and (profile.heads, profile.kv_heads, profile.head_dim) == (2, 1, 8)
    times = profile.kernel_ns("backward", [0, 0], [16, 64], heads=2, head_dim=8)
    assert 0 < times[0] < times[1]
    said = capsys.readouterr().out
    assert f"wrote {output}" in said and "relative error" not in said


@pytest.mark.parametrize("heads", ["4x3x8", "4x2", "0x0x8", "axbxc"])
def test_heads_that_are_none_are_refused(tool, config, monkeypatch, capsys, heads) -> None:
    with pytest.raises(SystemExit):
        run(tool, monkeypatch, config, "--kernel-of", heads)
    assert f"--kernel-of {heads} must be HxKxD" in capsys.readouterr().err


def test_a_point_of_the_kernel_on_a_gpu_fills_it_within_its_memory(monkeypatch) -> None:
    gpu = SimpleNamespace(multi_processor_count=132, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    site = Site(torch.device("cuda"), torch.bfloat16, "flash_attn")
    heads = kernel.Heads(32, 8, 128)
    assert kernel._number(site, heads, 128, 0) == 17  # x 32 heads = 544 tiles, four waves of 132
    assert kernel._number(site, heads, 8192, 131_072) == 1
    assert kernel._number(site, kernel.Heads(4, 4, 128), 128, 131_072) == 0  # 132 of them would take 35 GB


def test_the_deepest_tile_alone_is_told_from_a_heads_square_on_a_gpu(monkeypatch) -> None:
    gpu = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    site = Site(torch.device("cuda"), torch.bfloat16, "flash_attn")

    def laps(site, heads, chunks, stopwatch, often):
        assert (heads.query, heads.kv, chunks.number) == (1, 1, 1)
        return [[1_001_000, 2_002_000] if chunks.rows > 1 else [1_000, 2_000]] * often

    monkeypatch.setattr(kernel, "_laps", laps)
    alone, launch = kernel._alone(site, CudaStopwatch(), kernel.Heads(32, 8, 128), 131_072, repeats=2)
    rows = 66 * 128
    assert launch == {"forward": 1_000, "backward": 2_000}
    assert alone == {"forward": 4 * 128 * rows * 128 * 1000, "backward": 10 * 128 * rows * 128 * 500}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--model.flavor", "12B"), "profile_latency: model.flavor = '12B' is not one of"),
        (("--longest", "256"), "profile_latency: --longest 256 must be at most training.seq_len 128"),
        (
            ("--wlb.attention_backend", "flash_attn"),
            'profile_latency: wlb.attention_backend = "flash_attn" is not for cpu',
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(tool, config, monkeypatch, flags, line) -> None:
    with pytest.raises(SystemExit) as refusal:
        run(tool, monkeypatch, config, *flags)
    assert str(refusal.value).startswith(line) and "\n" not in str(refusal.value)


def test_ranks_that_are_not_those_of_the_layout_are_refused_in_one_line(tool, config, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit, match=r"torchrun started 3 ranks, .* needs 4"):
        run(
            tool,
            monkeypatch,
            config,
            "--parallelism.tensor_parallel_degree",
            "2",
            "--parallelism.context_parallel_degree",
            "2",
        )


def test_a_micro_batch_of_the_drawn_fit_costs_44_and_44() -> None:
    attention, rest = Latency(10, 5, 1, 0.5), Latency(20, 0, 3, 0)
    assert attention.of([4, 4]) == rest.of([4, 4]) == 44


def test_the_fit_finds_the_coefficients_that_made_the_measurements() -> None:
    attention, rest, head = Latency(900, 70, 3, 0.25), Latency(4000, 0, 11, 0), Latency(50, 0, 6, 0)
    by_tokens = token_grid(1024, 2048)
    measured = [
        line
        for documents in sorted({*attention_grid(1024), *by_tokens})
        for line in made("attention", documents, attention, runs=2.0)
    ]
    for documents in by_tokens:
        measured += made("layer", documents, attention + rest, layers=3)
        measured += made("head", documents, head, layers=0)
    for found, true in zip(fit(measured, 2.0), (attention, rest, head), strict=True):
        lengths = [7, 300, 1024]
        assert found.of(lengths) == pytest.approx(true.of(lengths), rel=0.01)
        assert found.per_token_squared == pytest.approx(true.per_token_squared, rel=0.01, abs=1e-6)


def made(part: str, documents: tuple, latency: Latency, *, runs: float = 1.0, layers: int = 1) -> list[Measurement]:
    line = Measurement(part, layers, documents, 0, 0)
    whole = latency.of(line.lengths) * max(layers, 1)
    forward = whole / 4
    return [replace(line, forward=round(forward), backward=round(whole - runs * forward))]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_the_fit_is_the_optimum_among_coefficients_that_are_not_negative(seed: int, columns: int) -> None:
    generator = np.random.default_rng(seed)
    matrix, values = generator.random((8, columns)), generator.normal(size=8)
    solution = non_negative(matrix, values)
    slope = matrix.T @ (matrix @ solution - values)
    assert (solution >= 0).all()
    assert (slope >= -1e-9).all() and abs(slope @ solution) < 1e-9, "the conditions of Karush, Kuhn and Tucker"


def test_the_drawn_micro_batches_are_measured() -> None:
    groups = {documents[0] for documents in attention_grid(4096)}
    assert {(1, 1024), (1, 2048), (1, 3072), (1, 4096)} <= groups
    assert {(256, 16), (64, 64), (16, 256), (4, 1024), (2, 2048)} <= groups
    assert {(100, 20), (400, 20)} <= groups
    assert [documents[0] for documents in token_grid(4096, 8192)] == [(8, 256), (12, 256), (16, 256), (24, 256)]


@pytest.mark.parametrize("window", [64, 100, 4096, 131_072])
def test_no_measured_document_is_longer_than_the_window(window: int) -> None:
    for documents in (*attention_grid(window), *token_grid(window, 2 * window), *check_grid(window, 2 * window)):
        assert documents and all(number >= 1 and 1 <= length <= window for number, length in documents)


def test_a_device_without_room_for_a_window_is_measured_at_sizes_that_it_has_room_for() -> None:
    totals = [number * length for ((number, length),) in token_grid(131_072, 13_000)]
    assert len(totals) == 4 and max(totals) <= 13_000 and max(totals) >= 2.5 * min(totals)


def test_micro_batches_that_do_not_fit_into_memory_are_left_out(config, monkeypatch) -> None:
    flags = ["--job.config_file", str(config)]
    parsed = CheckedConfigManager(JobConfig, check_toml).parse_args(flags)
    site = Site(torch.device("cpu"), torch.float32, "cpu")
    args = replace(FLAVORS["debugmodel"], max_seq_len=128)
    laps = CpuStopwatch.laps

    def out_of_memory(part: str, least: int):
        def subject(*arguments):
            def of(documents):
                if sum(number * length for number, length in documents) > least:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return lambda mark: [mark(), mark(), mark()]

            return of

        monkeypatch.setattr(measure, f"{part}_subject", subject)

    monkeypatch.setattr(CpuStopwatch, "laps", lambda self, run: [10, 20] if laps(self, run) else [])
    for part in ("attention", "layer", "model"):
        out_of_memory(part, 128)
    profile = measure.measure_profile(parsed, args, site, longest=128, repeats=1, progress=False)
    assert {line.part for line in profile.measured} == {"attention", "layer", "head", "model"}
    assert max(sum(line.lengths) for line in profile.measured) <= 128
    out_of_memory("layer", 0)
    with pytest.raises(ValueError, match=r"no micro-batch of part layer fits into the memory of .*; lower --longest"):
        measure.measure_profile(parsed, args, site, longest=128, repeats=1, progress=False)


def test_cuda_times_come_from_events_read_after_the_device_has_finished(monkeypatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")
            self.moment = len(calls)

        def elapsed_time(self, stop: "Event") -> float:
            assert calls[-1] == "synchronize"
            return 1.5 * (stop.moment - self.moment)  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    assert CudaStopwatch().laps(lambda mark: [mark(), mark(), calls.append("work"), mark()]) == [1_500_000, 3_000_000]
    assert calls == ["synchronize", "record", "record", "work", "record", "synchronize"]


def test_documents_of_a_test_fill_what_fits() -> None:
    totals = [sum(number * length for number, length in documents) for documents in check_grid(131_072, 13_000)]
    assert max(totals) == 13_000 and min(totals) > 6_000


@pytest.mark.parametrize(
    ("mode", "option", "runs", "period"),
    [("none", "op", 1.0, 1), ("full", "op", 2.0, 1), ("selective", "op", 1.0, 1), ("selective", "2", 1.5, 2)],
)
def test_attention_runs_as_often_as_checkpointing_makes_it(mode: str, option: str, runs: float, period: int) -> None:
    config = JobConfig()
    config.activation_checkpoint.mode, config.activation_checkpoint.selective_ac_option = mode, option
    assert (attention_runs(config), checkpoint_period(config)) == (runs, period)

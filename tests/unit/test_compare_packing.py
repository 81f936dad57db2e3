import importlib.util
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from titan_wlb.planning.packing.specs import workload_of_text
from titan_wlb.planning.workload import Workload

TOOL = Path(__file__).parents[2] / "tools" / "compare_packing.py"
WINDOW, N, STEPS, WARMUP = 2048, 4, 30, 10
SPECS = [
    "original",
    "fixed_length,packing_window=4",
    "karmarkar_karp",
    "variable_length,outlier_thresholds=512:1024,max_age_iterations=6",
    "variable_length,max_tokens=2500",
]


def load():
    spec = importlib.util.spec_from_file_location("compare_packing", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lengths():
    """Skewed, with documents longer than the window among them."""
    drawn = np.random.default_rng(5).lognormal(5, 1.3, size=1600).astype(int) + 1
    return [min(length, 3000) for length in drawn.tolist()]


@pytest.fixture(scope="module")
def flags(tmp_path_factory, lengths):
    path = tmp_path_factory.mktemp("lengths") / "lengths.txt"
    path.write_text("\n".join(map(str, lengths)) + "\n")
    return {
        "--lengths": path,
        "--context-window": WINDOW,
        "--micro-batches": N,
        "--global-batches": STEPS,
        "--warmup": WARMUP,
        "--cost": "0,1,1/512",
        "--dp": 2,
    }


def call(flags, *more, specs=SPECS):
    load().main([*(str(part) for flag in flags.items() for part in flag), *map(str, more), "--packers", *specs])


@pytest.fixture(scope="module")
def compared(tmp_path_factory, flags):
    """(measures, plans)."""
    folder = tmp_path_factory.mktemp("out")
    call(flags, "--json", folder / "out.json", "--plans", folder / "plans.jsonl")
    plans = [json.loads(line) for line in (folder / "plans.jsonl").read_text().splitlines()]
    return json.loads((folder / "out.json").read_text()), plans


def as_segment(entry, lengths):
    return (entry, 0, lengths[entry]) if isinstance(entry, int) else tuple(entry)


def scored_again(lines, lengths):
    """The measures from the lines of a packer and nothing else."""
    arrival, drawn = {}, 0
    trained = defaultdict(int)
    degrees, slowest, mean, waiting_after, tokens_of_steps, delays, oldest, largest = [], 0.0, 0.0, [], [], [], 0, 0
    for line in lines:
        for id in range(drawn, line["drawn"]):
            arrival[id] = line["step"]
        drawn = line["drawn"]
        works, tokens = [], 0
        for entries in line["micro_batches"]:
            segments = [as_segment(entry, lengths) for entry in entries]
            held = sum(stop - start for _, start, stop in segments)
            works.append(sum((stop - start) + (stop - start) ** 2 / 512 for _, start, stop in segments))
            largest, tokens = max(largest, held), tokens + held
            for id, start, stop in segments:
                trained[id] += stop - start
                if line["step"] > WARMUP:
                    delays.append(((line["step"] - arrival[id]), stop - start))
                    oldest = max(oldest, line["step"] - arrival[id])
        waiting = [id for id in arrival if trained[id] < lengths[id]]
        if line["step"] > WARMUP:
            degrees.append(len(works) * max(works) / sum(works))
            slowest, mean = slowest + max(works), mean + sum(works) / len(works)
            waiting_after.append(sum(lengths[id] - trained[id] for id in waiting))
            tokens_of_steps.append(tokens)
            oldest = max([oldest, *(line["step"] - arrival[id] for id in waiting)])
    assert all(trained[id] <= lengths[id] for id in trained)
    return {
        "imbalance_degree_mean": np.mean(degrees),
        "imbalance_degree_p95": sorted(degrees)[-(-len(degrees) * 95 // 100) - 1],
        "imbalance_time_weighted": slowest / mean,
        "delay_iterations_mean": np.mean(waiting_after) / np.mean(tokens_of_steps),
        "delay_trained_mean": sum(age * tokens for age, tokens in delays) / sum(tokens for _, tokens in delays),
        "oldest_waiting": oldest,
        "documents_in": drawn,
        "documents_waiting": len(waiting),
        "documents_trained": drawn - len(waiting),
        "max_tokens_over_window": largest / WINDOW,
        "tokens_per_step_cv": np.std(tokens_of_steps) / np.mean(tokens_of_steps),
        "steps_scored": STEPS - WARMUP,
    }


@pytest.mark.parametrize("place", range(len(SPECS)), ids=SPECS)
def test_the_plans_give_the_same_measures_again(compared, lengths, place):
    measures, plans = compared
    assert [result["name"] for result in measures] == SPECS
    lines = [line for line in plans if line["packer"] == SPECS[place]]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for key, expected in scored_again(lines, lengths).items():
        assert measures[place][key] == pytest.approx(expected, rel=1e-9), key
    assert measures[place]["plan_ms_mean"] > 0


def test_every_step_deals_equally_many_micro_batches_to_the_ranks(compared):
    for line in compared[1]:
        assert sorted(line["dealt"]) == [0, 0, 1, 1]
        assert len(line["micro_batches"]) == N


def test_original_is_balanced_against_itself_and_against_whole_documents(compared):
    original = compared[0][0]
    assert original["time_over_whole_documents"] < original["imbalance_time_weighted"], "cutting removes attention"
    for result in compared[0][2:]:
        assert result["time_over_whole_documents"] == pytest.approx(result["imbalance_time_weighted"], rel=0.1)


def test_a_json_array_is_the_same_list(compared, flags, lengths, tmp_path):
    (tmp_path / "lengths.json").write_text(json.dumps(lengths))
    call({**flags, "--lengths": tmp_path / "lengths.json"}, "--json", tmp_path / "out.json", specs=SPECS[2:3])
    (again,) = json.loads((tmp_path / "out.json").read_text())
    timings = {key: again[key] for key in again if key.startswith("plan_ms")}
    assert again == {**compared[0][2], **timings}


def test_the_table_says_that_original_cuts_documents(flags, capsys):
    call(flags, specs=["original", "variable_length"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| packer") and lines[2].startswith("| original") and len(lines) == 5
    assert lines[4].startswith("original cuts documents, which removes attention work")


def test_a_list_that_ends_early_is_trained_whole(flags, tmp_path):
    (tmp_path / "short.txt").write_text("1500\n" * 40)
    more = ["--json", tmp_path / "out.json", "--plans", tmp_path / "plans.jsonl"]
    call({**flags, "--lengths": tmp_path / "short.txt", "--warmup": 2}, *more, specs=["variable_length"])
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert (result["documents_in"], result["documents_trained"], result["documents_waiting"]) == (40, 40, 0)
    assert len((tmp_path / "plans.jsonl").read_text().splitlines()) < STEPS


def test_step_times_of_a_schedule_are_those_of_the_plans(flags, lengths, tmp_path):
    more = ["--pp", 2, "--schedule", "1F1B", "--json", tmp_path / "out.json", "--plans", tmp_path / "plans.jsonl"]
    call(flags, *more, specs=["original", "karmarkar_karp"])
    plans = [json.loads(line) for line in (tmp_path / "plans.jsonl").read_text().splitlines()]
    for result in json.loads((tmp_path / "out.json").read_text()):
        times = []
        for line in plans:
            line["as segments"] = [[as_segment(entry, lengths) for entry in held] for held in line["micro_batches"]]
            if line["packer"] == result["name"] and line["step"] > WARMUP:
                works = [
                    sum((stop - start) + (stop - start) ** 2 / 512 for _, start, stop in micro_batch)
                    for micro_batch in line["as segments"]
                ]
                ranks = [[w for w, of in zip(works, line["dealt"], strict=True) if of == rank] for rank in range(2)]
                # Two micro-batches on two ranks: the first forward and the last backward are not hidden.
                mean = sum(works) / 4
                times.append(
                    max(one_forward_one_backward(*run) for run in ranks) / one_forward_one_backward(mean, mean)
                )
        assert result["step_time_over_balanced_mean"] == pytest.approx(np.mean(times), rel=1e-6)


def test_the_shape_of_a_schedule_is_quicker_than_balance_although_its_imbalance_degree_is_larger(flags, tmp_path):
    more = ["--pp", 4, "--schedule", "1F1B", "--json", tmp_path / "out.json"]
    specs = ["variable_length", "variable_length,micro_batch_shape=schedule"]
    call({**flags, "--dp": 1}, *more, specs=specs)
    equal, shaped = json.loads((tmp_path / "out.json").read_text())
    assert equal["imbalance_degree_mean"] < shaped["imbalance_degree_mean"]
    assert shaped["step_time_over_balanced_mean"] < 0.965 < equal["step_time_over_balanced_mean"]


def one_forward_one_backward(first, second):
    """Step time of two ranks and two micro-batches, by hand: works cut in 1 forward and 2 backward on each rank."""
    a, b = first / 6, second / 6
    forward_a, forward_b = [a, 2 * a], [a + b, 0.0]
    backward_a_1 = forward_a[1] + 2 * a
    forward_b_1 = max(forward_b[0], backward_a_1) + b
    backward_b_1 = forward_b_1 + 2 * b
    backward_a_0 = max(backward_a_1, forward_b[0]) + 2 * a
    return max(backward_b_1, backward_a_0) + 2 * b


def test_thresholds_are_tuned_on_the_warm_up_alone(flags, lengths, tmp_path, monkeypatch):
    monkeypatch.setattr("titan_wlb.planning.packing.trials.STEPS_SCORED", (5, 10))
    spec = "variable_length,outlier_thresholds=auto,max_delay_iterations=0.6"
    tuned = []
    for name, change in (("same", lambda length: length), ("others", lambda length: 1 + length // 2)):
        ends = np.cumsum(lengths)
        scored = int(np.searchsorted(ends, WARMUP * N * WINDOW)) + 1
        changed = [*lengths[:scored], *map(change, lengths[scored:])]
        (tmp_path / f"{name}.json").write_text(json.dumps(changed))
        call({**flags, "--lengths": tmp_path / f"{name}.json"}, "--json", tmp_path / "out.json", specs=[spec])
        tuned.append(json.loads((tmp_path / "out.json").read_text())[0])
    assert tuned[0]["name"] == spec
    assert tuned[0]["config"]["outlier_thresholds"] == tuned[1]["config"]["outlier_thresholds"] != []
    assert tuned[0]["imbalance_degree_mean"] != tuned[1]["imbalance_degree_mean"]


def test_a_picture_is_drawn(flags, tmp_path):
    pytest.importorskip("matplotlib")
    call(flags, "--plot", tmp_path / "picture.png", specs=["original", "karmarkar_karp"])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "specs", "message"),
    [
        ({}, ["greedy"], "'greedy': no packer is called 'greedy'; choose one of original, "),
        ({}, ["original,window=8"], "'window' is no key that packing looks at; choose of packing_window, "),
        ({}, ["fixed_length,packing_window=x"], "packing_window 'x' must be a whole number of global batches"),
        ({}, ["fixed_length,packing_window=0"], "wlb.packing_window 0 must be at least 1"),
        ({}, ["original,packing_window=8"], "wlb.packing_window 8 does nothing with wlb.packing 'original'"),
        ({}, ["variable_length,outlier_thresholds=9:5"], "wlb.outlier_thresholds [9, 5] must rise"),
        ({}, ["variable_length,max_tokens=5"], "wlb.max_tokens 5 must be at least"),
        ({"--context-window": 0}, ["original"], "--context-window 0 must be at least 1"),
        ({"--pp": 0}, ["original"], "--pp 0 must be at least 1"),
        ({"--dp": "two"}, ["original"], "argument --dp: invalid int value: 'two'"),
        ({"--json": "/nowhere/out.json"}, ["original"], "/nowhere/out.json"),
        ({"--dp": 3}, ["original"], "--micro-batches 4 must be a multiple of --dp 3"),
        ({"--warmup": 30}, ["original"], "--warmup 30 must be below --global-batches 30"),
        ({"--cost": "1,2"}, ["original"], "--cost '1,2' must be A,B,C"),
        ({"--cost": "0,0,0"}, ["original"], "--cost '0,0,0' must be A,B,C"),
        ({"--cost": "0,1,1/0"}, ["original"], "--cost '0,1,1/0' must be A,B,C"),
        ({"--lengths": "/nowhere/lengths.txt"}, ["original"], "/nowhere/lengths.txt cannot be read: No such file"),
        ({"--lengths": TOOL}, ["original"], "must hold lengths in tokens, one a line or as a JSON array"),
        ({}, ["variable_length,max_delay_iterations=x"], "max_delay_iterations 'x' must be a number of steps"),
        ({}, ["original,max_delay_iterations=1"], "what is tuned to max_delay_iterations is variable_length's"),
        (
            {"--warmup": 0},
            ["variable_length,outlier_thresholds=auto"],
            "tuning looks at the global batches of --warmup",
        ),
        ({}, ["variable_length,micro_batch_shape=schedule"], "micro_batch_shape=schedule needs --schedule and --pp"),
        (
            {},
            ["variable_length,micro_batch_shape=round"],
            "wlb.micro_batch_shape 'round' must be one of equal, schedule",
        ),
        ({"--pp": 4, "--schedule": "1F1B"}, ["original"], "1F1B"),
        ({"--pp": 2, "--schedule": "spiral"}, ["original"], "spiral"),
        ({"--pp": 2}, ["original"], "--pp and --schedule are given together or not at all"),
    ],
)
def test_what_is_not_valid_is_refused_in_one_line(flags, change, specs, message):
    with pytest.raises(SystemExit) as error:
        call({**flags, **change}, specs=specs)
    assert str(error.value.code).startswith("compare_packing: ") and message in str(error.value.code)
    assert "\n" not in str(error.value.code)


def test_a_length_of_zero_is_refused(flags, tmp_path):
    for text, message in (("3\n0\n", "document 1 of the index has no token"), ("[]", "at least one")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(SystemExit, match=message):
            call({**flags, "--lengths": tmp_path / "bad.txt"}, specs=["original"])


def test_too_few_documents_for_the_warm_up_are_refused(flags, tmp_path):
    (tmp_path / "short.txt").write_text("1500\n" * 9)
    with pytest.raises(SystemExit, match="leaves none to score"):
        call({**flags, "--lengths": tmp_path / "short.txt"}, specs=["original"])


def test_it_runs_as_a_command_without_torch_and_fails_with_a_line_on_stderr(flags):
    command = [
        sys.executable,
        str(TOOL),
        *(str(part) for flag in flags.items() for part in flag),
        "--packers",
        "greedy",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and not run.stdout
    script = f"import runpy, sys; runpy.run_path({str(TOOL)!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


def test_costs_are_exact_whatever_their_unit():
    whole, tiny = workload_of_text("0,1,1/512", WINDOW), workload_of_text("0,1e-9,1.953125e-12", WINDOW)
    for length in (7, 500, WINDOW):
        assert whole.cost(length) / whole.cost(WINDOW) == pytest.approx(tiny.cost(length) / tiny.cost(WINDOW), rel=1e-9)
        assert whole.cost(length) == pytest.approx((length + length**2 / 512) * 1e8, rel=1e-9)
    assert isinstance(whole, Workload)

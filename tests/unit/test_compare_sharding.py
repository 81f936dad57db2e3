import importlib.util
import json
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.sharding.compare import sequences
from titan_wlb.planning.tiles import Tile, padded_work

TOOL = Path(__file__).parents[2] / "tools" / "compare_sharding.py"
WINDOW, CP, SEQUENCES = 20_000, 4, 12
SPECS = ["per_sequence", "per_document", "hybrid", "hybrid,tolerance=0.4", "adaptive"]
KEYS = {
    "name", "makespan_mean", "makespan_p95", "makespan_over_bound_mean", "makespan_over_bound_p95", "token_spread_max",
    "kv_needed_mean", "kv_busiest_sender_mean", "kv_gathered_mean", "plan_ms_mean", "segments_per_rank_mean",
}  # fmt: skip


def load():
    spec = importlib.util.spec_from_file_location("compare_sharding", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    path = tmp_path_factory.mktemp("lengths") / "lengths.txt"
    lengths = np.random.default_rng(5).lognormal(6.5, 1.3, size=600).astype(int) + 1
    path.write_text("\n".join(map(str, lengths.tolist())) + "\n")
    return {"--lengths": path, "--context-window": WINDOW, "--cp": CP, "--sequences": SEQUENCES}


def call(flags, *more, specs=SPECS):
    load().main([*(str(part) for flag in flags.items() for part in flag), *map(str, more), "--strategies", *specs])


@pytest.fixture(scope="module")
def compared(tmp_path_factory, flags):
    """(measures, plans)."""
    folder = tmp_path_factory.mktemp("out")
    call(flags, "--json", folder / "out.json", "--plans", folder / "plans.jsonl")
    plans = [json.loads(line) for line in (folder / "plans.jsonl").read_text().splitlines()]
    return json.loads((folder / "out.json").read_text()), plans


def scored_again(lines, tile):
    """The measures from the lines of a strategy and nothing else."""
    makespans, over, spread, needed, busiest, gathered, segments = [], [], [], [], [], [], []
    for line in lines:
        lengths, ranks = line["lengths"], line["ranks"]
        cp, everything = len(ranks), (len(ranks) - 1) * sum(lengths)
        exact = sum(length * (length + 1) / 2 for length in lengths)
        work = max(sum(int(padded_work(start, stop, tile)) for _, start, stop in rank) for rank in ranks)
        makespans.append(work * cp / exact)
        over.append(work * cp / sum(int(padded_work(0, length, tile)) for length in lengths))
        tokens = [sum(stop - start for _, start, stop in rank) for rank in ranks]
        spread.append(max(tokens) - min(tokens))
        owners = [np.full(length, -1) for length in lengths]
        for number, rank in enumerate(ranks):
            for document, start, stop in rank:
                assert (owners[document][start:stop] == -1).all(), "a token on two ranks"
                owners[document][start:stop] = number
        assert all((owner >= 0).all() for owner in owners), "a token on no rank"
        sent = np.zeros(cp)
        for number, rank in enumerate(ranks):
            for document in {document for document, _, _ in rank}:
                deepest = max(stop for of, _, stop in rank if of == document)
                senders = owners[document][:deepest]
                sent += np.bincount(senders[senders != number], minlength=cp)
        needed.append(sent.sum() / everything)
        busiest.append(sent.max() * cp / everything)
        cut = sum(length for length, owner in zip(lengths, owners, strict=True) if len(set(owner.tolist())) > 1)
        gathered.append(cut / sum(lengths))
        segments.append(sum(map(len, ranks)) / cp)
    return {
        "makespan_mean": np.mean(makespans),
        "makespan_p95": sorted(makespans)[-(-len(makespans) * 95 // 100) - 1],
        "makespan_over_bound_mean": np.mean(over),
        "makespan_over_bound_p95": sorted(over)[-(-len(over) * 95 // 100) - 1],
        "token_spread_max": max(spread),
        "kv_needed_mean": np.mean(needed),
        "kv_busiest_sender_mean": np.mean(busiest),
        "kv_gathered_mean": np.mean(gathered),
        "segments_per_rank_mean": np.mean(segments),
    }


def test_the_measures_are_those_of_the_plans(compared):
    results, plans = compared
    assert [result["name"] for result in results] == SPECS
    for result in results:
        assert result.keys() >= KEYS
        lines = [line for line in plans if line["strategy"] == result["name"]]
        assert [line["sequence"] for line in lines] == list(range(SEQUENCES))
        again = scored_again(lines, Tile())
        assert {key: result[key] for key in again} == pytest.approx(again)


def test_hybrid_is_what_is_promised_of_it(compared):
    per_sequence, per_document, hybrid, tolerant, adaptive = compared[0]
    assert hybrid["makespan_mean"] < per_document["makespan_mean"] < per_sequence["makespan_mean"]
    assert hybrid["makespan_over_bound_mean"] <= 1.003 and hybrid["token_spread_max"] <= 1
    assert tolerant["kv_needed_mean"] < hybrid["kv_needed_mean"] < per_document["kv_needed_mean"]
    assert adaptive["token_spread_max"] <= 1


def test_every_strategy_gets_the_same_sequences(compared, flags):
    lengths = list(map(int, flags["--lengths"].read_text().split()))
    of_spec = [[line["lengths"] for line in compared[1] if line["strategy"] == spec] for spec in SPECS]
    assert all(found == of_spec[0] for found in of_spec)
    assert all(sum(sequence) == WINDOW for sequence in of_spec[0])
    ends = set(accumulate(length for sequence in of_spec[0] for length in sequence))
    assert {end for end in accumulate(lengths) if end <= WINDOW * SEQUENCES} <= ends


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    low=st.integers(1, 60),
    more=st.integers(0, 40),
    number=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_sequences_hold_the_documents_in_order_and_what_is_cut_goes_on(lengths, low, more, number):
    try:
        found = sequences(np.array(lengths), low, low + more, number)
    except ValueError:
        assert sum(lengths) < number * (low + more)
        return
    assert len(found) == number and all(low <= sum(sequence) <= low + more for sequence in found)
    sizes, pieces = list(accumulate(map(sum, found))), [length for sequence in found for length in sequence]
    ends = sorted({end for end in (*accumulate(lengths), *sizes) if end <= sizes[-1]})
    assert list(accumulate(pieces)) == ends


def test_the_drawn_example():
    assert sequences(np.array([5, 4, 6, 9]), 8, 8, 2) == [[5, 3], [1, 6, 1]]


def test_the_table_has_a_line_for_every_strategy(flags, capsys):
    call(flags, specs=SPECS[:3])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["strategy", "-" * 14, *SPECS[:3]]


def test_sizes_are_drawn_by_seed_and_the_tile_is_the_kernels(flags, tmp_path):
    def scored(*more):
        path = tmp_path / "out.json"
        call({**flags, "--context-window": "5000:9000"}, "--json", path, *more, specs=["per_document"])
        return json.loads(path.read_text())[0]

    assert scored()["makespan_mean"] == scored("--seed", 0)["makespan_mean"] != scored("--seed", 1)["makespan_mean"]
    assert scored("--tile", "1x1")["makespan_mean"] < scored("--tile", "16x16")["makespan_mean"]


def test_a_sequence_is_drawn(flags, tmp_path):
    pytest.importorskip("matplotlib")
    call(flags, "--picture", tmp_path / "sequence.png", "--picture-sequence", 3, specs=["per_sequence", "hybrid"])
    assert (tmp_path / "sequence.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "specs", "message"),
    [
        ({}, ["ring"], "'ring': no strategy is called 'ring'; choose one of per_sequence, per_document, hybrid"),
        ({}, ["hybrid,tolerance=x"], "tolerance 'x' must be a share of the mean work"),
        ({}, ["hybrid,tolerance=-1"], "tolerance '-1' must be a share of the mean work"),
        ({}, ["hybrid,tolerance=inf"], "tolerance 'inf' must be a share of the mean work"),
        ({}, ["hybrid,tile=3"], "'tile' is no key of hybrid"),
        ({}, ["per_sequence,tolerance=0.1"], "'tolerance' is no key of per_sequence"),
        ({"--tile": "128"}, ["hybrid"], "tile '128' must be ROWSxKEYS"),
        ({"--cp": 0}, ["hybrid"], "--cp 0 must be at least 1"),
        ({"--cp": "two"}, ["hybrid"], "argument --cp: invalid int value: 'two'"),
        ({"--sequences": 0}, ["hybrid"], "--sequences 0 must be at least 1"),
        ({"--sequences": 10_000}, ["hybrid"], "10000 sequences need 200000000 tokens, the lengths make up"),
        ({"--context-window": "0"}, ["hybrid"], "--context-window '0' must be tokens"),
        ({"--context-window": "9:5"}, ["hybrid"], "--context-window '9:5' must be tokens"),
        ({"--context-window": "all"}, ["hybrid"], "--context-window 'all' must be tokens"),
        ({"--seed": -1}, ["hybrid"], "--seed -1 must be at least 0"),
        ({"--picture-sequence": 12}, ["hybrid"], "--picture-sequence 12 must be from 0 to 11"),
        ({"--json": "/nowhere/out.json"}, ["hybrid"], "/nowhere/out.json"),
        ({"--lengths": "/nowhere/lengths.txt"}, ["hybrid"], "/nowhere/lengths.txt cannot be read: No such file"),
        ({"--profile": "/nowhere/profile.json"}, ["adaptive"], "/nowhere/profile.json"),
        ({"--lengths": TOOL}, ["hybrid"], "must hold lengths in tokens, one a line or as a JSON array"),
    ],
)
def test_what_is_not_valid_is_refused_in_one_line(flags, change, specs, message):
    with pytest.raises(SystemExit) as error:
        call({**flags, **change}, specs=specs)
    assert str(error.value.code).startswith("compare_sharding: ") and message in str(error.value.code)
    assert "\n" not in str(error.value.code)


def test_it_runs_as_a_command_without_torch_and_fails_with_a_line_on_stderr(flags):
    command = [sys.executable, str(TOOL), *(str(part) for flag in flags.items() for part in flag)]
    run = subprocess.run([*command, "--strategies", "ring"], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and not run.stdout
    script = f"import runpy, sys; runpy.run_path({str(TOOL)!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"

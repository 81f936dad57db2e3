"""A rank that sleeps is computing, and its peer waits: shown by real runs of two processes over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from titan_wlb.records import WAITS, unpack

PARTS = ("compute", "starved", *WAITS)
LATE_RANK, PEER = 1, 0
DELAY_MS = 100
CASES = [
    ("FSDP, forward", "fsdp"),
    ("FSDP, backward", "fsdp"),
    ("FSDP, norm", "fsdp"),
    ("FSDP gathering ahead, head", "fsdp"),
    ("HSDP, backward", "fsdp"),
    ("1F1B, forward", "pipeline"),
    ("1F1B, backward", "pipeline"),
    ("1F1B, norm", "pipeline"),
    ("Interleaved1F1B, forward", "pipeline"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank reports."""
    path = tmp_path_factory.mktemp("planted") / "seen"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("planted.py")), str(port), str(path)]
    run = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads(Path(f"{path}.{rank}").read_text()) for rank in range(2)]


def steps_of(results, rank, scenario):
    """(late steps, other steps) of a rank, without the first two."""
    steps = results[rank]["planted"][scenario][2:]
    return [s for s in steps if s["late"]], [s for s in steps if not s["late"]]


def added_ms(results, rank, scenario, *names):
    """What the delay added to a rank's steps: median with it - median without."""
    late, others = (
        median(sum(unpack(step["record"]).ms(name) for name in names) for step in steps)
        for steps in steps_of(results, rank, scenario)
    )
    return late - others


@pytest.mark.parametrize("scenario, category", CASES)
def test_a_planted_sleep_is_the_late_ranks_compute(results, scenario, category):
    late, others = steps_of(results, LATE_RANK, scenario)
    assert not any(step["nap"] for step in others)
    for step in late:
        assert step["nap"] / 1e6 >= DELAY_MS - 1
        assert step["nap_in_compute"] >= 0.99 * step["nap"]
    assert added_ms(results, LATE_RANK, scenario, "blocked") == pytest.approx(DELAY_MS, abs=20)


@pytest.mark.parametrize("scenario, category", CASES)
def test_a_planted_sleep_is_the_peers_wait_in_the_right_category(results, scenario, category):
    assert added_ms(results, PEER, scenario, category) >= 0.6 * DELAY_MS
    wrong = [name for name in ("compute", *WAITS) if name != category]
    assert added_ms(results, PEER, scenario, *wrong) <= 0.3 * DELAY_MS


@pytest.mark.parametrize("scenario", [scenario for scenario, category in CASES if category == "fsdp"])
def test_what_the_peer_of_a_late_rank_waits_for_is_waiting_and_not_transfer(results, scenario):
    assert added_ms(results, PEER, scenario, "fsdp_waiting") >= 0.6 * DELAY_MS
    assert added_ms(results, PEER, scenario, "fsdp_transfer") <= 0.4 * DELAY_MS


@pytest.mark.parametrize("scenario, category", CASES)
def test_every_step_sums_up_to_its_wall_time(results, scenario, category):
    for rank in (LATE_RANK, PEER):
        for step in results[rank]["planted"][scenario]:
            record = unpack(step["record"])
            assert sum(record.ms(part) for part in PARTS) == pytest.approx(step["wall"], abs=1e-6)


@pytest.mark.parametrize("scenario, category", CASES)
def test_no_wait_is_missed_where_nothing_is_planted(results, scenario, category):
    for rank in (LATE_RANK, PEER):
        _, others = steps_of(results, rank, scenario)
        assert median(unpack(step["record"]).ms("blocked") for step in others) < 1


def test_transfer_is_the_least_exposed_time_per_collective(results):
    assert results[0]["transfer"] == []
    # The second fsdp collective of rank 1 has no counterpart: it is taken for waiting.
    assert results[1]["transfer"] == [[0, 5, 3.0, 4.0], [1, 5, 3.0, 4.0]]


def test_the_gradient_norm_over_ranks_is_torchs(results):
    for rank in range(2):
        ours, theirs, difference = results[rank]["norms"]
        assert ours == pytest.approx(theirs, rel=1e-6)
        assert difference < 1e-6

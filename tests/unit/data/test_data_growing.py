"""An index that grows while it is read plans as one that was there before, and ends with those who read it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from data_cases import fingerprints_of, index_of, lengths_of, planner_of, random_texts, write_jsonl

from titan_wlb.data import growing
from titan_wlb.data.background import BackgroundBuilder, Request
from titan_wlb.data.corpora import build_corpus
from titan_wlb.data.encoders import ByteEncoder
from titan_wlb.data.growing import GrowingIndex
from titan_wlb.data.index_builder import IndexBuilder

TEXTS = random_texts(60)
SEGMENT_TOKENS = 200


class Job:
    """What a training has of its index."""

    def __init__(self, place, texts=TEXTS, on_bad_document="skip"):
        self.path, self.folder, self.on_bad_document = place / "a.jsonl", place / "index", on_bad_document
        if not self.path.exists():
            write_jsonl(self.path, texts)
        self.opened = contextlib.ExitStack()

    def index(self, is_first_rank=True):
        corpus = build_corpus("jsonl", self.path)
        policy = {"segment_tokens": SEGMENT_TOKENS, "on_bad_document": self.on_bad_document}
        builder = IndexBuilder(corpus, ByteEncoder(), self.folder, **policy)
        request = Request(
            dataset="jsonl",
            dataset_path=str(self.path),
            memory="",
            corpus_fingerprint=corpus.fingerprint,
            encoder=Request.pack(ByteEncoder()),
            folder=str(self.folder),
            num_processes=1,
            **policy,
        )
        index = GrowingIndex(builder, BackgroundBuilder(request) if is_first_rank else None, **policy)
        return self.opened.enter_context(contextlib.closing(index))

    def segments(self):
        return sorted(path.name for path in self.folder.glob("segment-?????"))


@pytest.fixture
def job(tmp_path):
    job = Job(tmp_path)
    with job.opened:
        yield job


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_it_holds_what_an_index_that_was_built_at_once_holds(job, tmp_path):
    whole = index_of(TEXTS, tmp_path / "whole", segment_tokens=SEGMENT_TOKENS)
    grown = job.index()
    assert fingerprints_of(grown) == fingerprints_of(whole) and len(whole.opened) > 5
    assert lengths_of(grown) == lengths_of(whole)


def test_plans_do_not_depend_on_how_fast_it_grows(job, tmp_path):
    whole = planner_of(index_of(TEXTS, tmp_path / "whole", segment_tokens=SEGMENT_TOKENS))
    grown = planner_of(job.index())
    for _ in range(20):
        assert grown.plan() == whole.plan()


def test_the_first_segment_is_enough_to_begin_and_two_are_built_ahead(job):
    index = job.index()
    index.segment(0)
    wait_until(lambda: len(job.segments()) == 3)
    time.sleep(0.3)
    assert len(job.segments()) == 3, "no further ahead"
    index.segment(1)
    wait_until(lambda: len(job.segments()) == 4)


def test_other_ranks_wait_for_what_the_first_one_has_built(job):
    first, other = job.index(), job.index(is_first_rank=False)
    found = []
    thread = threading.Thread(target=lambda: found.extend(fingerprints_of(other)), daemon=True)
    thread.start()
    assert len(fingerprints_of(first)) > 5
    thread.join(20)
    assert found == fingerprints_of(first)


def test_a_rank_that_waits_says_so_and_how_far_it_is(job, monkeypatch, caplog):
    monkeypatch.setattr(growing, "REPEAT_MESSAGE_S", 0.0)
    other = job.index(is_first_rank=False)
    other.segment(0)
    (job.folder / "segment-00001.part-5678").mkdir()  # has no file yet
    part = job.folder / "segment-00001.part-1234"
    part.mkdir()
    (part / "tokens").write_bytes(b"\0" * (SEGMENT_TOKENS // 2 * 2))
    threading.Thread(target=lambda: other.segment(1), daemon=True).start()
    with caplog.at_level("INFO"):
        wait_until(lambda: "waiting for segment 1 of the index: 50 % are tokenised" in caplog.text)
    assert len(fingerprints_of(job.index())) > 5  # the other one goes on, and its thread ends


def test_nothing_is_started_where_all_is_there(job, monkeypatch):
    fingerprints = fingerprints_of(job.index())
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("started"))
    assert fingerprints_of(job.index()) == fingerprints


def test_a_damaged_segment_is_built_again(job):
    fingerprints = fingerprints_of(job.index())
    (job.folder / "segment-00002" / "offsets").write_bytes(b"")
    assert fingerprints_of(job.index()) == fingerprints


def test_a_bad_document_further_on_ends_the_run_when_it_gets_there(tmp_path):
    job = Job(tmp_path, [*TEXTS[:30], "", *TEXTS[30:]], on_bad_document="stop")
    with job.opened:
        index = job.index()
        assert index.segment(0) is not None
        with pytest.raises(ValueError, match=r"wlb.on_bad_document = 'stop': .*a.jsonl:31 \(no text\)"):
            fingerprints_of(index)
        assert len(index.opened) > 1


def test_bad_documents_are_counted_by_whoever_built_the_segment(tmp_path, caplog):
    job = Job(tmp_path, [*TEXTS[:30], "", *TEXTS[30:]])
    with job.opened:
        index = job.index()
        assert lengths_of(index) == [len(text) + 2 for text in TEXTS]
        assert index.opened[-1].meta.skipped == 1
        assert "left out 1 bad documents" in caplog.text


def test_a_corpus_that_changed_since_is_refused_in_one_line(job, monkeypatch):
    monkeypatch.setattr(growing, "SEGMENTS_AHEAD", 0)
    index = job.index()
    index.segment(0)
    write_jsonl(job.path, ["another"])
    with pytest.raises(ValueError, match="has changed since the training started") as refused:
        fingerprints_of(index)
    assert "\n" not in str(refused.value)


def test_a_builder_that_is_killed_is_told_of(job):
    index = job.index()
    index.segment(0)
    index._background._process.kill()
    index._background._process.wait()
    with pytest.raises(ValueError, match="the process that builds the index ended with exit code -9"):
        fingerprints_of(index)


TRAINING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_data_growing import Job
index = Job(Path(sys.argv[2])).index()
index.segment(0)
print(index._background._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None], ids=["killed", "stopped", "ends by itself"])
def test_it_ends_with_the_training(tmp_path, end):
    write_jsonl(tmp_path / "a.jsonl", TEXTS * 2000)
    command = [sys.executable, "-c", TRAINING, os.path.dirname(__file__), str(tmp_path)]
    training = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid = int(training.stdout.readline())
    os.kill(pid, 0)
    if end is None:
        training.stdin.close()
    else:
        training.send_signal(end)
    training.wait()
    wait_until(lambda: not is_running(pid))


def is_running(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

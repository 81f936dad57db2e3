"""What the index returns is what the corpus held, whoever built it; what is damaged is noticed."""

import json
import os

import numpy as np
import pytest
from data_cases import corpus_of, index_of, random_texts, write_jsonl

from titan_wlb.data import index_builder
from titan_wlb.data.corpora import build_corpus
from titan_wlb.data.encoders import BpeEncoder, ByteEncoder, train_bpe
from titan_wlb.data.index import open_index
from titan_wlb.data.index_builder import build_index, prepare_index
from titan_wlb.data.once import DamagedError

TEXTS = random_texts(40)


def texts_in(index):
    encoder = ByteEncoder()
    return [encoder.decode(index.tokens(document)) for document in range(len(index))]


def test_an_index_returns_every_document_and_any_part_of_it(tmp_path):
    index = index_of(["ab", "üx", "c"], tmp_path / "index")
    assert index.lengths.dtype == np.int64 and index.lengths.tolist() == [4, 5, 3]
    assert index.tokens(0).tolist() == [256, 97, 98, 257]
    assert index.tokens(1).tolist() == [256, *"üx".encode(), 257]
    assert index.tokens(1, 1, 3).tolist() == list("ü".encode())
    assert index.tokens(2, 2).tolist() == [257]
    assert len(index.tokens(2, 1, 1)) == 0
    assert index.num_tokens == 12


def test_segments_and_batches_leave_no_trace(tmp_path, monkeypatch):
    whole = index_of(TEXTS, tmp_path / "whole")
    monkeypatch.setattr(index_builder, "BATCH_CHARACTERS", 50)
    cut = index_of(TEXTS, tmp_path / "cut", segment_tokens=100)
    assert len(whole.meta.segments) == 1 and len(cut.meta.segments) > 5
    assert texts_in(cut) == texts_in(whole) == TEXTS
    assert cut.lengths.tolist() == whole.lengths.tolist()
    assert cut.fingerprint == whole.fingerprint


def test_worker_processes_leave_no_trace(tmp_path, monkeypatch):
    train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    encoder = BpeEncoder(tmp_path / "bpe.json")
    build_index(corpus_of(TEXTS), encoder, tmp_path / "alone", num_processes=1)
    monkeypatch.setattr(index_builder, "BATCH_CHARACTERS", 50)
    monkeypatch.setattr(index_builder, "ALONE_BATCHES", 2)
    build_index(corpus_of(TEXTS), encoder, tmp_path / "workers", num_processes=2)
    alone, workers = open_index(tmp_path / "alone"), open_index(tmp_path / "workers")
    assert workers.fingerprint == alone.fingerprint
    for document in range(len(TEXTS)):
        assert workers.tokens(document).tolist() == alone.tokens(document).tolist()


def test_the_same_documents_have_one_fingerprint_from_whatever_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    from_file = prepare_index(build_corpus("jsonl", tmp_path / "a.jsonl"), ByteEncoder(), tmp_path / "root")
    assert from_file.fingerprint == index_of(TEXTS, tmp_path / "index").fingerprint
    assert from_file.fingerprint != index_of(TEXTS[::-1], tmp_path / "other").fingerprint


def test_a_second_start_does_not_read_the_corpus_again(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    first = prepare_index(build_corpus("jsonl", tmp_path / "a.jsonl"), ByteEncoder(), tmp_path / "root")
    monkeypatch.setattr(index_builder, "build_index", lambda *args, **kwargs: pytest.fail("built again"))
    again = prepare_index(build_corpus("jsonl", tmp_path / "a.jsonl"), ByteEncoder(), tmp_path / "root")
    assert texts_in(again) == texts_in(first) == TEXTS


def test_another_corpus_or_tokenizer_is_another_index(tmp_path):
    train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    path, root = write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "root"
    encoders = ByteEncoder(), BpeEncoder(tmp_path / "bpe.json")
    folders = {prepare_index(build_corpus("jsonl", path), encoder, root).folder for encoder in encoders}
    write_jsonl(path, [*TEXTS, "one more"])
    changed = prepare_index(build_corpus("jsonl", path), ByteEncoder(), root)
    assert len(folders | {changed.folder}) == 3
    assert texts_in(changed)[-1] == "one more"


def truncate_tokens(folder):
    os.truncate(folder / "segment-00000.tokens", (folder / "segment-00000.tokens").stat().st_size - 1)


def change_a_length(folder):
    raw = bytearray((folder / "segment-00000.lengths").read_bytes())
    raw[0] ^= 1
    (folder / "segment-00000.lengths").write_bytes(raw)


def remove_a_file(folder):
    (folder / "segment-00000.tokens").unlink()


def truncate_meta(folder):
    os.truncate(folder / "index.json", 100)


def change_the_meta(folder):
    stored = json.loads((folder / "index.json").read_text())
    stored["body"]["vocab_size"] += 1
    (folder / "index.json").write_text(json.dumps(stored, indent=1))


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "damage", [truncate_tokens, change_a_length, remove_a_file, truncate_meta, change_the_meta, empty]
)
def test_a_damaged_index_is_refused_in_one_line_and_built_again(tmp_path, damage, caplog):
    corpus = corpus_of(TEXTS)
    folder = prepare_index(corpus, ByteEncoder(), tmp_path).folder
    damage(folder)
    with pytest.raises(DamagedError, match="is damaged") as refused:
        open_index(folder)
    assert "\n" not in str(refused.value)
    assert texts_in(prepare_index(corpus, ByteEncoder(), tmp_path)) == TEXTS
    assert "building it again" in caplog.text
    assert os.listdir(tmp_path) == [folder.name]


def test_a_token_outside_the_vocabulary_is_refused_when_it_is_read(tmp_path):
    index = index_of(TEXTS, tmp_path / "index")
    with open(tmp_path / "index" / "segment-00000.tokens", "r+b") as file:
        file.write(b"\xff\xff")
    with pytest.raises(ValueError, match="document 0 holds token 65535 of a vocabulary of 258"):
        index.tokens(0)


def test_there_is_no_index_is_another_thing_than_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_index(tmp_path / "nothing")


BAD = ["good", None, "", " \n", "\ud800", "good too"]


def test_bad_documents_are_skipped_counted_and_named(tmp_path, caplog):
    index = prepare_index(corpus_of(BAD), ByteEncoder(), tmp_path)
    assert texts_in(index) == ["good", "good too"]
    assert index.meta.skipped == 4
    assert index.meta.skipped_examples[0] == "document 1 (unreadable)"
    assert "left out 4 bad documents of texts, the first: document 1 (unreadable)" in caplog.text
    caplog.clear()
    prepare_index(corpus_of(BAD), ByteEncoder(), tmp_path)
    assert "left out 4 bad documents" in caplog.text  # also when the index is there


def test_stop_refuses_a_bad_document_also_one_that_an_index_has_skipped(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match=r"wlb.on_bad_document = 'stop': .*document 1 \(unreadable\)"):
            prepare_index(corpus_of(BAD), ByteEncoder(), tmp_path, on_bad_document="stop")
        prepare_index(corpus_of(BAD), ByteEncoder(), tmp_path)
    assert len(os.listdir(tmp_path)) == 1


def test_a_text_that_makes_no_token_is_a_bad_document(tmp_path):
    class Deaf(ByteEncoder):
        def encode_batch(self, texts):
            return super().encode_batch([text.replace("x", "") for text in texts])

    build_index(corpus_of(["ax", "x", "xb"]), Deaf(), tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert texts_in(index) == ["a", "b"]
    assert index.meta.skipped_examples == ("document 1 (no token)",)


@pytest.mark.parametrize("texts", [[], [None, ""]])
def test_a_corpus_without_a_good_document_is_refused(tmp_path, texts):
    with pytest.raises(ValueError, match="holds no document with text"):
        prepare_index(corpus_of(texts), ByteEncoder(), tmp_path)
    assert os.listdir(tmp_path) == []

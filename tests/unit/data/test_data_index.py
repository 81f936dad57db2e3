"""What the index returns is what the corpus held, whoever built it; what is damaged is noticed."""

import json
import os

import numpy as np
import pytest
from data_cases import builder_of, fingerprints_of, index_of, lengths_of, random_texts, write_jsonl

from titan_wlb.data import index_builder
from titan_wlb.data.corpora import build_corpus
from titan_wlb.data.encoders import BpeEncoder, ByteEncoder, train_bpe
from titan_wlb.data.growing import complete_index, index_folder
from titan_wlb.data.index import open_index
from titan_wlb.data.index_builder import IndexBuilder
from titan_wlb.data.once import DamagedError

TEXTS = random_texts(40)


def texts_in(index):
    encoder = ByteEncoder()
    return [encoder.decode(index.tokens(document)) for document in range(len(lengths_of(index)))]


def prepared(corpus, root, encoder=None, segment_tokens=1 << 28, **kwargs):
    encoder = encoder or ByteEncoder()
    folder = index_folder(root, corpus.fingerprint, encoder.fingerprint, segment_tokens)
    return complete_index(IndexBuilder(corpus, encoder, folder, segment_tokens=segment_tokens, **kwargs))


def test_an_index_returns_every_document_and_any_part_of_it(tmp_path):
    index = index_of(["ab", "üx", "c"], tmp_path / "index")
    (segment,) = index.segments()
    assert segment.lengths().dtype == np.int64 and segment.lengths().tolist() == [4, 5, 3]
    assert index.tokens(0).tolist() == [256, 97, 98, 257]
    assert index.tokens(1).tolist() == [256, *"üx".encode(), 257]
    assert index.tokens(1, 1, 3).tolist() == list("ü".encode())
    assert index.tokens(2, 2).tolist() == [257]
    assert len(index.tokens(2, 1, 1)) == 0


def test_batches_leave_no_trace(tmp_path, monkeypatch):
    whole = index_of(TEXTS, tmp_path / "whole")
    monkeypatch.setattr(index_builder, "BATCH_CHARACTERS", 50)
    assert fingerprints_of(index_of(TEXTS, tmp_path / "batches")) == fingerprints_of(whole)


def test_segments_hold_the_corpus_one_behind_the_other(tmp_path):
    cut = index_of(TEXTS, tmp_path / "cut", segment_tokens=100)
    segments = list(cut.segments())
    assert len(segments) > 5
    assert texts_in(cut) == TEXTS
    assert all(100 <= segment.meta.tokens < 100 + 100 + 62 for segment in segments[:-1])
    assert [segment.meta.is_last for segment in segments] == [False] * (len(segments) - 1) + [True]
    first_ids = [segment.first_id for segment in segments]
    assert first_ids == [0, *np.cumsum([segment.num_documents for segment in segments])[:-1]]


def test_whoever_builds_a_segment_it_is_the_same(tmp_path):
    straight = index_of(TEXTS, tmp_path / "straight", segment_tokens=100)
    first_id = 0
    for number, segment in enumerate(straight.segments()):
        # a builder of its own for each, that reads the corpus from its beginning
        built = builder_of(TEXTS, tmp_path / "others", segment_tokens=100).segment(number, first_id)
        assert built.meta == segment.meta
        first_id += built.num_documents


def test_a_builder_goes_on_behind_what_another_has_built_meanwhile(tmp_path):
    slow, quick = (builder_of(TEXTS, tmp_path / "index", segment_tokens=100) for _ in range(2))
    first = slow.segment(0, 0)
    second = quick.segment(1, first.num_documents)
    third = slow.segment(2, second.first_id + second.num_documents)
    straight = index_of(TEXTS, tmp_path / "straight", segment_tokens=100)
    assert third.meta == straight.segment(2).meta


def test_worker_processes_leave_no_trace(tmp_path, monkeypatch):
    train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    encoder = BpeEncoder(tmp_path / "bpe.json")
    monkeypatch.setattr(index_builder, "BATCH_CHARACTERS", 50)
    alone = index_of(TEXTS, tmp_path / "alone", encoder=encoder, num_processes=1, segment_tokens=200)
    monkeypatch.setattr(index_builder, "ALONE_BATCHES", 2)
    workers = index_of(TEXTS, tmp_path / "workers", encoder=encoder, num_processes=2, segment_tokens=200)
    assert fingerprints_of(workers) == fingerprints_of(alone) and len(alone.opened) > 1
    for document in range(len(TEXTS)):
        assert workers.tokens(document).tolist() == alone.tokens(document).tolist()


def test_the_same_documents_have_one_fingerprint_from_whatever_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    from_file = prepared(build_corpus("jsonl", tmp_path / "a.jsonl"), tmp_path / "root")
    assert fingerprints_of(from_file) == fingerprints_of(index_of(TEXTS, tmp_path / "index"))
    assert fingerprints_of(from_file) != fingerprints_of(index_of(TEXTS[::-1], tmp_path / "other"))


def test_a_second_start_does_not_read_the_corpus_again(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    first = prepared(build_corpus("jsonl", tmp_path / "a.jsonl"), tmp_path / "root")
    monkeypatch.setattr(IndexBuilder, "_build", lambda *args: pytest.fail("built again"))
    again = prepared(build_corpus("jsonl", tmp_path / "a.jsonl"), tmp_path / "root")
    assert texts_in(again) == texts_in(first) == TEXTS


def test_another_corpus_tokenizer_or_segment_is_another_index(tmp_path):
    train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    path, root = write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "root"
    encoders = ByteEncoder(), BpeEncoder(tmp_path / "bpe.json")
    folders = {prepared(build_corpus("jsonl", path), root, encoder).folder for encoder in encoders}
    folders.add(prepared(build_corpus("jsonl", path), root, segment_tokens=100).folder)
    write_jsonl(path, [*TEXTS, "one more"])
    changed = prepared(build_corpus("jsonl", path), root)
    assert len(folders | {changed.folder}) == 4
    assert texts_in(changed)[-1] == "one more"


def truncate_tokens(segment):
    os.truncate(segment / "tokens", (segment / "tokens").stat().st_size - 1)


def change_an_offset(segment):
    raw = bytearray((segment / "offsets").read_bytes())
    raw[8] ^= 1
    (segment / "offsets").write_bytes(raw)


def remove_a_file(segment):
    (segment / "tokens").unlink()


def truncate_meta(segment):
    os.truncate(segment / "meta.json", 100)


def change_the_meta(segment):
    stored = json.loads((segment / "meta.json").read_text())
    stored["body"]["vocab_size"] += 1
    (segment / "meta.json").write_text(json.dumps(stored, indent=1))


def empty(segment):
    for file in segment.iterdir():
        file.unlink()


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(
    "damage", [truncate_tokens, change_an_offset, remove_a_file, truncate_meta, change_the_meta, empty]
)
def test_a_damaged_segment_is_refused_in_one_line_and_built_again(tmp_path, damage, number, caplog):
    folder = tmp_path / "index"
    whole = fingerprints_of(index_of(TEXTS, folder, segment_tokens=200))
    damage(folder / f"segment-{number:05d}")
    with pytest.raises(DamagedError, match="is damaged") as refused:
        open_index(folder)
    assert "\n" not in str(refused.value)
    assert fingerprints_of(index_of(TEXTS, folder, segment_tokens=200)) == whole
    assert "building it again" in caplog.text
    assert sorted(os.listdir(folder)) == [f"segment-{number:05d}" for number in range(len(whole))]


def test_a_token_outside_the_vocabulary_is_refused_when_it_is_read(tmp_path):
    index = index_of(TEXTS, tmp_path / "index")
    with open(tmp_path / "index" / "segment-00000" / "tokens", "r+b") as file:
        file.write(b"\xff\xff")
    with pytest.raises(ValueError, match="document 0 holds token 65535 of a vocabulary of 258"):
        index.tokens(0)


def test_there_is_no_index_is_another_thing_than_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_index(tmp_path / "nothing")
    builder_of(TEXTS, tmp_path / "begun", segment_tokens=100).segment(0, 0)
    with pytest.raises(FileNotFoundError, match="segment-00001"):
        open_index(tmp_path / "begun")


BAD = ["good", None, "", " \n", "\ud800", "good too"]


def test_bad_documents_are_skipped_counted_and_named(tmp_path, caplog):
    index = index_of(BAD, tmp_path)
    assert texts_in(index) == ["good", "good too"]
    (segment,) = index.segments()
    assert segment.meta.skipped == 4
    assert segment.meta.skipped_examples[0] == "document 1 (unreadable)"
    assert "left out 4 bad documents of texts, the first: document 1 (unreadable)" in caplog.text
    caplog.clear()
    index_of(BAD, tmp_path)
    assert "left out 4 bad documents" in caplog.text  # also when the index is there


def test_bad_documents_are_counted_over_segments_and_may_end_the_corpus(tmp_path):
    texts = [text for good in TEXTS for text in (None, good)] + [None] * 3
    index = index_of(texts, tmp_path, segment_tokens=100)
    assert texts_in(index) == TEXTS
    skipped = [segment.meta.skipped for segment in index.segments()]
    assert skipped[-1] == len(TEXTS) + 3 and skipped == sorted(skipped) and skipped[0] < len(TEXTS)
    assert index.opened[-1].meta.read == len(texts)


@pytest.mark.parametrize("num_bad", [0, 1, 5])
def test_a_corpus_that_ends_where_a_segment_does_has_no_document_behind_it(tmp_path, num_bad):
    index = index_of(["x" * 100, "y" * 100, *[None] * num_bad], tmp_path, segment_tokens=100)
    segments = list(index.segments())
    assert [segment.num_documents for segment in segments] == ([1, 1, 0] if num_bad else [1, 1])
    assert texts_in(index) == ["x" * 100, "y" * 100]
    assert segments[-1].meta.skipped == num_bad


def test_stop_refuses_a_bad_document_also_one_that_an_index_has_skipped(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match=r"wlb.on_bad_document = 'stop': .*document 1 \(unreadable\)"):
            index_of(BAD, tmp_path, on_bad_document="stop")
        index_of(BAD, tmp_path)
    assert len(os.listdir(tmp_path)) == 1


def test_a_text_that_makes_no_token_is_a_bad_document(tmp_path):
    class Deaf(ByteEncoder):
        def encode_batch(self, texts):
            return super().encode_batch([text.replace("x", "") for text in texts])

    index = index_of(["ax", "x", "xb"], tmp_path / "index", encoder=Deaf())
    assert texts_in(index) == ["a", "b"]
    assert index.opened[0].meta.skipped_examples == ("document 1 (no token)",)


@pytest.mark.parametrize("texts", [[], [None, ""]])
def test_a_corpus_without_a_good_document_is_refused(tmp_path, texts):
    with pytest.raises(ValueError, match="holds no document with text"):
        index_of(texts, tmp_path)
    assert os.listdir(tmp_path) == []

"""Documents come in an order that names alone decide; what is wrong with one is said, not raised."""

import gzip
import os
from itertools import islice

import datasets
import pytest
from data_cases import write_jsonl

from titan_wlb.data import hugging_face
from titan_wlb.data.corpora import build_corpus


def texts_of(corpus):
    return [document.text for document in corpus]


def test_python_stdlib_takes_top_level_definitions_with_their_decorators(tmp_path):
    (tmp_path / "b.py").write_text(
        "import os\nX = 1\n\n@cache\n@other(\n    1)\ndef f():\n    def inner(): pass\n\n"
        "class C:\n    def m(self): pass\n"
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.py").write_text("async def g(): pass\nif X:\n    def hidden(): pass\n")
    for skipped in ("test", "site-packages"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "t.py").write_text("def t(): pass\n")
    assert texts_of(build_corpus("python_stdlib", tmp_path)) == [
        "async def g(): pass\n",
        "@cache\n@other(\n    1)\ndef f():\n    def inner(): pass\n",
        "class C:\n    def m(self): pass\n",
    ]


def test_python_stdlib_of_this_interpreter_is_a_real_corpus():
    corpus = build_corpus("python_stdlib")
    assert corpus.num_bytes > 5_000_000
    documents = list(islice(corpus, 400))
    assert len(documents) == 400 and all(document.text for document in documents)
    lengths = sorted(len(document.text) for document in documents)
    assert lengths[-1] > 10 * lengths[200]  # skewed, which is what packing is about


def test_a_file_that_does_not_parse_is_a_bad_document(tmp_path):
    (tmp_path / "a.py").write_text("def f(:\n")
    (tmp_path / "b.py").write_text("def g(): pass\n")
    bad, good = build_corpus("python_stdlib", tmp_path)
    assert bad.text is None and bad.origin == "a.py" and "SyntaxError" in bad.problem
    assert good.text == "def g(): pass\n"


def test_text_takes_a_file_a_document_sorted_by_path_without_hidden_ones(tmp_path):
    for name in ("b.txt", "a/c.md", "a/a", ".hidden", ".git/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts_of(build_corpus("text", tmp_path)) == ["a/a", "a/c.md", "b.txt"]


def test_text_follows_links_to_folders_but_not_in_circles(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("linked")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "link").symlink_to(tmp_path / "elsewhere")
    (corpus / "circle").symlink_to(corpus)
    assert texts_of(build_corpus("text", corpus)) == ["linked"]


def test_text_that_is_no_utf8_is_a_bad_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "b.txt").write_text("ü")
    (tmp_path / "c.txt").symlink_to(tmp_path / "nowhere")
    undecodable, good, unreadable = build_corpus("text", tmp_path)
    assert undecodable.text is None and "UnicodeDecodeError" in undecodable.problem
    assert good.text == "ü"
    assert unreadable.text is None and "FileNotFoundError" in unreadable.problem


def test_jsonl_takes_a_file_or_a_folder_also_compressed(tmp_path):
    one = write_jsonl(tmp_path / "b.jsonl", ["b1", "b2"])
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "a1"}\n{"text": "a2", "other": 3}')
    (tmp_path / "README.md").write_text("no document")
    assert texts_of(build_corpus("jsonl", one)) == ["b1", "b2"]
    corpus = build_corpus("jsonl", tmp_path)
    assert texts_of(corpus) == ["a1", "a2", "b1", "b2"]
    assert list(corpus)[-1].position == corpus.num_bytes


def test_jsonl_lines_end_at_newlines_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "one\u2028still one\\r\\n"}\r\n{"text": "\x85two"}'.encode())
    assert texts_of(build_corpus("jsonl", path)) == ["one\u2028still one\r\n", "\x85two"]


def test_jsonl_names_the_line_of_a_bad_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n{"text": \n[1]\n{"txt": "x"}\n{"text": 5}\n\xff\n{"text": "last"}')
    documents = list(build_corpus("jsonl", path))
    assert [document.origin.rpartition(":")[2] for document in documents] == ["1", "3", "4", "5", "6", "7", "8"]
    assert [document.text for document in documents] == ["good", None, None, None, None, None, "last"]
    assert all(document.problem for document in documents[1:-1])


def test_jsonl_a_compressed_file_that_breaks_off_is_a_bad_document_and_the_next_file_is_read(tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in range(2000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    write_jsonl(tmp_path / "b.jsonl", ["next"])
    documents = list(build_corpus("jsonl", tmp_path))
    assert documents[-1].text == "next"
    assert documents[-2].text is None and "EOFError" in documents[-2].problem
    assert texts_of(documents)[:-2] == [str(number) for number in range(len(documents) - 2)]


def test_the_fingerprint_changes_exactly_with_the_sources(tmp_path):
    path = write_jsonl(tmp_path / "a" / "x.jsonl", ["one"])
    first = build_corpus("jsonl", path.parent).fingerprint
    assert build_corpus("jsonl", path.parent).fingerprint == first
    os.rename(path.parent, tmp_path / "b")
    path = tmp_path / "b" / "x.jsonl"
    assert build_corpus("jsonl", path.parent).fingerprint == first
    stamp = path.stat().st_mtime_ns
    write_jsonl(path, ["two"])  # as many bytes
    os.utime(path, ns=(stamp + 1, stamp + 1))
    assert build_corpus("jsonl", path.parent).fingerprint != first


@pytest.mark.parametrize(
    ("name", "path", "says"),
    [
        ("text", None, "needs dataset_path"),
        ("text", "nowhere", "does not exist"),
        ("text", "file", "is not a folder"),
        ("jsonl", None, "needs dataset_path"),
        ("jsonl", "empty", "holds no .jsonl"),
        ("some-name", "nowhere", "does not exist"),
        ("python_stdlib", "empty", "holds no .py"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused_in_one_line(tmp_path, name, path, says):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"training\.dataset") as refused:
        build_corpus(name, tmp_path / path if path else None)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_hugging_face_loads_a_local_folder_and_what_save_to_disk_wrote(tmp_path):
    rows = ["first", "second", None]
    write_jsonl(tmp_path / "lines" / "train.jsonl", rows)
    datasets.Dataset.from_dict({"text": rows}).save_to_disk(tmp_path / "disk")
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict({"text": rows}).to_parquet(tmp_path / "parquet" / "train.parquet")
    for folder in ("lines", "disk", "parquet", "parquet/train.parquet"):
        documents = list(build_corpus("my-dataset", tmp_path / folder))
        assert texts_of(documents) == rows, folder
        assert "no string in the column 'text'" in documents[2].problem
    assert texts_of(build_corpus(str(tmp_path / "lines"))) == rows


def test_hugging_face_without_a_text_column_says_which_there_are(tmp_path):
    datasets.Dataset.from_dict({"content": ["x"], "n": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="no column 'text', only content, n"):
        list(build_corpus("my-dataset", tmp_path))


def test_an_unknown_name_says_what_is_allowed(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(ValueError, match="'python_stdlb' cannot be loaded") as refused:
        build_corpus("python_stdlb")
    assert "allowed: python_stdlib, text, jsonl" in str(refused.value) and "\n" not in str(refused.value)


def test_a_hub_dataset_is_found_again_where_the_hub_cannot_be_reached(tmp_path, monkeypatch, caplog):
    class Builder:
        hash = "abc"

        class info:
            version = "1.0"

    memory = tmp_path / "root" / "hub.json"
    asked = []
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *what: asked.append(what) or Builder)
    online = build_corpus("owner/name:config", memory=memory).fingerprint
    assert asked == [("owner/name", "config")]
    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    hugging_face._fingerprint_on_the_hub.cache_clear()  # another process
    assert build_corpus("owner/name:config", memory=memory).fingerprint == online
    assert "cannot be reached" in caplog.text
    hugging_face._fingerprint_on_the_hub.cache_clear()
    with pytest.raises(ValueError, match="cannot be loaded"):
        build_corpus("owner/other", memory=memory)


def unreachable(*_):
    raise ConnectionError("Couldn't reach it\non the Hub")

"""Where documents come from: the names of ``training.dataset``.

    python_stdlib   the running interpreter's standard library, one top-level class or function a document
    text            a folder, one file a document
    jsonl           a file or a folder of files, one JSON object a line, its text under "text"
    anything else   a Hugging Face dataset, by name or as a local folder (see hugging_face.py)

The order of documents depends on names alone, never on the speed or the order of a file system: a document's id is its
place in this order. A corpus is read lazily; its fingerprint only looks at names, sizes and modification times, so that
a second start does not read the corpus again and a changed file is never missed.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

NAMES = ("python_stdlib", "text", "jsonl")


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A document before it has become tokens.

    Args:
        origin: where it stands, for messages: "folder/file.jsonl:17".
        text: None when it could not be read.
        position: bytes of the corpus read up to and including it.
        problem: why there is no text.
    """

    origin: str
    text: str | None
    position: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in a fixed order.

    Args:
        name: for messages.
        fingerprint: hex; equal if and only if the documents are.
        num_bytes: bytes of the sources, None if unknown.
        read: yields the documents from the first; may be called again.
    """

    name: str
    fingerprint: str
    num_bytes: int | None
    read: Callable[[], Iterator[RawDocument]]

    def __iter__(self) -> Iterator[RawDocument]:
        return self.read()


def build_corpus(name: str, path: str | Path | None = None, *, memory: Path | None = None) -> Corpus:
    """The corpus that ``training.dataset`` and ``dataset_path`` name.

    Args:
        path: needed for text and jsonl; for python_stdlib another folder of Python sources.
        memory: a file that remembers what a Hugging Face name stood for, for machines that cannot reach the hub.

    Raises:
        ValueError: the dataset cannot be opened; in one line, with the key and what is allowed.
    """
    if name == "python_stdlib":
        return _python_stdlib(Path(path) if path else Path(sysconfig.get_paths()["stdlib"]))
    if name in ("text", "jsonl"):
        if not path:
            raise ValueError(f"training.dataset = {name!r} needs dataset_path, {_PATHS[name]}")
        if not Path(path).exists():
            raise ValueError(f"training.dataset_path = {str(path)!r} does not exist; {name!r} needs {_PATHS[name]}")
        return _text(Path(path)) if name == "text" else _jsonl(Path(path))
    from titan_wlb.data.hugging_face import hugging_face_corpus  # imports datasets: slow

    return hugging_face_corpus(name, path, memory=memory)


def problem_of(document: RawDocument) -> str:
    """Why a document is bad, which is unreadable, undecodable or without text; "" if it is not."""
    if document.text is None:
        return document.problem
    try:
        document.text.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can hold
        return _reason(error)
    return "" if document.text.strip() else "no text"


_PATHS = {
    "text": "a folder of text files, one document each",
    "jsonl": "a .jsonl or .jsonl.gz file, or a folder of such files",
}


def files_below(folder: Path, keep: Callable[[str], bool], skip_folders: frozenset[str] = frozenset()) -> list[Path]:
    """Files below a folder whose name is kept, sorted by their path; hidden ones left out, links followed once."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in skip_folders and not name.startswith("."))
        found += [Path(place, name) for name in files if keep(name) and not name.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def fingerprint_of_files(kind: str, root: Path, files: Iterable[Path]) -> tuple[str, int]:
    """Hash of the names below ``root``, sizes and modification times, and the bytes altogether."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    num_bytes = 0
    for file in files:
        try:
            status = file.stat()
            described = f"{status.st_size}\0{status.st_mtime_ns}"
            num_bytes += status.st_size
        except OSError as error:
            described = f"unreadable {error.errno}"
        digest.update(f"{file.relative_to(root).as_posix()}\0{described}\n".encode(errors="surrogateescape"))
    return digest.hexdigest(), num_bytes


def _python_stdlib(folder: Path) -> Corpus:
    """One top-level class or function of the standard library a document, decorators included.

    A file a document would be mostly full windows; definitions have the skewed lengths that real corpora have. It
    differs from interpreter to interpreter.
    """
    without = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
    files = files_below(folder, lambda name: name.endswith(".py"), without)
    if not files:
        raise ValueError(f"training.dataset = 'python_stdlib': {folder} holds no .py files; use 'text' or 'jsonl'")
    # which definitions are found depends on the interpreter's own parser
    kind = f"python_stdlib 1 {platform.python_implementation()} {platform.python_version()}"
    fingerprint, num_bytes = fingerprint_of_files(kind, folder, files)
    return Corpus("python_stdlib", fingerprint, num_bytes, lambda: _read_definitions(folder, files))


def _read_definitions(folder: Path, files: list[Path]) -> Iterator[RawDocument]:
    position = 0
    for file in files:
        origin = file.relative_to(folder).as_posix()
        try:
            source = file.read_bytes()
            tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError) as error:
            yield RawDocument(origin, None, position, _reason(error))
            continue
        position += len(source)
        lines = source.splitlines(keepends=True)
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                yield _decoded(b"".join(lines[first - 1 : node.end_lineno]), f"{origin}:{first}", position)


def _text(folder: Path) -> Corpus:
    if not folder.is_dir():
        raise ValueError(f"training.dataset_path = {str(folder)!r} is not a folder; 'text' needs {_PATHS['text']}")
    files = files_below(folder, lambda name: True)
    fingerprint, num_bytes = fingerprint_of_files("text 1", folder, files)
    return Corpus(f"text {folder}", fingerprint, num_bytes, lambda: _read_files(files))


def _read_files(files: list[Path]) -> Iterator[RawDocument]:
    position = 0
    for file in files:
        try:
            raw = file.read_bytes()
        except OSError as error:
            yield RawDocument(str(file), None, position, _reason(error))
            continue
        position += len(raw)
        yield _decoded(raw, str(file), position)


def _jsonl(path: Path) -> Corpus:
    folder = path if path.is_dir() else path.parent
    files = files_below(path, lambda name: name.endswith((".jsonl", ".jsonl.gz"))) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"training.dataset_path = {str(path)!r} holds no .jsonl or .jsonl.gz file")
    fingerprint, num_bytes = fingerprint_of_files("jsonl 1", folder, files)
    return Corpus(f"jsonl {path}", fingerprint, num_bytes, lambda: _read_lines(files))


def _read_lines(files: list[Path]) -> Iterator[RawDocument]:
    before = 0
    for file in files:
        position, number = before, 0
        try:
            # the compressed file's own place is what the size of the corpus counts
            with open(file, "rb") as raw, gzip.open(raw) if file.suffix == ".gz" else raw as lines:
                for number, line in enumerate(lines, start=1):
                    position = before + raw.tell()
                    if not line.isspace():
                        yield _document_of_line(line, f"{file}:{number}", position)
            before = position
        except (OSError, EOFError) as error:
            yield RawDocument(f"{file}:{number + 1}", None, position, f"{_reason(error)}; the file ends here for us")


def _document_of_line(line: bytes, origin: str, position: int) -> RawDocument:
    try:
        value = json.loads(line)
    except ValueError as error:
        return RawDocument(origin, None, position, _reason(error))
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        return RawDocument(origin, None, position, 'no string under the key "text"')
    return RawDocument(origin, text, position)


def _decoded(raw: bytes, origin: str, position: int) -> RawDocument:
    try:
        return RawDocument(origin, raw.decode("utf-8"), position)
    except UnicodeDecodeError as error:
        return RawDocument(origin, None, position, _reason(error))


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

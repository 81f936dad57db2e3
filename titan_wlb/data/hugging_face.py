"""Documents of a Hugging Face dataset: by its name on the hub, or a local folder that ``datasets`` can load.

Rows are streamed in the order of the dataset's "train" split, so that no second copy of it lands on the disk. A
configuration is named behind a colon: ``Salesforce/wikitext:wikitext-2-raw-v1``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets

from titan_wlb.data.corpora import NAMES, Corpus, RawDocument, files_below, fingerprint_of_files

logger = logging.getLogger(__name__)

COLUMN = "text"
SPLIT = "train"
_SHORT_NAMES = {"c4": "allenai/c4:en"}  # TorchTitan's own


def hugging_face_corpus(name: str, path: str | Path | None, *, memory: Path | None = None) -> Corpus:
    """The "text" column of a dataset's "train" split.

    Args:
        memory: a JSON file in which the fingerprint of a hub dataset is kept. A machine that cannot reach the hub takes
            it from there, so that an index built on another machine is found.

    Raises:
        ValueError: the dataset cannot be loaded, or has no such split or column.
    """
    local = path if path is not None else name
    if Path(local).exists():
        folder = Path(local) if Path(local).is_dir() else Path(local).parent
        files = files_below(folder, lambda _: True) if Path(local).is_dir() else [Path(local)]
        # the kind of file decides how datasets reads it, hence its version
        kind = f"hugging_face 1 {datasets.__version__} {SPLIT} {COLUMN}"
        fingerprint, _ = fingerprint_of_files(kind, folder, files)
        return Corpus(f"Hugging Face {local}", fingerprint, None, lambda: _read_rows(str(local), None))
    if path is not None:
        raise ValueError(f"training.dataset_path = {str(path)!r} does not exist")
    source, _, config = _SHORT_NAMES.get(name, name).partition(":")
    fingerprint = _fingerprint_on_the_hub(source, config or None, memory)
    return Corpus(f"Hugging Face {name}", fingerprint, None, lambda: _read_rows(source, config or None))


@lru_cache
def _fingerprint_on_the_hub(source: str, config: str | None, memory: Path | None) -> str:
    """What the name stands for today on the hub; what it stood for before where the hub cannot be reached."""
    key = f"{source}:{config or ''}"
    try:
        builder = datasets.load_dataset_builder(source, config)
    except ConnectionError as error:
        known = _remembered(memory)
        if key in known:
            logger.warning(f"the Hugging Face hub cannot be reached: taking {source} as it was when it was indexed")
            return known[key]
        raise _cannot_load(source, error) from error
    except Exception as error:  # datasets raises whatever a loader, a parser or the hub raises
        raise _cannot_load(source, error) from error
    described = f"hub 1 {key} {builder.hash} {builder.info.version} {SPLIT} {COLUMN}"
    fingerprint = hashlib.blake2b(described.encode(), digest_size=16).hexdigest()
    known = _remembered(memory)
    if memory is not None and known.get(key) != fingerprint:
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_name(f"{memory.name}.{os.getpid()}")
        part.write_text(json.dumps(known | {key: fingerprint}))
        os.replace(part, memory)
    return fingerprint


def _remembered(memory: Path | None) -> dict[str, str]:
    try:
        return dict(json.loads(memory.read_text())) if memory is not None else {}
    except (OSError, ValueError):
        return {}


def _read_rows(source: str, config: str | None) -> Iterator[RawDocument]:
    number = 0
    try:
        rows: Any = _load(source, config)
        columns = rows.column_names
        if columns is not None and COLUMN not in columns:
            raise ValueError(f"it has no column {COLUMN!r}, only {', '.join(columns)}")
        for number, row in enumerate(rows):
            text = row.get(COLUMN)
            problem = "" if isinstance(text, str) else f"no string in the column {COLUMN!r}"
            yield RawDocument(f"{source} row {number}", None if problem else text, number + 1, problem)
    except Exception as error:  # as above; a stream cannot go on behind a row that it could not read
        raise _cannot_load(source, error, f" (after {number} rows)" if number else "") from error


def _load(source: str, config: str | None) -> Any:
    if Path(source, "state.json").exists() or Path(source, "dataset_dict.json").exists():  # by save_to_disk
        loaded = datasets.load_from_disk(source)
        return loaded[SPLIT] if isinstance(loaded, datasets.DatasetDict) else loaded
    if Path(source).is_file():
        kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
        suffix = Path(source).suffix
        if suffix not in kind:
            raise ValueError(f"a file must end in one of {', '.join(kind)}")
        return datasets.load_dataset(kind[suffix], data_files=source, split=SPLIT, streaming=True)
    return datasets.load_dataset(source, config, split=SPLIT, streaming=True)


def _cannot_load(source: str, error: BaseException, where: str = "") -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(
        f"training.dataset = {source!r} cannot be loaded{where}: {type(error).__name__}: {reason[:300]}; "
        f"allowed: {', '.join(NAMES)}, a Hugging Face name ('owner/name' or 'owner/name:config'), or one of these "
        f"with dataset_path, a local folder"
    )

"""Datasets, tokenizers and folders that a run would look for in vain."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from titan_wlb.data.corpora import NAMES
from titan_wlb.data.tokenizer import FILES, NO_ASSETS, holds_tokenizer
from titan_wlb.job_config import JobConfig

__all__ = ["dataset_problems", "folder_problems", "tokenizer_problems"]

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", re.ASCII)


def tokenizer_problems(config: JobConfig) -> Iterator[str]:
    """A folder of assets without a tokenizer."""
    path = config.model.hf_assets_path
    if path not in NO_ASSETS and not holds_tokenizer(path):
        yield (
            f"model.hf_assets_path = {path!r} holds none of {', '.join(FILES)}; name a folder that does (TorchTitan's "
            "scripts/download_hf_assets.py fetches one), or '' for the built-in tokenizer"
        )


def dataset_problems(config: JobConfig) -> Iterator[str]:
    """Data that is not there, as far as that can be told without reading it."""
    name, path = config.training.dataset, config.training.dataset_path or None
    if path is None and name in ("text", "jsonl"):
        yield f"training.dataset = {name!r} needs training.dataset_path; name the folder or file"
    if path is not None and not os.path.exists(path):
        yield f"training.dataset_path = {path!r} does not exist; name a file or folder that every machine sees"
    if path is not None and name in ("python_stdlib", "text") and not os.path.isdir(path):
        yield f"training.dataset_path = {path!r} is not a folder, which training.dataset = {name!r} needs"
    if path is not None or name in NAMES or os.path.exists(name):
        return
    allowed = f"{', '.join(NAMES)}, or a Hugging Face name ('owner/name' or 'owner/name:config')"
    if not _HUB_NAME.fullmatch(name):
        yield f"training.dataset = {name!r} is not a dataset; allowed: {allowed}, or a local folder"
    if near := get_close_matches(name, NAMES, n=1, cutoff=0.8):
        yield f"training.dataset = {name!r} is not a dataset; did you mean {near[0]!r}? Allowed: {allowed}"


def folder_problems(config: JobConfig) -> Iterator[str]:
    """A dump folder that cannot be made or written."""
    folder = Path(config.job.dump_folder).absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        yield f"job.dump_folder = {config.job.dump_folder!r}: {existing} is not a folder; choose another"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"job.dump_folder = {config.job.dump_folder!r}: {existing} cannot be written; choose another"

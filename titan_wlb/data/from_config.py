"""A job's corpus and index, as its configuration names them; training and tools/prepare_data.py both come here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from titan_wlb.data.corpora import Corpus, build_corpus
from titan_wlb.data.encoders import encoder_of
from titan_wlb.data.index import Index
from titan_wlb.data.index_builder import prepare_index

if TYPE_CHECKING:
    from torchtitan.components.tokenizer import BaseTokenizer
    from torchtitan.config import JobConfig


def index_root(job_config: JobConfig) -> Path:
    """Where a job's indices and trained tokenizers lie."""
    return Path(job_config.job.dump_folder) / "wlb" / "index"


def corpus_from_config(job_config: JobConfig) -> Corpus:
    """The corpus of ``training.dataset`` and ``dataset_path``; ValueError as ``build_corpus``."""
    training = job_config.training
    return build_corpus(training.dataset, training.dataset_path, memory=index_root(job_config) / "hub.json")


def index_from_config(
    job_config: JobConfig,
    tokenizer: BaseTokenizer,
    *,
    root: str | Path | None = None,
    num_processes: int | None = None,
) -> Index:
    """Open the job's index, or build it; as ``prepare_index``, which says what is raised.

    Args:
        tokenizer: of ``build_tokenizer``.
        root: another place than ``index_root``.
    """
    return prepare_index(
        corpus_from_config(job_config),
        encoder_of(tokenizer),
        root if root is not None else index_root(job_config),
        num_processes=num_processes,
        on_bad_document=job_config.wlb.on_bad_document,
    )

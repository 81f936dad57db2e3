"""A job's corpus and index, as its configuration names them; training and tools/prepare_data.py both come here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from titan_wlb.data.background import BackgroundBuilder, Request
from titan_wlb.data.corpora import Corpus, build_corpus
from titan_wlb.data.encoders import Encoder, encoder_of
from titan_wlb.data.growing import GrowingIndex, complete_index, index_folder
from titan_wlb.data.index import Index
from titan_wlb.data.index_builder import IndexBuilder

if TYPE_CHECKING:
    from torchtitan.components.tokenizer import BaseTokenizer
    from torchtitan.config import JobConfig


def index_root(job_config: JobConfig) -> Path:
    """Where a job's indices and trained tokenizers lie."""
    return Path(job_config.job.dump_folder) / "wlb" / "index"


def corpus_from_config(job_config: JobConfig) -> Corpus:
    """The corpus of ``training.dataset`` and ``dataset_path``; ValueError as ``build_corpus``."""
    training = job_config.training
    return build_corpus(training.dataset, training.dataset_path, memory=_memory(job_config))


def index_from_config(job_config: JobConfig, tokenizer: BaseTokenizer, *, num_processes: int | None = None) -> Index:
    """Open the job's whole index, or build it.

    Args:
        tokenizer: of ``build_tokenizer``.
        num_processes: worker processes; None for one per core, at most 16.

    Raises:
        ValueError: the corpus cannot be read, holds no document at all, or a bad one with on_bad_document "stop".
    """
    return complete_index(_builder(job_config, corpus_from_config(job_config), encoder_of(tokenizer), num_processes))


def growing_index_from_config(job_config: JobConfig, tokenizer: BaseTokenizer) -> GrowingIndex:
    """Open the job's index, of which the first segment is there or is built now; errors as ``index_from_config``."""
    corpus, encoder = corpus_from_config(job_config), encoder_of(tokenizer)
    builder = _builder(job_config, corpus, encoder, None)
    training, wlb = job_config.training, job_config.wlb
    request = Request(
        dataset=training.dataset,
        dataset_path=training.dataset_path,
        memory=str(_memory(job_config)),
        corpus_fingerprint=corpus.fingerprint,
        encoder=Request.pack(encoder),
        folder=str(builder.folder),
        segment_tokens=wlb.segment_tokens,
        num_processes=None,
        on_bad_document=wlb.on_bad_document,
    )
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    background = BackgroundBuilder(request) if is_first else None
    return GrowingIndex(builder, background, wlb.segment_tokens, wlb.on_bad_document)


def _builder(job_config: JobConfig, corpus: Corpus, encoder: Encoder, num_processes: int | None) -> IndexBuilder:
    wlb = job_config.wlb
    return IndexBuilder(
        corpus,
        encoder,
        index_folder(index_root(job_config), corpus.fingerprint, encoder.fingerprint, wlb.segment_tokens),
        segment_tokens=wlb.segment_tokens,
        num_processes=num_processes,
        on_bad_document=wlb.on_bad_document,
    )


def _memory(job_config: JobConfig) -> Path:
    """What Hugging Face names stood for when they were indexed."""
    return index_root(job_config) / "hub.json"

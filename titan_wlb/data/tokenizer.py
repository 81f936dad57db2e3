"""The tokenizer of a job: a Hugging Face one from files, or a built-in one that needs no download.

model.hf_assets_path holds a tokenizer    TorchTitan's HuggingFaceTokenizer
flavor's vocab_size is 258                bytes, BOS and EOS
flavor's vocab_size is larger             a byte-level BPE of this size, trained once on the job's own corpus and kept
                                          beside its index
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
from torchtitan.components.tokenizer import BaseTokenizer, HuggingFaceTokenizer
from torchtitan.config import JobConfig
from torchtitan.config.job_config import Model
from torchtitan.protocols.train_spec import get_train_spec

from titan_wlb.data.corpora import problem_of
from titan_wlb.data.encoders import BYTES, BpeEncoder, ByteEncoder, train_bpe
from titan_wlb.data.from_config import corpus_from_config, index_root
from titan_wlb.data.once import built_once

FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # what TorchTitan's HuggingFaceTokenizer can read

# what model.hf_assets_path says where nobody set it, or somebody wants the built-in tokenizer
NO_ASSETS = ("", next(str(field.default) for field in dataclasses.fields(Model) if field.name == "hf_assets_path"))


def holds_tokenizer(folder: str) -> bool:
    """Whether TorchTitan's tokenizer can be read from a folder."""
    return any(Path(folder, name).exists() for name in FILES)


class BuiltInTokenizer(BaseTokenizer):
    """A built-in encoder with TorchTitan's interface.

    Args:
        encoder: does the work, and can travel to other processes.
    """

    def __init__(self, encoder: ByteEncoder | BpeEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.bos_id, self.eos_id = encoder.bos_id, encoder.eos_id

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """Tokens of a text."""
        return [self.bos_id] * add_bos + self.encoder.encode(text) + [self.eos_id] * add_eos

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of tokens; BOS and EOS vanish."""
        return self.encoder.decode(token_ids)

    def get_vocab_size(self) -> int:
        """Tokens lie below this."""
        return self.encoder.vocab_size


def build_tokenizer(job_config: JobConfig) -> BaseTokenizer:
    """The tokenizer of this job, for ``TrainSpec.build_tokenizer_fn``.

    Any number of processes may call this at the same time; where a BPE has to be trained, one does it and the others
    wait, without a collective.

    Raises:
        ValueError: a path without a tokenizer, or a vocabulary that the model cannot hold; in one line.
    """
    model = job_config.model
    vocab_size = int(get_train_spec(model.name).model_args[model.flavor].vocab_size)
    if model.hf_assets_path and holds_tokenizer(model.hf_assets_path):
        tokenizer = HuggingFaceTokenizer(model.hf_assets_path)
        largest = max(tokenizer.get_vocab().values())
        if largest >= vocab_size:
            raise ValueError(
                f"model.hf_assets_path = {model.hf_assets_path!r} has token ids up to {largest:,}, but flavor "
                f"{model.flavor!r} only a vocabulary of {vocab_size:,}"
            )
        return tokenizer
    if model.hf_assets_path not in NO_ASSETS:
        raise ValueError(
            f"model.hf_assets_path = {model.hf_assets_path!r} holds none of {', '.join(FILES)}; "
            "'' takes the built-in tokenizer"
        )
    smallest = BYTES + 2
    if vocab_size < smallest:
        raise ValueError(
            f"model.flavor = {model.flavor!r} has a vocabulary of {vocab_size}; the built-in tokenizer needs at "
            f"least {smallest} (the bytes, BOS and EOS)"
        )
    return BuiltInTokenizer(ByteEncoder() if vocab_size == smallest else _bpe(job_config, vocab_size))


def _bpe(job_config: JobConfig, vocab_size: int) -> BpeEncoder:
    corpus = corpus_from_config(job_config)
    described = hashlib.blake2b(f"bpe 1 {vocab_size} {corpus.fingerprint}".encode(), digest_size=16).hexdigest()
    texts = (document.text for document in corpus if document.text is not None and not problem_of(document))
    return built_once(
        index_root(job_config) / f"tokenizer-{described}.json",
        BpeEncoder,
        lambda part: train_bpe(texts, vocab_size, part),
        f"tokenizer of {vocab_size:,} tokens",
    )

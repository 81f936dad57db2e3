"""Text to tokens, many documents at a time; what the index is built with.

These objects travel to worker processes, so this file imports neither torch nor TorchTitan (tokenizer.py gives them
TorchTitan's interface). All of them put BOS and EOS around a document.

    "ab"  ->  [256, 97, 98, 257]      ByteEncoder: 256 bytes, BOS, EOS
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from titan_wlb.data.once import DamagedError

BYTES = 256
SAMPLE_CHARACTERS = 64 << 20  # what a BPE is trained on, from the corpus's beginning


class Encoder(Protocol):
    """Tokens of documents.

    Attributes:
        fingerprint: hex; equal if and only if the tokens of every text are.
        vocab_size: tokens lie in [0, vocab_size).
        num_special: how many of BOS and EOS every document gets.
    """

    fingerprint: str
    vocab_size: int
    num_special: int

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its tokens, BOS and EOS included, in an integer array.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        ...


class ByteEncoder:
    """A token per byte of UTF-8, then BOS (256) and EOS (257)."""

    fingerprint = "bytes 1"
    vocab_size = BYTES + 2
    num_special = 2
    bos_id = BYTES
    eos_id = BYTES + 1

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        documents = []
        for text in texts:
            raw = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
            document = np.empty(len(raw) + 2, dtype=np.uint16)
            document[0], document[1:-1], document[-1] = self.bos_id, raw, self.eos_id
            documents.append(document)
        return documents

    def encode(self, text: str) -> list[int]:
        """Tokens without BOS and EOS."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """Text without BOS and EOS; broken UTF-8 is replaced."""
        return bytes(i for i in ids if i < BYTES).decode("utf-8", errors="replace")


class BpeEncoder:
    """A byte-level BPE of the ``tokenizers`` library, stored in one file; BOS and EOS lie behind its vocabulary.

    BOS and EOS are no strings, so that no document can forge them.

    Args:
        path: what ``train_bpe`` wrote.
    """

    num_special = 2

    def __init__(self, path: str | Path) -> None:
        from tokenizers import Tokenizer

        stored = Path(path).read_text(encoding="utf-8")
        try:
            self._tokenizer = Tokenizer.from_str(stored)
        except Exception as error:  # the library raises bare Exceptions
            raise DamagedError(f"the tokenizer {path} is damaged ({error})") from error
        self._path = str(path)
        size = self._tokenizer.get_vocab_size()
        self.bos_id, self.eos_id, self.vocab_size = size, size + 1, size + 2
        self.fingerprint = f"bpe 1 {hashlib.blake2b(stored.encode(), digest_size=16).hexdigest()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return BpeEncoder, (self._path,)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast([_encodable(text) for text in texts], add_special_tokens=False)
        return [np.array([self.bos_id, *encoding.ids, self.eos_id], dtype=np.uint32) for encoding in encodings]

    def encode(self, text: str) -> list[int]:
        """Tokens without BOS and EOS."""
        return list(self._tokenizer.encode(_encodable(text), add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text without BOS and EOS; broken UTF-8 is replaced."""
        return str(self._tokenizer.decode([i for i in ids if i < self.bos_id]))


class HuggingFaceEncoder:
    """What TorchTitan's HuggingFaceTokenizer makes of a document with ``add_bos=True, add_eos=True``.

    Args:
        folder: with tokenizer.json and, for BOS and EOS, tokenizer_config.json.
    """

    def __init__(self, folder: str | Path) -> None:
        import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

        # isort: split
        from torchtitan.components.tokenizer import HuggingFaceTokenizer

        self._folder = str(folder)
        tokenizer = HuggingFaceTokenizer(self._folder)
        self._tokenizer = tokenizer.tokenizer
        # a document is neither cut nor filled up, whatever the file was last used for
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        adds = self._tokenizer.encode("").ids
        self._before = [] if tokenizer.bos_id is None or tokenizer.bos_id in adds else [tokenizer.bos_id]
        self._after = [] if tokenizer.eos_id is None or tokenizer.eos_id in adds else [tokenizer.eos_id]
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.num_special = len(adds) + len(self._before) + len(self._after)
        described = f"hugging face 1 {self._before} {self._after} {self._tokenizer.to_str()}"
        self.fingerprint = hashlib.blake2b(described.encode(), digest_size=16).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return HuggingFaceEncoder, (self._folder,)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast([_encodable(text) for text in texts])
        return [np.array([*self._before, *encoding.ids, *self._after], dtype=np.uint32) for encoding in encodings]


def train_bpe(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Train a byte-level BPE on the first 64 Mi characters and store it; the same texts give the same file.

    Args:
        vocab_size: with BOS and EOS; at least 258, which is the bytes alone. Few texts may give fewer tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(texts), trainer)
    path.write_text(tokenizer.to_str(), encoding="utf-8")


def encoder_of(tokenizer: Any) -> Encoder:
    """What encodes documents as this tokenizer (of ``build_tokenizer``) does."""
    encoder = getattr(tokenizer, "encoder", None)
    return encoder if encoder is not None else HuggingFaceEncoder(tokenizer.tokenizer_path)


def _sample(texts: Iterable[str]) -> Iterator[str]:
    taken = 0
    for text in texts:
        if taken >= SAMPLE_CHARACTERS:
            return
        taken += len(text)
        yield text


def _encodable(text: str) -> str:
    text.encode("utf-8")  # the library aborts on a lone surrogate
    return text

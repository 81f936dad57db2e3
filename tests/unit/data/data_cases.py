"""Small corpora, indices and planners that the tests of data/ share."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from titan_wlb.data.corpora import Corpus, RawDocument
from titan_wlb.data.encoders import ByteEncoder, Encoder
from titan_wlb.data.growing import complete_index
from titan_wlb.data.index import Index
from titan_wlb.data.index_builder import IndexBuilder
from titan_wlb.planning.planner import Planner, PlannerConfig
from titan_wlb.planning.workload import Workload


def corpus_of(texts: Sequence[str | None], name: str = "texts") -> Corpus:
    """A corpus in memory; None is a document that cannot be read."""

    def read():
        for place, text in enumerate(texts):
            yield RawDocument(f"document {place}", text, place + 1, "" if text is not None else "unreadable")

    return Corpus(name, repr(texts), None, read)


def builder_of(
    texts: Sequence[str | None], folder: Path, encoder: Encoder | None = None, segment_tokens: int = 1 << 28, **kwargs
) -> IndexBuilder:
    """Builds an index of the texts, by default of bytes: each is two tokens longer than its text."""
    encoder = encoder or ByteEncoder()
    return IndexBuilder(corpus_of(texts), encoder, folder, segment_tokens=segment_tokens, **kwargs)


def index_of(texts: Sequence[str | None], folder: Path, **kwargs) -> Index:
    """The whole index of a ``builder_of``."""
    return complete_index(builder_of(texts, folder, **kwargs))


def lengths_of(index: Index) -> list[int]:
    """Tokens of all documents."""
    return [length for segment in index.segments() for length in segment.lengths().tolist()]


def fingerprints_of(index: Index) -> list[str]:
    """Of all segments."""
    return [segment.fingerprint for segment in index.segments()]


def random_texts(number: int, longest: int = 60, seed: int = 0) -> list[str]:
    """Texts of printable ASCII, a byte a character."""
    source = random.Random(seed)
    return ["".join(map(chr, source.choices(range(33, 127), k=source.randint(1, longest)))) for _ in range(number)]


def planner_of(index: Index, *, dp: int = 1, cp: int = 1, **changes) -> Planner:
    """Four micro-batches of a window of 48 tokens, two outlier queues."""
    values = {
        "packing": "variable_length",
        "num_micro_batches": 4,
        "context_window": 48,
        "max_tokens": 96,
        "workload": Workload(0, 48, 1, 48),
        "outlier_thresholds": (24, 40),
        "seed": 7,
    }
    return Planner(index, PlannerConfig(**(values | changes)), dp=dp, cp=cp)


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path

"""Writes the documents of the parity tests, always the same bytes: python tests/documents/make_documents.py

Lengths are in tokens of the byte tokenizer (UTF-8 bytes, BOS and EOS) and meant for a window of 128.

parity.jsonl       3, 5, 7        shorter than 2 x CP for CP 2 and CP 4
                   128            fills the window
                   302            longer than the window: pieces of 128, 128 and 46
                   the others     primes, which divide by neither TP, CP nor a chunk
exact_fit.jsonl    drawn with seed 0 they fill one window after the other, so that no packing cuts a document
"""

import json
import random
from pathlib import Path

from titan_wlb.planning.shuffle import Shuffle

WINDOW = 128
SPECIAL = (3, 3, 5, 5, 7, 7, WINDOW, WINDOW, 302)
PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)
EXACT_FIT = ((101, 20, 7), (64, 61, 3), (89, 39), (53, 47, 23, 5))  # a window each
BOS_AND_EOS = 2

SUBJECTS = ("the planner", "a late rank", "one long document", "every stage", "the queue", "a short note", "the clock")
VERBS = ("waits for", "cuts", "carries", "measures", "repeats", "drops", "counts")
OBJECTS = ("its neighbour's keys", "two chunks", "the café's ledger", "seven rows", "a window", "the naïve order")
NAMES = ("rows", "work", "share", "stage", "chunk", "queue", "token")


def main() -> None:
    """Writes the files beside this script."""
    random_ = random.Random(20250101)
    lengths = [*SPECIAL, *PRIMES, *PRIMES]
    random_.shuffle(lengths)
    write("parity.jsonl", lengths, random_)

    exact_fit = [length for window in EXACT_FIT for length in window]
    write("exact_fit.jsonl", drawn_as(exact_fit), random_)


def drawn_as(lengths: list[int]) -> list[int]:
    """In the order of a file from which the first epoch with seed 0 draws them as given."""
    ids = Shuffle(len(lengths), 0, 0, 0).ids(0, len(lengths)).tolist()
    return [lengths[ids.index(id)] for id in range(len(lengths))]


def write(name: str, lengths: list[int], random_: random.Random) -> None:
    """A line of JSON per document."""
    texts = [text_of(length - BOS_AND_EOS, random_) for length in lengths]
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    Path(__file__).with_name(name).write_text("".join(lines), encoding="utf-8")


def text_of(num_bytes: int, random_: random.Random) -> str:
    """Prose or code of exactly so many bytes of UTF-8."""
    write = random_.choice((sentence, statement))
    text = ""
    while len(text.encode()) < num_bytes:
        text += write(random_)
    # a cut inside a character leaves it out; points fill what is then missing
    text = text.encode()[:num_bytes].decode(errors="ignore")
    return text + "." * (num_bytes - len(text.encode()))


def sentence(random_: random.Random) -> str:
    """A line of prose."""
    text = f"{random_.choice(SUBJECTS)} {random_.choice(VERBS)} {random_.choice(OBJECTS)}. "
    return text[0].upper() + text[1:]


def statement(random_: random.Random) -> str:
    """A line of code."""
    left, right = random_.sample(NAMES, 2)
    return f"{left} = {right} * {random_.randrange(100)} + {random_.choice(NAMES)}[{random_.randrange(10)}]\n"


if __name__ == "__main__":
    main()

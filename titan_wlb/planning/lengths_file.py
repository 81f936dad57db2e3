"""Document lengths in a text file: one a line, or a JSON array. The order is that of arrival."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from titan_wlb.planning.lengths import check_lengths


def read_lengths(path: str | Path) -> npt.NDArray[np.int64]:
    """Tokens of each document, int64 [documents], at least one.

    Raises:
        ValueError: the file cannot be read or holds something else; one line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if text.lstrip().startswith("[") else [int(line) for line in text.split()]
        lengths = np.array(values)
        if lengths.ndim != 1 or lengths.dtype.kind != "i":
            raise ValueError
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(
            f"{path} must hold lengths in tokens, one a line or as a JSON array, at least one of them"
        ) from None
    lengths = lengths.astype(np.int64)
    check_lengths(lengths)
    return lengths

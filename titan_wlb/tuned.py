"""What the configuration leaves to us ("auto"): tuned once on the run's own lengths, and kept beside its index."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from titan_wlb.data.index import Index
from titan_wlb.data.once import DamagedError, built_once
from titan_wlb.job_config import WLB
from titan_wlb.planning.digest import digest_of_values
from titan_wlb.planning.packing.auto import TUNED_FIELDS, tune_config
from titan_wlb.planning.packing.tuning import MAX_EVALUATIONS
from titan_wlb.planning.planner import PlannerConfig

logger = logging.getLogger(__name__)

_VERSION = 1  # of the search: another may choose otherwise
_KEYS = {"variable_length": "outlier_thresholds", "lookahead": "balance_tolerance"}  # what may be "auto", in [wlb]


def tune(config: PlannerConfig, wlb: WLB, index: Index) -> PlannerConfig:
    """``config`` with the knob of its packer tuned, where [wlb] says "auto"; otherwise as it is.

    Any number of ranks may call this at the same time: one on a disk tunes, the others wait for its file.

    Args:
        index: whose first segment is what is tuned on.
    """
    key = _KEYS.get(config.packing)
    if key is None or getattr(wlb, key) != "auto":
        return config
    limit = wlb.max_delay_iterations
    described = digest_of_values(_VERSION, config.to_json(), limit)
    chosen = built_once(
        index.folder / f"tuned-{described}.json",
        _read,
        lambda part: _tune(part, config, limit, index),
        f"choice of wlb.{key}",
    )
    knob, beyond = chosen["knob"], "" if chosen["delay"] <= limit else f"; no choice stays below {limit}"
    logger.info(
        f"wlb.{key} = 'auto' is {knob if isinstance(knob, list) else knob / 1_000_000}: imbalance "
        f"{chosen['imbalance']:.4f} at a delay of {chosen['delay']:.3f} iterations on a sample of the documents{beyond}"
    )
    return replace(config, **{TUNED_FIELDS[config.packing]: tuple(knob) if isinstance(knob, list) else knob})


def _tune(part: Path, config: PlannerConfig, limit: float, index: Index) -> None:
    segment = index.segment(0)
    assert segment is not None, "an index has a first segment"
    with tqdm(
        total=MAX_EVALUATIONS,
        desc=f"tuning wlb.{_KEYS[config.packing]}",
        unit="trial",
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    ) as bar:
        _, tuned = tune_config(config, segment.lengths(), limit, on_try=lambda tried: bar.update())
        bar.total = bar.n
    best = tuned.best
    part.write_text(json.dumps({"knob": best.knob, "imbalance": best.imbalance, "delay": best.delay}))


def _read(path: Path) -> dict[str, Any]:
    try:
        chosen: dict[str, Any] = json.loads(path.read_text())
        if {"knob", "imbalance", "delay"} - chosen.keys():
            raise ValueError("it lacks a value")
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged ({error})") from error
    return chosen

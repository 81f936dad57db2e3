"""One step: what each micro-batch held, and what each rank did when.

A step's plan and actions are large and not written for each logged step; of the steps that have them the nearest one is
shown. What lies in the event file is checked before it goes to the page: ``titan_wlb.metrics.step_view`` describes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

VERSION = 1
_OF_PLAN = {"step": int, "packing": str, "context_window": int, "micro_batches": list}
_OF_MICRO_BATCH = {"dp_rank": int, "place": int, "tokens": int, "num_documents": int}
_OF_ACTIONS = {"step": int, "num_ranks": int, "fields": list, "ranks": list}


def step_view(plans: Mapping[int, str], actions: Mapping[int, str], step: int) -> dict[str, Any]:
    """The step that has a plan or actions and is nearest to ``step``.

    Returns:
        {"step": ..., "written": [all such steps], "plan": {...} or None, "actions": {...} or None, "note": str or None}
    """
    written = sorted({*plans, *actions})
    if not written:
        return {"step": step, "written": [], "plan": None, "actions": None, "note": None}
    nearest = min(written, key=lambda at: (abs(at - step), at))
    notes: list[str] = []
    plan = _checked("plan", plans.get(nearest), _OF_PLAN, notes)
    if plan is not None and not all(_has(row, _OF_MICRO_BATCH) for row in plan["micro_batches"]):
        plan = None
        notes.append("a micro-batch of the plan is none")
    told = _checked("actions", actions.get(nearest), _OF_ACTIONS, notes)
    if told is not None and not all(_has(row, {"rank": int, "actions": list}) for row in told["ranks"]):
        told = None
        notes.append("a rank of the actions is none")
    return {"step": nearest, "written": written, "plan": plan, "actions": told, "note": "; ".join(notes) or None}


def _checked(name: str, text: str | None, known: Mapping[str, type], notes: list[str]) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        notes.append(f"the {name} of this step is no JSON")
        return None
    if not isinstance(values, dict) or values.get("version") != VERSION:
        notes.append(f"the {name} of this step is of another version than {VERSION}")
    elif not _has(values, known):
        notes.append(f"the {name} of this step lacks {', '.join(known)}")
    else:
        return values
    return None


def _has(values: Any, known: Mapping[str, type]) -> bool:
    return isinstance(values, dict) and all(isinstance(values.get(name), kind) for name, kind in known.items())

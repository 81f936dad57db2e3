"""Checkpoints that cannot be loaded, and settings that TorchTitan would find impossible when it saves the last step."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from titan_wlb.job_config import JobConfig

__all__ = ["checkpoint_problems"]

# what TorchTitan calls the parts of a checkpoint
_PARTS = ("model", "optimizer", "lr_scheduler", "dataloader", "train_state")
# those that count steps
_COUNTING = {"lr_scheduler", "dataloader", "train_state"}


def checkpoint_problems(config: JobConfig) -> Iterator[str]:
    """What TorchTitan would find while it loads, or, worse, while it saves the last step."""
    checkpoint = config.checkpoint
    if checkpoint.create_seed_checkpoint and (not checkpoint.enable or checkpoint.load_only):
        yield (
            "checkpoint.create_seed_checkpoint = true saves nothing: set checkpoint.enable = true and "
            "checkpoint.load_only = false"
        )
    if not checkpoint.enable:
        return
    if checkpoint.keep_latest_k == 1:
        yield "checkpoint.keep_latest_k = 1 is not possible, the last one may still be written; use 0 (all), 2 or more"
    if checkpoint.last_save_in_hf and not checkpoint.last_save_model_only:
        yield (
            "checkpoint.last_save_in_hf = true saves the model alone; set checkpoint.last_save_model_only = true, or "
            "remove it"
        )
    for key in ("last_save_in_hf", "initial_load_in_hf"):
        if getattr(checkpoint, key) and find_spec("safetensors") is None:
            yield f"checkpoint.{key} = true needs the package safetensors; install it (pip install safetensors)"
    yield from _excluded(config)
    folder = Path(config.job.dump_folder, checkpoint.folder)
    yield from _resume(config, folder) if folder.is_dir() else _initial_load(config)


def _resume(config: JobConfig, folder: Path) -> Iterator[str]:
    """A run that goes on from its own checkpoints."""
    checkpoint = config.checkpoint
    steps = _saved_steps(folder)
    step = checkpoint.load_step
    if step != -1 and step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
        yield f"checkpoint.load_step = {step} is not in {folder}: {there}; use -1 for the latest"
    latest = max(steps, default=0) if step == -1 else step
    others = set(_PARTS[1:]) - set(checkpoint.exclude_from_loading)
    if latest and others and not _is_whole(folder / f"step-{latest}"):
        before = [saved for saved in steps if saved < latest]
        yield (
            f"checkpoint: {folder}/step-{latest} holds the model alone, as the last step does with "
            f"last_save_model_only = true, and a run cannot go on from it; "
            + (f"use checkpoint.load_step = {max(before)}, or " if before else "")
            + "another job.dump_folder with checkpoint.initial_load_path"
        )


def _saved_steps(folder: Path) -> list[int]:
    """Steps that TorchTitan would find, in either of its formats."""
    marks = (".metadata", "model.safetensors.index.json")
    names = [place.name for place in folder.iterdir() if any((place / mark).is_file() for mark in marks)]
    return sorted(int(found[1]) for name in names if (found := re.search(r"step-(\d+)", name)))


def _is_whole(folder: Path) -> bool:
    """Whether more than the model was saved: then the names of what was saved tell of the training state."""
    metadata = folder / ".metadata"
    if not metadata.is_file() or not metadata.stat().st_size:
        return False
    with open(metadata, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as names:
        return names.find(b"train_state.") != -1


def _excluded(config: JobConfig) -> Iterator[str]:
    excluded = config.checkpoint.exclude_from_loading
    if unknown := [part for part in excluded if part not in _PARTS]:
        yield f"checkpoint.exclude_from_loading = {excluded} holds {unknown[0]!r}; there are {', '.join(_PARTS)}"
    if {"dataloader", "train_state"} & set(excluded) and not set(excluded) >= _COUNTING:
        yield (
            f"checkpoint.exclude_from_loading = {excluded} would count steps from two places; exclude 'dataloader', "
            "'train_state' and 'lr_scheduler' together"
        )


def _initial_load(config: JobConfig) -> Iterator[str]:
    """A run that starts from another run's checkpoint, or from Hugging Face weights."""
    checkpoint = config.checkpoint
    if checkpoint.initial_load_in_hf and not checkpoint.initial_load_model_only:
        yield (
            "checkpoint.initial_load_in_hf = true loads the model alone; set checkpoint.initial_load_model_only = "
            "true, or remove it"
        )
    if checkpoint.initial_load_path and not os.path.isdir(checkpoint.initial_load_path):
        yield (
            f"checkpoint.initial_load_path = {checkpoint.initial_load_path!r} is not a folder; name a checkpoint, its "
            "step-<number> included"
        )
    if checkpoint.initial_load_in_hf and not os.path.isdir(checkpoint.initial_load_path or config.model.hf_assets_path):
        yield (
            "checkpoint.initial_load_in_hf = true finds no weights: neither checkpoint.initial_load_path nor "
            "model.hf_assets_path is a folder; name one"
        )

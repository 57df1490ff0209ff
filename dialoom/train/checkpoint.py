"""Checkpoints of a training: safetensors and JSON in a folder of their own, with a manifest of hashes. No pickle.

A folder is written under another name, synced and renamed, so a checkpoint is there whole or not at all; one whose
files do not match their hashes is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dialoom.errors import StoreError
from dialoom.files import read_json, sync
from dialoom.store import write_whole

Tensors = dict[str, Tensor]
WEIGHTS, OPTIMIZER, STATE, MANIFEST = "weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found whole.

    Attributes:
        state: counters and what else is JSON.
    """

    step: int
    weights: Tensors
    optimizer: Tensors
    state: dict[str, Any]


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def save(root: Path, step: int, weights: Tensors, optimizer: Tensors, state: dict[str, Any]) -> Path:
    """Write the checkpoint of a step, in place of an older one of that step.

    Raises: StoreError: if it cannot be written; what was there before is then untouched.
    """
    final = folder_of(root, step)
    draft = root / f".{final.name}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, draft / WEIGHTS)
        save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, draft / OPTIMIZER)
        for name in (WEIGHTS, OPTIMIZER):
            sync(draft / name)
        write_whole(draft / STATE, json.dumps(state, indent=1))
        hashes = {name: _hash(draft / name) for name in (WEIGHTS, OPTIMIZER, STATE)}
        write_whole(draft / MANIFEST, json.dumps(hashes, indent=1))
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
        sync(root)
    except (OSError, SafetensorError) as wrong:  # the latter is what a full disk is called by safetensors
        shutil.rmtree(draft, ignore_errors=True)
        raise StoreError(f"{final}: cannot be written ({getattr(wrong, 'strerror', None) or wrong}); make room and run "
                         "the same command again") from None
    return final


def load(root: Path, step: int) -> Checkpoint | None:
    """The checkpoint of a step, or None if it is missing or damaged."""
    folder = folder_of(root, step)
    try:
        hashes = read_json(folder / MANIFEST, dict)
        if set(hashes) != {WEIGHTS, OPTIMIZER, STATE} or any(_hash(folder / name) != hashes[name] for name in hashes):
            return None
        state = read_json(folder / STATE, dict)
    except OSError:
        return None
    return Checkpoint(step, load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER), state)


def load_newest(root: Path) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are named in a warning and passed over."""
    for step in reversed(steps(root)):
        found = load(root, step)
        if found is not None:
            return found
        warnings.warn(f"{folder_of(root, step)}: checkpoint is damaged; going back to the one before it", stacklevel=2)
    return None


def steps(root: Path) -> list[int]:
    """Steps with a checkpoint, damaged ones included, oldest first."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in root.glob("step-*") if folder.is_dir())


def prune(root: Path, keep: Collection[int]) -> None:
    """Remove the checkpoints of all other steps, and drafts that a kill left behind."""
    for step in set(steps(root)) - set(keep):
        shutil.rmtree(folder_of(root, step), ignore_errors=True)
    for draft in root.glob(".step-*.tmp"):
        shutil.rmtree(draft, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

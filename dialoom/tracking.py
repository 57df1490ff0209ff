"""Curves and results for tensorboard, wandb or trackio, while a run computes; its own files are written anyhow.

Which tracker is told is a matter of the process, as with the ledger of endpoints: no recipe hands it to every training.
Each training's rows are named by its folder in the run (`pbt/dpo/loss`), each result by what was measured.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from dialoom.errors import ConfigError

Tracker = Literal["none", "tensorboard", "wandb", "trackio"]
PACKAGES = {"tensorboard": ("tensorboardX", "tensorboard"), "wandb": ("wandb",), "trackio": ("trackio",)}
PROJECT = "dialoom"

_current: list[_Run] = []


def check_tracker(name: str) -> None:
    """Raise ConfigError if a tracker's package is not installed; nothing is imported."""
    if name != "none" and not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
        raise ConfigError(f"--report-to {name} needs {PACKAGES[name][0]}; pip install 'dialoom[{name}]', or leave "
                          "--report-to out")


@contextmanager
def tracked(name: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Tell a tracker of every training and every result until the block ends.

    Args:
        name: one of `Tracker`.
        folder: the run's; names the tracker's run, and takes what tensorboard and an offline wandb write.
        settings: shown beside the curves.
    Raises: ConfigError: if the tracker's package is not installed.
    """
    check_tracker(name)
    if name == "none":
        yield
        return
    run = _Run(name, folder, settings)
    _current.append(run)
    try:
        yield
    finally:
        _current.remove(run)
        run.backend.finish()


def note(out: Path, row: Mapping[str, Any]) -> None:
    """Tell the tracker, if there is one, a row of the metrics of the training whose folder is `out`."""
    for run in _current[-1:]:
        run.training(out, row)


def note_results(rows: Iterable[Mapping[str, Any]]) -> None:
    """Tell the tracker, if there is one, rows of `results.json`."""
    for run in _current[-1:]:
        run.backend.log({f"{row['eval']}/{row['subject']}/{row['metric']}": float(row["value"]) for row in rows
                         if isinstance(row["value"], int | float) and math.isfinite(row["value"])}, 0)


class _Backend(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class _Run:
    """A run as a tracker sees it."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder.resolve()
        told = dict(_flat(settings))
        self.backend: _Backend = (_Tensorboard(self.folder, told) if name == "tensorboard" else
                                  _Hosted(name, self.folder, told))

    def training(self, out: Path, row: Mapping[str, Any]) -> None:
        place = out.resolve()
        parts = place.relative_to(self.folder).parts if place.is_relative_to(self.folder) else (place.name,)
        prefix = "/".join(part for part in parts if part != "work") or "training"
        told = {f"{prefix}/{key}": float(value) for key, value in row.items()
                if isinstance(value, int | float) and math.isfinite(value)}
        self.backend.log(told, int(row.get("step", 0)))


class _Tensorboard:
    """Event files in the run's `tensorboard/`, by tensorboardX or by torch with tensorboard."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        own = importlib.util.find_spec("tensorboardX") is not None
        writer = importlib.import_module("tensorboardX" if own else "torch.utils.tensorboard").SummaryWriter
        self.writer = writer(str(folder / "tensorboard"))
        self.writer.add_text("settings", "\n".join(f"- {name}: {value}" for name, value in settings.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self) -> None:
        self.writer.close()


class _Hosted:
    """wandb or trackio: one run of theirs for each run folder, which a restart goes on with.

    Several trainings each count from 1, and their runs want steps that only grow; so the step is a value of its own.
    """

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        package = importlib.import_module(name)
        more: dict[str, Any] = {"project": PROJECT}
        if name == "wandb":
            more = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "dir": str(folder),
                    "id": hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()}
            if not os.environ.get("WANDB_MODE") and not package.api.api_key:
                more["mode"] = "offline"  # nobody to ask for a key: `wandb sync` sends it later
        self.run = package.init(name=folder.name, config=dict(settings), resume="allow", **more)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if values:
            self.run.log(dict(values))

    def finish(self) -> None:
        self.run.finish()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str | int | float) else str(value)

"""Sweeps of DAT's up-mapping and sizes over a run's settings: mapping, prefix tokens, numbers in an action, its length.

Each point is a run of its own in `sweep/` of the run's folder, trained from the run's settings with one of them changed
and measured on validation scenes, never on held-out ones. A length needs no mapping of its own: the run's is used. What
the run itself has is not trained again: its planner is measured on the same scenes, and so is the unsteered model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dialoom.config import load_config
from dialoom.errors import ConfigError
from dialoom.recipes import dat
from dialoom.recipes.dat_config import DatConfig
from dialoom.recipes.dat_eval import PLANNER, UNSTEERED
from dialoom.recipes.run import RunFolder, value_of

SETTINGS = ("mapping", "tokens", "action", "norm")
OWN = "own"
"""Folder, beside those of the points, of what the run's own planner said."""

Log = Callable[[str], None]


def points(config: DatConfig, folder: Path, own: Mapping[str, Any], log: Log = print) -> dict[str, DatConfig]:
    """The settings of every point by its name, without those that are the run's `own`; what cannot be is told."""
    found = {}
    for name, value in _values(config):
        if value == own[name]:
            continue
        changes: dict[str, Any] = {name: value, "transfer": (), "harden": False, "replays": (), "upmap": ""}
        if name == "norm":
            changes["upmap"] = config.upmap or str(folder)
        if name == "norm" or value == "pca":  # nothing is cloned
            changes["clone.data"] = ""
        try:
            found[_point(name, value)] = load_config(DatConfig, config, overrides=changes)
        except ConfigError as wrong:
            log(f"sweep, {_point(name, value)} is left out: {wrong}")
    return found


def _values(config: DatConfig) -> list[tuple[str, Any]]:
    return [(name, value) for name in SETTINGS for value in getattr(config.sweep, name)]


def _point(name: str, value: Any) -> str:
    return f"{name}={value}" if isinstance(value, str) else f"{name}={value:g}"


def sweep(folder: Path, log: Log = print) -> None:
    """Train and measure every point; rows `sweep` with the side's metric and `perplexity` join the run's results.

    Their subjects are the points, `planner` (the run's own, which is also the point of each of its values) and
    `unsteered`.
    """
    config = load_config(DatConfig, file=folder / "config.yaml")
    with RunFolder(folder, "dat", config, data_hash=dat.data_hash(config), log=log) as run:
        def note(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
            run.add_results({**row, "eval": "sweep", "subject": name} for row in rows)

        measured = {name: run.stage(f"sweep-{name}", partial(_measured, name, config, folder, folder / "sweep" / OWN))
                    for name in (UNSTEERED, PLANNER)}
        own = {**config.values(), "norm": value_of(folder, "upmap")["norm"]}
        measured |= {_point(name, value): measured[PLANNER] for name, value in _values(config) if value == own[name]}
        for name, rows in measured.items():
            note(name, rows)
        for name, changed in points(config, folder, own, log).items():
            with RunFolder(folder / "sweep" / name, "dat", changed, data_hash=dat.data_hash(changed), log=log) as point:
                log(f"sweep, {name}")
                dat.run(changed, point, dat.STAGES[:-1], log)
                note(name, point.stage("valid", partial(_measured, PLANNER, changed, point.path, point.path / "evals")))


def _measured(name: str, config: DatConfig, folder: Path, out: Path) -> list[dict[str, Any]]:
    """Rows about a subject of the run in `folder` on validation scenes; what was said goes into `out`."""
    from dialoom.models.steering import Steering
    from dialoom.recipes.dat_eval import Parts, measured

    model = dat.load_frozen(config)
    side, parts = dat.side_of(config, model), Parts(model, Steering.load(folder / dat.PLANNER_FOLDER), 1.0)
    out.mkdir(parents=True, exist_ok=True)
    rows, _ = measured(name, config, parts, side, out, split="valid")
    return [replace(row, subject=name).to_json() for row in rows if row.metric in (side.metric, "perplexity")]

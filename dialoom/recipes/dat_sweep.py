"""Sweeps of DAT's sizes over a run's settings: prefix tokens, numbers in an action, length of an action.

Each point is a run of its own in `sweep/` of the run's folder, trained from the run's settings with one of them changed
and measured on validation scenes, never on held-out ones. A length needs no mapping of its own: the run's is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dialoom.config import load_config
from dialoom.evals.metrics import Row
from dialoom.recipes import dat
from dialoom.recipes.dat_config import DatConfig
from dialoom.recipes.run import RunFolder

Log = Callable[[str], None]


def points(config: DatConfig, folder: Path) -> dict[str, DatConfig]:
    """The settings of every point by its name, the run's own values among them."""
    found = {}
    for name, values in (("tokens", config.sweep.tokens), ("action", config.sweep.action), ("norm", config.sweep.norm)):
        for value in values:
            changes: dict[str, Any] = {name: value, "transfer": (), "harden": False}
            changes |= {"upmap": str(folder)} if name == "norm" and not config.upmap else {}
            found[f"{name}={value:g}"] = config.model_copy(update=changes)
    return found


def sweep(folder: Path, log: Log = print) -> None:
    """Train and measure every point; rows `sweep` with the side's metric and `perplexity` join the run's results."""
    config = load_config(DatConfig, file=folder / "config.yaml")
    with RunFolder(folder, "dat", config, data_hash=dat.data_hash(config), log=log) as run:
        for name, changed in points(config, folder).items():
            with RunFolder(folder / "sweep" / name, "dat", changed, data_hash=dat.data_hash(changed), log=log) as point:
                log(f"sweep, {name}")
                dat.run(changed, point, dat.STAGES[:-1], log)
                rows = point.stage("valid", partial(_measured, point, changed))
            run.add_results(Row(**{**row, "eval": "sweep", "subject": name}).to_json() for row in rows)


def _measured(point: RunFolder, config: DatConfig) -> list[dict[str, Any]]:
    from dialoom.models.steering import Steering
    from dialoom.recipes.dat_eval import PLANNER, Parts, measured

    model = dat.load_frozen(config)
    side, parts = dat.side_of(config, model), Parts(model, Steering.load(point.path / dat.PLANNER_FOLDER), 1.0)
    (point.path / "evals").mkdir(exist_ok=True)
    rows, _ = measured(PLANNER, config, parts, side, point.path / "evals", split="valid")
    return [replace(row, subject=PLANNER).to_json() for row in rows if row.metric in (side.metric, "perplexity")]

"""Curves and results go to tensorboard, wandb or trackio where they are asked for, and nowhere else."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dialoom import tracking
from dialoom.cli import main
from dialoom.errors import ConfigError
from dialoom.recipes.run import RunFolder
from dialoom.store import read_rows
from dialoom.tracking import note, note_results, tracked
from tests.test_train import config, some_pairs
from tests.tiny import tiny_model

ROWS = [{"eval": "flipflop", "subject": "pbt", "metric": "overall", "value": 0.75, "low": 0.5, "high": 1.0, "n": 9,
         "seed": 1},
        {"eval": "flipflop", "subject": "pbt", "metric": "mean", "value": float("nan"), "low": 0.0, "high": 1.0, "n": 0,
         "seed": 1}]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of the event files below a folder, read as their format is defined."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            size, = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12:12 + size])
            data = data[16 + size:]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_gets_every_step_of_a_training_and_every_result(tmp_path: Path):
    from dialoom.train.dpo import dpo

    with tracked("tensorboard", tmp_path, {"seed": 1, "dpo": {"beta": 0.1}}):
        dpo(tiny_model(), some_pairs(), config(max_steps=3), out=tmp_path / "work" / "pbt" / "dpo")
        note_results(ROWS)
    noted = read_rows(tmp_path / "work" / "pbt" / "dpo" / "metrics.jsonl")
    found = scalars(tmp_path / "tensorboard")
    for name in ("loss", "rewards/margins", "learning_rate"):
        assert found[f"pbt/dpo/{name}"] == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in noted]
    assert found["flipflop/pbt/overall"] == [(0, 0.75)]
    assert "flipflop/pbt/mean" not in found


class Package:
    """What `--report-to` asks of wandb and of trackio."""

    def __init__(self, key: str | None = None) -> None:
        self.begun: dict[str, Any] = {}
        self.logged: list[dict[str, float]] = []
        self.finished = False
        self.api = SimpleNamespace(api_key=key)

    def init(self, **given: Any) -> Package:
        self.begun = given
        return self

    def log(self, values: dict[str, float]) -> None:
        assert not self.finished
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    package = Package()
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: name)
    yield package


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_one_run_for_a_folder_which_a_restart_goes_on_with(name: str, installed: Package,
                                                                                 tmp_path: Path):
    with tracked(name, tmp_path / "mine", {"seed": 1, "dpo": {"beta": 0.1, "watch": None}}):
        note(tmp_path / "mine" / "work" / "sft", {"step": 1, "loss": 2.5, "stage": "sft", "grad_norm": float("inf")})
        note_results(ROWS)
    assert installed.begun["name"] == "mine" and installed.begun["resume"] == "allow"
    assert installed.begun["config"] == {"seed": 1, "dpo.beta": 0.1, "dpo.watch": "None"}
    assert installed.logged == [{"sft/step": 1.0, "sft/loss": 2.5}, {"flipflop/pbt/overall": 0.75}]
    assert installed.finished
    note(tmp_path, {"step": 2})  # nobody listens any more
    assert len(installed.logged) == 2


def test_wandb_without_a_key_writes_into_the_runs_folder_and_asks_nobody(installed: Package, tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch):
    with tracked("wandb", tmp_path, {}):
        assert installed.begun["mode"] == "offline" and installed.begun["dir"] == str(tmp_path)
    installed.api.api_key = "a key"
    with tracked("wandb", tmp_path, {}):
        assert "mode" not in installed.begun
    installed.api.api_key = None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with tracked("wandb", tmp_path, {}):
        assert "mode" not in installed.begun


def test_a_missing_package_and_an_unknown_name_are_told_before_anything_is_done(tmp_path: Path, capsys: Any,
                                                                               monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "run"
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    for name in tracking.PACKAGES:
        assert main(["pbt", "--report-to", name, "--out", str(out)]) == 2
        assert f"pip install 'dialoom[{name}]'" in capsys.readouterr().err
        with pytest.raises(ConfigError, match=name), tracked(name, tmp_path, {}):
            raise AssertionError("began without its package")
    assert main(["pbt", "--report-to", "tensorbored", "--out", str(out)]) == 2
    assert "tensorboard" in capsys.readouterr().err
    assert not out.exists()


def test_results_of_a_run_folder_are_told_and_the_tracker_is_no_part_of_what_a_run_is(tmp_path: Path):
    from dialoom.recipes.pbt_config import PBTConfig

    plain, told = PBTConfig(), PBTConfig(report_to="tensorboard")
    assert plain.identity() == told.identity()
    with RunFolder(tmp_path, "pbt", told) as folder, tracked("tensorboard", tmp_path, told.values()):
        folder.add_results(iter(ROWS[:1]))
        assert folder.results() == ROWS[:1]
    assert scalars(tmp_path)["flipflop/pbt/overall"] == [(0, 0.75)]
    with RunFolder(tmp_path, "pbt", plain) as folder:
        assert folder.results() == ROWS[:1]

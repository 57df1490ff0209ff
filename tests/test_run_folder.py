"""Settings and run folders: where values come from, what is refused, what is computed once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import model_validator

from dialoom.config import Config, load_config, near_miss
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.recipes.run import RunFolder, default_folder, hash_data
from dialoom.store import read_rows


class Training(Config):
    """How it learns."""

    beta: float = 0.1
    """KL weight."""
    epochs: int = 3
    """Passes over the pairs."""


class Settings(Config):
    """A recipe's settings."""

    model: str = "pocket"
    """Who learns."""
    tune: Literal["full", "lora"] = "full"
    """What is trained."""
    seed: int = 0
    """Seeds everything."""
    device: str = "auto"
    """Where to compute."""
    training: Training = Training()

    @model_validator(mode="after")
    def _can_be_meant(self) -> Settings:
        if self.tune == "lora" and self.model == "none":
            raise ValueError("tune lora needs a model, got model 'none'")
        return self


def silent(_: str) -> None:
    pass


# -------------------------------------------------------------------------------------------- settings


def test_flags_win_over_the_file_which_wins_over_the_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 5\ntraining:\n  beta: 1e-4\n")
    preset = Settings(model="hf:x", seed=1, training=Training(beta=0.9, epochs=9))
    config = load_config(Settings, preset, file, {"seed": 7, "training.epochs": "2"})
    assert config == Settings(model="hf:x", seed=7, training=Training(beta=1e-4, epochs=2))


def test_settings_survive_their_own_file(tmp_path):
    config = Settings(seed=3, training=Training(beta=0.5))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(Settings, None, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(("text", "message"), [
    ("sead: 1", r"run\.yaml: sead: unknown setting; did you mean seed\?"),
    ("training: {bheta: 1}", r"run\.yaml: training\.bheta: unknown setting; did you mean beta\?"),
    ("zzz: 1", "expected one of: device, model, seed, training, tune"),
    ("seed: many", r"run\.yaml: seed: expected a valid integer, got 'many'"),
    ("tune: half", r"run\.yaml: tune: expected 'full' or 'lora', got 'half'"),
    ("training: {beta: .nan}", r"run\.yaml: training\.beta: expected a finite number, got nan"),
    ("- a", "expected settings as `name: value` lines, found list"),
    ("a: b: c", r"run\.yaml:1: not YAML"),
    ("tune: lora\nmodel: none", "^tune lora needs a model, got model 'none'$"),
])
def test_a_setting_that_cannot_be_meant_is_one_line_saying_where_and_what_was_expected(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(Settings, None, file)
    assert "\n" not in str(error.value)


def test_a_wrong_flag_is_named_as_a_flag_and_several_faults_come_together(tmp_path):
    with pytest.raises(ConfigError, match=r"--tune: .*; --training\.beta: expected a valid number, got 'much'"):
        load_config(Settings, None, None, {"tune": "half", "training.beta": "much"})
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(Settings, None, tmp_path / "none.yaml")


def test_near_miss_suggests_one_name_or_lists_all():
    assert near_miss("trane", ["train", "evaluate"]) == "did you mean train?"
    assert near_miss("x", ["train", "evaluate"]) == "expected one of: evaluate, train"


# -------------------------------------------------------------------------------------------- the folder


def test_the_same_settings_find_the_same_folder_and_a_stage_is_computed_once(tmp_path):
    calls = []

    def run() -> dict[str, int]:
        with RunFolder(tmp_path / "run", "pbt", Settings(), log=silent) as folder:
            return folder.stage("count", lambda: calls.append(1) or {"n": 4})

    assert run() == run() == {"n": 4}
    assert calls == [1]


def test_a_stage_with_files_is_loaded_by_its_own_reader(tmp_path):
    with RunFolder(tmp_path, "pbt", Settings(), log=silent) as folder:
        def make() -> object:
            (folder.path / "value.txt").write_text("made")
            return object()

        folder.stage("value", make, lambda: "never")
        assert folder.has("value")
        assert folder.stage("value", make, (folder.path / "value.txt").read_text) == "made"


def test_a_stage_that_fails_is_not_done(tmp_path):
    with RunFolder(tmp_path, "pbt", Settings(), log=silent) as folder:
        with pytest.raises(ZeroDivisionError):
            folder.stage("value", lambda: 1 / 0)
        assert folder.stage("value", lambda: 2) == 2


def test_another_configuration_or_data_in_the_same_folder_is_refused_with_the_difference(tmp_path):
    RunFolder(tmp_path, "pbt", Settings(seed=1), log=silent).close()
    with pytest.raises(ConfigError, match=r"seed: 1 -> 2; training\.beta: 0\.1 -> 0\.9.*--fresh"):
        RunFolder(tmp_path, "pbt", Settings(seed=2, training=Training(beta=0.9)), log=silent)
    with pytest.raises(ConfigError, match="data: '' -> 'abc'"):
        RunFolder(tmp_path, "pbt", Settings(seed=1), data_hash="abc", log=silent)
    with pytest.raises(ConfigError, match="recipe: 'pbt' -> 'ditto'"):
        RunFolder(tmp_path, "ditto", Settings(seed=1), log=silent)
    RunFolder(tmp_path, "pbt", Settings(seed=1, device="cuda"), log=silent).close()  # where to compute may change


def test_a_field_added_by_a_newer_version_counts_as_its_default(tmp_path):
    RunFolder(tmp_path, "pbt", Settings(), log=silent).close()
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("tune: full\n", ""))
    RunFolder(tmp_path, "pbt", Settings(), log=silent).close()
    with pytest.raises(ConfigError, match="tune: 'full' -> 'lora'"):
        RunFolder(tmp_path, "pbt", Settings(tune="lora"), log=silent)


def test_fresh_empties_a_run_and_nothing_else(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    with RunFolder(run, "pbt", Settings(), log=silent) as folder:
        folder.stage("count", lambda: 1)
    with RunFolder(run, "pbt", Settings(seed=9), fresh=True, log=silent) as folder:
        assert not folder.has("count") and folder.stage("count", lambda: 2) == 2
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"no config\.yaml"):
        RunFolder(other, "pbt", Settings(), fresh=True, log=silent)
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_folder_in_use_or_unusable_is_refused_before_any_work(tmp_path):
    with RunFolder(tmp_path / "run", "pbt", Settings(), log=silent), \
         pytest.raises(StoreError, match=f"process {os.getpid()} is writing it"):
        RunFolder(tmp_path / "run", "pbt", Settings(), log=silent)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another folder with --out"):
        RunFolder(tmp_path / "file", "pbt", Settings(), log=silent)


def test_the_default_folder_names_recipe_model_and_what_decides_the_result():
    base = default_folder("pbt", Settings(model="hf:org/Some Model+ada"))
    assert base.parent == Path("runs") and base.name.startswith("pbt-hf-org-Some-Model-ada-")
    assert base == default_folder("pbt", Settings(model="hf:org/Some Model+ada", device="cuda"))
    others = {default_folder("pbt", Settings(seed=1)), default_folder("pbt", Settings(), "data"),
              default_folder("dat", Settings()), default_folder("pbt", Settings())}
    assert len(others) == 4
    assert default_folder("pbt", Settings(model="../../etc")).parent == Path("runs")


def test_the_hash_of_data_follows_its_content(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    (tmp_path / "c").write_text("y")
    assert hash_data(None) == ""
    assert hash_data(tmp_path / "a") == hash_data(tmp_path / "b") != hash_data(tmp_path / "c")
    with pytest.raises(DataError, match="give --data a file"):
        hash_data(tmp_path)


def test_the_environment_is_written_down_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "canary-4711")
    RunFolder(tmp_path, "pbt", Settings(seed=4), log=silent).close()
    text = (tmp_path / "env.json").read_text()
    env = json.loads(text)
    assert env["seed"] == 4 and env["recipe"] == "pbt" and env["versions"]["torch"]
    assert "canary" not in text


def test_results_are_tidy_rows_and_a_later_one_replaces_its_like(tmp_path):
    row = {"eval": "recall", "subject": "base", "metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6,
           "n": 50, "seed": 0}
    with RunFolder(tmp_path, "pbt", Settings(), log=silent) as folder:
        folder.add_results([row, {**row, "seed": None}])
        folder.add_results([{**row, "value": 0.75}])
        assert [found["value"] for found in folder.results()] == [0.75, 0.5]
        with pytest.raises(DataError, match="expected the fields eval, subject"):
            folder.add_results([{**row, "extra": 1}])
        folder.metrics({"step": 1, "loss": 0.5})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


def test_the_settings_floor_loads_no_torch():
    code = "import sys, dialoom.recipes.run; sys.exit(bool({'torch', 'transformers', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"""Settings and run folders: where values come from, what is refused, what is computed once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import model_validator
from tiny import save_tiny

from dialoom.config import Config, load_config, near_miss
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.files import read_answers, read_steps, read_text, whole_folder
from dialoom.models.load import load_model
from dialoom.models.place import Place
from dialoom.recipes.run import RESULT_FIELDS, RunFolder, default_folder, hash_data, read_results
from dialoom.store import StoreWarning, read_rows, write_rows


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


# -------------------------------------------------------------------------------------------- the files of a run


def test_the_curve_of_a_training_is_read_up_to_its_checkpoint_and_a_gap_is_told(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_steps(file) == []
    rows = [{"step": step, "loss": 0.5, "kl": None} for step in (1, 2, 3)]
    write_rows(file, rows)
    assert read_steps(file) == rows and read_steps(file, 2) == rows[:2]
    with pytest.warns(StoreWarning, match=r"metrics\.jsonl: lost what was noted up to step 7"):
        assert read_steps(file, 7) == rows
    write_rows(file, ())
    with pytest.warns(StoreWarning, match="this curve is lost"):
        assert read_steps(file) == []


@pytest.mark.parametrize("row", [{"loss": 0.5}, {"step": "1"}, {"step": 1, "loss": "low"}, {"a": [1]}])
def test_a_row_that_is_no_step_is_named_with_its_line(tmp_path, row):
    write_rows(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 0.5}, row])
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: expected numbers and among them a step"):
        read_steps(tmp_path / "metrics.jsonl")


def test_an_answer_without_what_is_needed_of_it_counts_as_never_asked(tmp_path):
    good = {"key": "a", "strategy": "ask why", "reason": ""}
    write_rows(tmp_path / "asked.jsonl", [good, {"key": "b"}, {"strategy": "ask how", "reason": ""}])
    assert read_answers(tmp_path / "asked.jsonl", ("strategy", "reason")) == {"a": good}
    assert read_answers(None, ()) == read_answers(tmp_path / "none.jsonl", ()) == {}


@pytest.mark.parametrize("rows", [{"a": 1}, [1], [{"eval": "x"}], [{**dict.fromkeys(RESULT_FIELDS), "eval": []}]])
def test_results_that_are_none_are_named(tmp_path, rows):
    (tmp_path / "results.json").write_text(json.dumps(rows))
    with pytest.raises(StoreError, match=r"results\.json: expected a"):
        read_results(tmp_path / "results.json")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    for text in ("one", "two"):
        with whole_folder(folder) as draft:
            (draft / "part").mkdir()
            (draft / "part" / "weights").write_text(text)
            assert not folder.exists() or (folder / "part" / "weights").read_text() == "one"
        assert (folder / "part" / "weights").read_text() == text
    with pytest.raises(StoreError, match="model: cannot be written"), whole_folder(folder) as draft:
        (draft / "none" / "weights").write_text("three")
    with pytest.raises(ZeroDivisionError), whole_folder(folder) as draft:
        (draft / "weights").write_text(str(1 / 0))
    assert (folder / "part" / "weights").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_text_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff")
    for name, why in (("x.json", "decode"), ("none.json", "No such file")):
        with pytest.raises(StoreError, match=rf"{name}: cannot be read .*{why}"):
            read_text(tmp_path / name)


# -------------------------------------------------------------------------------------------- the models of a run


def _loaded(run: Path, *specs: str, **more: object) -> list[str]:
    with RunFolder(run, "pbt", Settings(), log=silent, **more):
        return [load_model(spec, device="cpu").fingerprint for spec in specs]


def test_a_model_whose_chat_template_was_edited_is_refused_with_what_was_expected_and_found(tmp_path):
    run, folder = tmp_path / "run", save_tiny(tmp_path / "model")
    other = save_tiny(tmp_path / "other", seed=5)
    before = _loaded(run, f"hf:{folder}", f"hf:{other}")
    assert _loaded(run, f"hf:{folder}") == before[:1]  # the same files are the same model
    template = folder / "chat_template.jinja"
    kept = template.read_text()
    template.write_text(kept.replace("<|end|>", "<|end|>\n"))
    with pytest.raises(ConfigError) as refused:
        _loaded(run, f"hf:{folder}")
    assert re.search(rf"hf:{folder} is not the model .* its chat template changed \(fingerprint: '{before[0]}' -> "
                     r"'[0-9a-f]{16}'; template: '[0-9a-f]{16}' -> .*put the old ones back.*--out.*--fresh",
                     str(refused.value))
    assert _loaded(run, f"hf:{other}") == before[1:]
    template.write_text(kept)
    assert _loaded(run, f"hf:{folder}") == before[:1]


def test_other_weights_under_the_same_name_are_refused_and_fresh_takes_them(tmp_path):
    run, folder = tmp_path / "run", save_tiny(tmp_path / "model")
    before = _loaded(run, f"hf:{folder}")
    save_tiny(folder, seed=7)
    with pytest.raises(ConfigError, match=r"its weights or settings changed \(fingerprint: "):
        _loaded(run, f"hf:{folder}")
    assert _loaded(run, f"hf:{folder}", fresh=True) != before
    _loaded(run, f"hf:{folder}")


def test_a_run_that_wrote_no_models_down_and_another_number_type_are_accepted(tmp_path):
    run, folder = tmp_path / "run", save_tiny(tmp_path / "model")
    RunFolder(run, "pbt", Settings(), log=silent).close()
    assert "models" not in json.loads((run / "env.json").read_text())
    _loaded(run, f"hf:{folder}")
    with RunFolder(run, "pbt", Settings(), log=silent):
        load_model(f"hf:{folder}", device=Place("cpu", "bfloat16"))  # what another device would take
    held = json.loads((run / "env.json").read_text())["models"]
    assert set(held) == {f"hf:{folder} (float32)", f"hf:{folder} (bfloat16)"}
    save_tiny(folder, seed=7)
    load_model(f"hf:{folder}", device="cpu")  # no run is open, so nobody minds


@pytest.mark.parametrize("models", ["[]", '{"pocket": 1}'])
def test_models_that_cannot_be_read_are_named(tmp_path, models):
    RunFolder(tmp_path, "pbt", Settings(), log=silent).close()
    env = json.loads((tmp_path / "env.json").read_text())
    (tmp_path / "env.json").write_text(json.dumps({**env, "models": json.loads(models)}))
    with pytest.raises(StoreError, match=r"env\.json: expected versions and models by name.*--fresh"):
        RunFolder(tmp_path, "pbt", Settings(), log=silent)


def test_the_settings_floor_loads_no_torch():
    code = "import sys, dialoom.recipes.run; sys.exit(bool({'torch', 'transformers', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

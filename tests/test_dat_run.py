"""DAT's run on pocket, small: every stage, what is resumed, shared between collectors, swept, noted and refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import yaml

from dialoom import tracking
from dialoom.errors import ConfigError, StoreError
from dialoom.files import read_rows
from dialoom.models.base import Sampling
from dialoom.models.load import load_model
from dialoom.models.steering import Steering, UpMapping, load_steered
from dialoom.recipes import dat
from dialoom.recipes.dat_collect import explore, turns_of
from dialoom.recipes.dat_config import DatConfig, Sweep
from dialoom.recipes.dat_eval import subjects
from dialoom.recipes.dat_social import social_side
from dialoom.recipes.run import RunFolder
from dialoom.report.overview import CURVES, overview
from dialoom.report.read import read_run
from dialoom.store import TreeLog
from dialoom.train.replay import Replay
from tests.test_dat import SMALL


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


def done(config, path, **more):
    with RunFolder(path, "dat", config, log=lambda line: None) as folder:
        dat.run(config, folder, log=lambda line: None, **more)
    return {(row["eval"], row["subject"], row["metric"]): row for row in json.loads((path / "results.json").read_text())
            if row["seed"] is not None}


@pytest.mark.slow
def test_a_run_does_every_stage_and_measures_every_subject_and_a_second_one_only_loads(tmp_path):
    model = load_model("pocket")
    before = model.fingerprint
    rows = done(SMALL, tmp_path)
    assert {name for eval, name, metric in rows if (eval, metric) == ("social", "reward")} == set(subjects(SMALL))
    assert {name for eval, name, metric in rows if (eval, metric) == ("language", "perplexity")} == set(subjects(SMALL))
    assert ("social", "planner", "reward_minus_constant") in rows and ("clone", "self_clone", "gap") in rows
    assert load_model("pocket").fingerprint == before
    steered = load_steered("pocket", tmp_path)
    assert steered.steering.position == "end" and steered.steering.planner.shape.output == "corner"
    assert steered.chat([[{"role": "user", "content": "Hello."}]], Sampling(0.7, max_new_tokens=5), ["k"])[0].text
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert done(SMALL, tmp_path) == rows
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(read_rows(tmp_path / "replies.jsonl")[0]["replies"]) == 3
    noted = [(row["stage"], row["subject"], row["step"]) for row in read_rows(tmp_path / "metrics.jsonl")]
    assert noted == [("clone", "self_clone", step) for step in (1, 2)] + [
        (f"td3, pass {turn}", "planner", step) for turn in (1, 2) for step in range(1, 5)]
    curves = overview(read_run(tmp_path))["curves"]
    charts = {one["stage"]: {chart["title"] for chart in one["charts"]} for one in curves}
    assert CURVES["loss"] in charts["clone"]
    assert {CURVES[name] for name in ("critic_loss", "actor_loss")} <= charts["td3, pass 2"]


@pytest.mark.slow
def test_a_tracker_is_told_of_cloning_and_of_each_pass(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(tracking, "note", lambda out, row: told.append((out.relative_to(tmp_path).as_posix(), row)))
    with RunFolder(tmp_path, "dat", SMALL, log=lambda line: None) as folder:
        dat.run(SMALL, folder, dat.STAGES[:4], log=lambda line: None)
    assert [place for place, _ in told] == ["clone"] * 2 + ["td3/pass-1"] * 4 + ["td3/pass-2"] * 4
    assert all(row["step"] and {"loss", "critic_loss"} & set(row) for _, row in told)


@pytest.mark.slow
def test_a_collection_that_was_stopped_goes_on_to_the_same_replay(pocket, tmp_path):
    side = social_side(SMALL, pocket)
    steering = Steering(UpMapping.pca(pocket, 4, tokens=1), position="end")
    config = SMALL.model_copy(update={"mapping": "pca", "episodes": 2})

    def collected(name, sink):
        replay = Replay(tmp_path / name, 192, 4)
        explore(config, pocket, steering, side, replay, 1, norm=2.0, sink=sink)
        return replay

    with TreeLog(tmp_path / "trees.jsonl") as sink:
        whole = collected("whole.bin", sink)
    lines = (tmp_path / "trees.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:len(lines) // 2]))
    with TreeLog(tmp_path / "cut.jsonl") as sink:
        again = collected("again.bin", sink)
    assert whole.episodes == again.episodes == 12
    one, other = (replay.transitions(range(len(replay))) for replay in (whole, again))
    assert np.array_equal(one.actions, other.actions) and np.array_equal(one.rewards, other.rewards)
    assert np.allclose(one.states, other.states, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"mapping": "pca", "repeated": False}, {"mapping": "clone", "position": "start"},
                                     {"scene": 1, "mapping": "pca"}])
def test_other_mappings_places_and_a_planner_for_one_scene_run_as_well(tmp_path, changes):
    config = SMALL.model_copy(update={**changes, "passes": 1, "train_scenes": 4, "test_scenes": 2})
    rows = done(config, tmp_path)
    assert ("social", "planner", "reward") in rows
    assert (("social", "self_clone", "reward") in rows) is (config.mapping != "pca")
    card = json.loads((tmp_path / "planner" / "steering.json").read_text())
    assert card["position"] == config.position and card["planner"]["output"] == "sphere"


@pytest.mark.slow
def test_a_second_collector_shares_the_mapping_and_its_replay_is_taken_in(tmp_path):
    config = SMALL.model_copy(update={"mapping": "pca", "passes": 1})
    second = config.model_copy(update={"upmap": str(tmp_path / "one"), "collector": 1})
    third = config.model_copy(update={"upmap": str(tmp_path / "one"), "collector": 2,
                                      "replays": (str(tmp_path / "one"), str(tmp_path / "two"))})
    for name, asked in (("one", config), ("two", second), ("three", third)):
        with RunFolder(tmp_path / name, "dat", asked, log=lambda line: None) as folder:
            dat.run(asked, folder, dat.STAGES[:3], log=lambda line: None)
    marker = json.loads((tmp_path / "three" / "stages" / "collect-1.json").read_text())
    assert marker["value"]["dialogues"] == 18


@pytest.mark.parametrize(("changes", "flags"), [
    ({"mapping": "coded"}, "--mapping pca"), ({"tokens": 1, "position": "start"}, "--tokens 2 --position end"),
    ({"action": 5}, "--action 4"), ({"repeated": True}, "--no-repeated")])
def test_a_mapping_that_was_made_with_other_settings_is_refused_with_the_flags_to_give(tmp_path, changes, flags):
    config = SMALL.model_copy(update={"mapping": "pca", "repeated": False})
    second = config.model_copy(update={**changes, "upmap": str(tmp_path / "one")})
    for name, asked in (("one", config), ("two", second)):
        with RunFolder(tmp_path / name, "dat", asked, log=lambda line: None) as folder:
            if name == "one":
                dat.run(asked, folder, ("upmap",), log=lambda line: None)
                continue
            with pytest.raises(ConfigError, match=f"was not made for .*; give {flags}$"):
                dat.run(asked, folder, ("upmap",), log=lambda line: None)
    same = config.model_copy(update={"upmap": str(tmp_path / "one"), "seed": 2})
    with RunFolder(tmp_path / "three", "dat", same, log=lambda line: None) as folder:
        dat.run(same, folder, ("upmap",), log=lambda line: None)
    one, three = (json.loads((tmp_path / name / "mapping" / "steering.json").read_text()) for name in ("one", "three"))
    assert one["fingerprint"] == three["fingerprint"]


def test_a_mapping_of_what_is_no_run_of_dat_is_refused(tmp_path):
    config = SMALL.model_copy(update={"mapping": "pca", "upmap": str(tmp_path / "none")})
    with RunFolder(tmp_path / "run", "dat", config, log=lambda line: None) as folder, \
            pytest.raises(StoreError, match="is no run's folder"):
        dat.run(config, folder, ("upmap",), log=lambda line: None)


def test_a_run_of_social_scenes_goes_on_whatever_the_red_team_settings_and_before_exploration_was_one(tmp_path):
    def asked(name, **changes):
        return RunFolder(tmp_path / name, "dat", DatConfig(**changes), log=lambda line: None).close()

    asked("social")
    kept = yaml.safe_load((tmp_path / "social" / "config.yaml").read_text())
    assert kept.pop("exploration") == "everywhere" and kept["sweep"].pop("mapping")
    (tmp_path / "social" / "config.yaml").write_text(yaml.safe_dump(kept))
    asked("social", redteam={"attacks": 3})
    with pytest.raises(ConfigError, match="exploration: 'everywhere' -> 'around'"):
        asked("social", exploration="around")
    asked("redteam", scenes="redteam")
    with pytest.raises(ConfigError, match=r"redteam\.attacks: 1 -> 3"):
        asked("redteam", scenes="redteam", redteam={"attacks": 3})


def test_a_clones_width_of_0_is_the_models(tmp_path):
    config = SMALL.model_copy(update={"clone": SMALL.clone.model_copy(update={"hidden": (0, 8)})})
    with RunFolder(tmp_path, "dat", config, log=lambda line: None) as folder:
        dat.run(config, folder, ("clone",), log=lambda line: None)
    card = json.loads((tmp_path / "clone" / "steering.json").read_text())
    assert card["clone"]["hidden"] == [192, 8]


@pytest.mark.slow
def test_a_sweep_trains_every_point_and_measures_it_on_validation_scenes(tmp_path):
    values = Sweep(mapping=("pca", "clone", "coded"), tokens=(1, 2), action=(3,), norm=(0.5,))
    config = SMALL.model_copy(update={"mapping": "pca", "passes": 1, "sweep": values,
                                      "clone": SMALL.clone.model_copy(update={"replies": 1})})
    before, said = done(config, tmp_path), []
    dat.act("sweep", tmp_path, log=said.append)
    rows = [row for row in json.loads((tmp_path / "results.json").read_text()) if row["eval"] == "sweep"]
    assert {(row["subject"], row["metric"]) for row in rows} == {
        (subject, metric) for metric in ("reward", "perplexity") for subject in
        ("unsteered", "planner", "mapping=pca", "mapping=clone", "tokens=1", "tokens=2", "action=3", "norm=0.5")}
    assert {row["n"] for row in rows} == {4}  # validation scenes
    values = {(row["subject"], row["metric"]): row["value"] for row in rows}
    assert values["tokens=2", "reward"] == values["planner", "reward"]  # the run's own is not trained again
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [
        "action=3", "mapping=clone", "norm=0.5", "own", "tokens=1"]
    assert any("mapping=coded is left out: clone.replies is 1" in line for line in said)
    cards = {path.parent.parent.name: json.loads(path.read_text())
             for path in tmp_path.glob("sweep/*/planner/steering.json")}
    assert cards["tokens=1"]["mapping"]["tokens"] == 1 and cards["action=3"]["planner"]["action"] == 3
    assert cards["norm=0.5"]["planner"]["norm"] == 0.5
    after = {key: row for key, row in done(config, tmp_path).items() if key[0] != "sweep"}
    assert after == before, "points of a sweep are no subjects of the evaluation"


@pytest.mark.slow
def test_replies_made_elsewhere_are_cloned_from_a_csv(pocket, tmp_path):
    side = social_side(SMALL, pocket)
    played = side.play(side.speaker(pocket), side.partner, side.scenes["train"], seed=1, label="x")
    with (tmp_path / "replies.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "target"])
        for one in played:
            for turn, chat in turns_of(side.speaker(pocket), one):
                writer.writerow([pocket.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
                                 turn.text])
    config = SMALL.model_copy(update={"mapping": "clone", "passes": 1, "clone": SMALL.clone.model_copy(
        update={"data": str(tmp_path / "replies.csv")})})
    with RunFolder(tmp_path / "run", "dat", config, data_hash=dat.data_hash(config), log=lambda line: None) as folder:
        dat.run(config, folder, dat.STAGES[:2], log=lambda line: None)
    replies = read_rows(tmp_path / "run" / "replies.jsonl")
    turn, chat = turns_of(side.speaker(pocket), played[0])[0]
    assert replies[0]["prompt"] == pocket.prompt_ids(chat) and replies[0]["texts"] == [turn.text]

"""A planner out of a folder, before any model that is talked with or evaluated: `--planner`."""

import io
import json

import pytest

from dialoom import cli
from dialoom.dialogue import Dialogue, chat_view
from dialoom.errors import ModelError, StoreError
from dialoom.evals.redteam import LeakJudge, attack, guard_scenes
from dialoom.models.base import GREEDY
from dialoom.models.load import load_model
from dialoom.models.scripted import ScriptedModel
from dialoom.models.steering import Planner, SteeredModel, Steering, UpMapping, load_steered
from dialoom.simulate import ModelSpeaker
from dialoom.store import TreeLog, read_trees


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket", device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory, pocket):
    """A run's folder, its planner untrained and far from doing nothing."""
    folder = tmp_path_factory.mktemp("dat")
    planner = Planner.of(pocket, 8, hidden=(16,), norm=40.0)
    Steering(UpMapping.pca(pocket, 8), planner, position="end").save(folder / "planner")
    (folder / "config.yaml").write_text("model: pocket\n")
    return folder


def failed(capsys, *command):
    assert cli.main(list(command)) == cli.FAILED
    return capsys.readouterr().err


def test_a_planner_is_loaded_with_its_place_from_a_run_or_its_own_folder(run, pocket):
    of_run, own = load_steered(pocket, run), load_steered(pocket, run / "planner")
    assert of_run.position == "end" and of_run.fingerprint == own.fingerprint
    assert of_run.fingerprint != SteeredModel(pocket, of_run.steering, position="start").fingerprint


def test_a_turn_notes_the_action_it_was_said_under(run, pocket, tmp_path):
    steered = load_steered(pocket, run)
    [scene] = guard_scenes(1, split="train")
    with TreeLog(tmp_path / "trees.jsonl") as log:
        attack(ModelSpeaker("player", steered, GREEDY), ModelSpeaker("partner", pocket, GREEDY), [scene], LeakJudge(),
               label="noted", rounds=1, sink=log)
    [tree] = read_trees(tmp_path / "trees.jsonl").values()
    said, answered = tree
    chat = chat_view(Dialogue(tree.scenario), "player", tree.scenario.briefs["player"])
    assert said.notes["action"] == pytest.approx(steered.plan([chat], [said.id]).actions[0].tolist(), abs=1e-3)
    assert len(said.notes["action"]) == 8 and "action" not in answered.notes


def test_an_evaluation_steers_the_model_under_test(run, tmp_path, capsys):
    rows = {}
    for name, flags in (("plain", ()), ("steered", ("--planner", str(run)))):
        out = tmp_path / f"{name}.json"
        assert cli.main(["eval", "recall", "--limit", "12", "--max-new-tokens", "12", "--out", str(out), *flags]) == 0
        [rows[name]] = json.loads(out.read_text())
    assert rows["steered"]["subject"] == "pocket+planner" and rows["plain"]["subject"] == "pocket"
    assert rows["steered"]["value"] < rows["plain"]["value"], "so long a prefix drowns the question"


def test_a_card_of_a_planner_is_that_of_the_steered_model_and_its_partner_is_not_steered(run, tmp_path, capsys):
    out = tmp_path / "card.md"
    command = ["scorecard", "pocket", "--evals", "recall", "--limit", "12", "--out", str(out), "--planner", str(run)]
    assert cli.main(command) == 0
    [row] = json.loads(out.with_suffix(".json").read_text())
    assert row["subject"] == "pocket+planner" and row["value"] < 0.5
    assert cli.main([*command[:3], "author", "--author", "Alma", "--limit", "3", *command[-2:]]) == 0
    assert "it is the base" not in capsys.readouterr().out, "the unsteered model is another one"


def test_social_scenes_are_those_that_a_run_holds_out(run, tmp_path, capsys):
    out = tmp_path / "rows.json"
    command = ["eval", "social", "--limit", "4", "--max-new-tokens", "12", "--planner", str(run), "--out", str(out)]
    assert cli.main(command) == 0
    [row] = [row for row in json.loads(out.read_text()) if row["metric"] == "reward"]
    assert (row["eval"], row["subject"], row["n"]) == ("social", "pocket+planner", 4) and 0 <= row["value"] <= 1
    assert "leave it out" in failed(capsys, "eval", "social", "--brief", "Win.")
    assert "give --partner MODEL and --judge MODEL" in failed(capsys, "eval", "social", "--data", str(tmp_path))


def test_talking_with_a_planner_has_the_unsteered_model_beside_it(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is the capital of Norway?\n/both\nAnd of Italy?\n"))
    assert cli.main(["chat", "--planner", str(run), "--max-new-tokens", "8", "--temperature", "0"]) == 0
    heard = capsys.readouterr().out
    assert heard.count("pocket+planner>") == 2 and heard.count("unsteered>") == 1


def test_a_runs_folder_alone_is_model_and_planner(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n"))
    assert cli.main(["chat", str(run), "--max-new-tokens", "4"]) == 0
    assert "pocket+planner>" in capsys.readouterr().out


def test_what_cannot_be_steered_is_refused_with_the_next_step(run, pocket, tmp_path, capsys):
    with pytest.raises(ModelError, match=r"embeddings cannot be reached\); use pocket or hf:<name>"):
        load_steered(ScriptedModel(lambda chat: "no"), run)
    said = failed(capsys, "eval", "recall", "--model", "openai:some-model", "--planner", str(run))
    assert "some-model cannot be steered (its embeddings cannot be reached); use pocket" in said
    said = failed(capsys, "chat", "pocket-small", "--planner", str(run))
    assert "pocket-small has states of" in said and "train one for this model" in said
    said = failed(capsys, "eval", "recall", "--planner", str(tmp_path))
    assert "holds no planner" in said and "give the folder of a finished `dialoom dat`" in said
    said = failed(capsys, "eval", "diversity", "--data", str(tmp_path / "x.json"), "--planner", str(run))
    assert "asks no model; leave it out" in said
    with pytest.raises(StoreError, match="no planner can be read there"):
        (tmp_path / "steering.json").write_text("{}")
        load_steered(pocket, tmp_path)


def test_a_talk_without_model_or_run_says_what_to_give(run, tmp_path, capsys):
    assert "no model is named; give one, as in `dialoom chat pocket`" in failed(capsys, "chat")
    said = failed(capsys, "chat", "--planner", str(run / "planner"))
    assert "is no run that names one" in said

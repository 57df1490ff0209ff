"""ALOE's people, settings and whole runs: with models that are scripts, and (slow) really on pocket."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from dialoom.errors import ConfigError, DataError, ModelError
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world import personas as world
from dialoom.recipes import aloe
from dialoom.recipes.aloe_config import AloeConfig
from dialoom.recipes.aloe_dialogues import HINTED
from dialoom.recipes.aloe_people import people
from dialoom.recipes.run import RunFolder
from dialoom.scenarios.personas import Persona, from_world, write_personas
from dialoom.store import read_rows, read_trees

PEOPLE = [from_world(one) for one in world.make_personas(5, 77, "train")]
ROUND = {"user": "Hi.", "assistant": {"preferred": "Good one.", "rejected": "Bad one."}, "chosen": "rejected"}


# ------------------------------------------------------------------------------------------------ people


def test_pockets_people_are_apart_and_those_for_evaluation_hold_unseen_pairs():
    train, test, _ = people(AloeConfig(train_count=30, eval_count=10), lambda line: None)
    assert not {one.profile for one in train} & {one.profile for one in test}
    assert all(world.is_held_out(one.world.facts) for one in test)
    assert not any(world.is_held_out(one.world.facts) for one in train)
    _, valid, _ = people(AloeConfig(train_count=30, eval_count=10, split="valid"), lambda line: None)
    assert not {one.id for one in valid} & {one.id for one in [*train, *test]}


def test_bad_people_are_named_counted_and_survived(tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    write_personas(train, PEOPLE)
    with train.open("a") as file:
        file.write('{"id": "x", "facts": [], "traits": ["Jokes."]}\n{broken\n')
        file.write(json.dumps({"id": "free", "facts": ["She juggles."], "traits": ["Hums."]}) + "\n")
    write_personas(test, [Persona("same", PEOPLE[0].facts, PEOPLE[0].traits), from_world(
        world.make_personas(1, 5, "eval")[0])])
    told = []
    config = AloeConfig(personas=str(train), eval_personas=str(test), leak_threshold=1.0)
    kept, asked, dropped = people(config, told.append)
    assert {one.id for one in kept} < {one.id for one in PEOPLE[1:]}  # some of a file are for validation
    assert len(asked) == 2
    assert dropped == {"bad persona line": 2, "not in pocket's words": 1, "also in evaluation": 1}
    text = "\n".join(told)
    assert all(name in text for name in (f"{train}:6", f"{train}:7", "persona free: no facts", PEOPLE[0].id))


def test_somebody_in_both_sets_is_left_out_of_training(tmp_path):
    file = tmp_path / "test.jsonl"
    mine = people(AloeConfig(train_count=20), lambda line: None)[0]
    write_personas(file, mine[:2])
    told = []
    kept, _, dropped = people(AloeConfig(train_count=20, eval_personas=str(file)), told.append)
    assert not {one.profile for one in kept} & {one.profile for one in mine[:2]}
    assert dropped["also in evaluation"] >= 2
    assert sum(mine[0].id in line for line in told) == 1


# ------------------------------------------------------------------------------------------------ settings and runs


def test_the_paper_preset_holds_the_papers_values():
    paper = aloe.PRESETS["paper"]
    assert (paper.train_count, paper.eval_count, paper.turns, paper.max_new_tokens) == (3000, 100, 10, 300)
    assert {paper.user, paper.inducer, paper.judge, paper.responder} == {"openai:gpt-4o-mini"}
    assert paper.dpo_from == "base"
    for part in (paper.sft, paper.dpo):
        assert (part.lr, part.batch_pairs, part.epochs, part.tune) == (1e-5, 48, 1, "full")
    assert paper.dpo.beta == 0.9
    assert paper.leak_threshold == 0.6


@pytest.mark.parametrize(("given", "message"), [
    ({"hint": "no place"}, "hint: expected a text with"), ({"general_share": 0.5}, "general names no chats"),
    ({"shift_at": 11}, "shift_at: expected 0, or a turn"),
])
def test_settings_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        AloeConfig(**given)


def test_what_cannot_work_is_refused_before_anything_is_computed():
    with pytest.raises(ModelError, match="cannot be trained"):
        aloe.check(AloeConfig(model="openai:x"))
    with pytest.raises(ConfigError, match="name a model for people of your own"):
        aloe.check(AloeConfig(personas="mine.jsonl", judge="openai:x"))


def test_a_file_that_is_not_there_is_named_with_its_flag():
    assert aloe.data_hash(AloeConfig(general="pocket")) == ""
    with pytest.raises(DataError, match="nope: no such file; expected the JSON lines of --eval-personas"):
        aloe.data_hash(AloeConfig(eval_personas="nope"))


def test_the_plan_counts_calls_and_starts_nothing():
    rows = {row["stage"]: row for row in aloe.plan(AloeConfig())}
    assert list(rows) == list(aloe.STAGES)
    assert rows["dialogues"]["calls"] == 64 * 10 * 2
    assert rows["eval"]["calls"] == (8 + 1 + 3) * 40 * 10


def test_dialogues_of_pocket_stop_at_a_stage_and_are_written_in_both_layouts(tmp_path):
    config = AloeConfig(train_count=6, eval_count=3, turns=2, shift_at=0)
    with RunFolder(tmp_path / "run", "aloe", config, log=lambda line: None) as folder:
        aloe.run(config, folder, ("personas", "dialogues"), lambda line: None)
    rows = read_rows(tmp_path / "run" / "conversations.jsonl")
    pairs = read_rows(tmp_path / "run" / "pairs.jsonl")
    assert rows and pairs
    assert all(pair["chosen_brief"] == HINTED for pair in pairs if pair["score_chosen"] >= 4)
    assert not (tmp_path / "run" / "arms").exists()


def test_the_whole_way_with_models_and_free_texts_survives_bad_input(tmp_path, monkeypatch):
    names = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo", "Kim", "Lou", "Mo", "Ned", "Ola", "Pam")
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    somebody = [Persona(name, (f"{name} keeps {at} bees.", f"{name} lives at number {at}."), ("Laughs a lot.",))
                for at, name in enumerate(names)]
    write_personas(train, somebody)
    with train.open("a") as file:
        file.write("{broken\n")
    write_personas(test, [somebody[0], Persona("new", ("Zoe sails to Malta.", "Zoe paints boats."), ("Is shy.",))])
    models = {"openai:user": lambda chat: f"*smiles* I keep bees, message {len(chat)}.",
              "openai:inducer": lambda chat: "Life: 1\nCharacter: none",
              "openai:replies": lambda chat: "Hey, bees!" if chat[0]["role"] == "system" else "I see.",
              "openai:judge": lambda chat: "hm" if "message 4" in chat[0]["content"] else "first"}
    monkeypatch.setattr("dialoom.models.load.load_model",
                        lambda spec, device: ScriptedModel(models[spec], spec))
    config = AloeConfig(personas=str(train), eval_personas=str(test), leak_threshold=1.0, turns=3, shift_at=0,
                        user="openai:user", inducer="openai:inducer", responder="openai:replies", judge="openai:judge")
    told = []
    with RunFolder(tmp_path / "run", "aloe", config, log=told.append) as folder:
        aloe.run(config, folder, ("personas", "dialogues"), told.append)
    dropped = json.loads((tmp_path / "run" / "dropped.json").read_text())
    trees = read_trees(tmp_path / "run" / "trees.jsonl")
    assert dropped["bad persona line"] == 1
    assert dropped["judge not readable"] == len(trees)  # the second message of each
    assert any(f"{train}:17" in line for line in told)
    assert all(len(tree) == 9 for tree in trees.values())
    assert not any(tree.scenario.id == somebody[0].id for tree in trees.values())
    assert not any("*" in turn.text for tree in trees.values() for turn in tree)
    assert len(read_rows(tmp_path / "run" / "pairs.jsonl")) == 2 * len(trees)


def test_imported_dialogues_of_people_for_evaluation_are_left_out(tmp_path):
    _, test, _ = people(AloeConfig(eval_count=3), lambda line: None)
    file = tmp_path / "c.jsonl"
    persona = {"profile": test[0].profile, "personality": "He jokes."}
    file.write_text("\n".join(json.dumps({**one, "conversations": [ROUND]}) for one in (
        persona, {"profile": "He bakes.", "personality": "He jokes."})))
    config = AloeConfig(conversations=str(file), eval_count=3, leak_threshold=1.0)
    with RunFolder(tmp_path / "run", "aloe", config, log=lambda line: None) as folder:
        aloe.run(config, folder, ("personas", "dialogues"), lambda line: None)
    assert json.loads((tmp_path / "run" / "dropped.json").read_text())["also in evaluation"] == 1
    tree, = read_trees(tmp_path / "run" / "trees.jsonl").values()
    assert tree.scenario.facts["persona"]["facts"] == ["He bakes."]


SMALL = ["--train-count", "24", "--eval-count", "12", "--shift-at", "0", "--baselines", "reminder", "--split", "valid"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pocket_learns_to_adapt_also_from_an_imported_file(tmp_path):
    run([*SMALL, "--out", str(tmp_path / "run")])
    found = figures(tmp_path / "run")
    assert found["dpo", "avg"] > 1.32 * found["base", "avg"]
    assert found["sft_preferred", "avg"] > 1.32 * found["base", "avg"]
    assert found["sft_rejected", "avg"] < 1.2 * found["base", "avg"]
    assert found["dpo", "accuracy"] > found["base", "accuracy"] - 0.05
    run([*SMALL, "--conversations", str(tmp_path / "run" / "conversations.jsonl"), "--out", str(tmp_path / "again")])
    again = figures(tmp_path / "again")
    assert again["sft_preferred", "avg"] > 1.32 * again["base", "avg"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_to_the_same_figures(tmp_path):
    small = ["--train-count", "8", "--eval-count", "4", "--turns", "3", "--shift-at", "2", "--baselines", "few_shot"]
    run([*small, "--out", str(tmp_path / "whole")])
    command = [sys.executable, "-m", "dialoom", "aloe", *small, "--out", str(tmp_path / "killed")]
    for seconds in (6, 9, 12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run([*small, "--out", str(tmp_path / "killed")])
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")


def run(arguments):
    done = subprocess.run([sys.executable, "-m", "dialoom", "aloe", *arguments], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert not re.search("Traceback", done.stderr)


def figures(folder):
    rows = json.loads((folder / "results.json").read_text())
    return {(row["subject"], row["metric"]): row["value"] for row in rows if row["seed"] is not None}

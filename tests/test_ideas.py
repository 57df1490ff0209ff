"""IDEAS' settings and whole runs: with models that are scripts and a user's own files, and (slow) really on pocket."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from dialoom.dialogue import Dialogue
from dialoom.errors import ConfigError, DataError, ModelError
from dialoom.models.load import load_model
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world.strategies import find_topic
from dialoom.recipes import ideas
from dialoom.recipes.ideas_cast import Cast
from dialoom.recipes.ideas_config import IdeasConfig
from dialoom.recipes.ideas_eval import chat_rows
from dialoom.recipes.ideas_sources import Sources, split_of
from dialoom.recipes.run import RunFolder
from dialoom.scenarios.sharegpt import read_dialogues
from dialoom.store import read_rows, read_trees

STAGES = ("extract", "cluster", "abstract", "train-simulator", "deduce")


def quiet(line):
    """Says nothing."""


# ------------------------------------------------------------------------------------------------ settings


def test_the_paper_preset_holds_the_papers_values():
    paper = ideas.PRESETS["paper"]
    assert (paper.threshold, paper.candidates, paper.train_candidates) == (0.5, 50, (50,))
    assert (paper.max_pairs, paper.max_failures, paper.alike, paper.opening_count) == (10, 5, 0.8, 10_000)
    assert (paper.simulator_sft.batch_pairs, paper.sft.batch_pairs) == (1024, 256)
    for part in (paper.simulator_sft, paper.sft):
        assert (part.lr, part.epochs, part.warmup, part.schedule, part.weight_decay) == (2e-5, 3, 0.03, "cosine", 0)


@pytest.mark.parametrize(("given", "message"), [
    ({"choose": "no place"}, "choose: expected a text with"), ({"arms": ("plain",)}, "arms: expected ideas among them"),
    ({"train_candidates": ()}, "train_candidates: expected numbers"),
])
def test_settings_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        IdeasConfig(**given)


@pytest.mark.parametrize(("given", "error", "message"), [
    ({"model": "openai:x"}, ModelError, "cannot be trained"),
    ({"data": "mine.json"}, ConfigError, "--verifier exact knows pocket's world only"),
    ({"data": "mine.json", "verifier": "rule"}, ConfigError, "--judge exact knows pocket's world only"),
    ({"questions": "mt.jsonl"}, ConfigError, "--questions needs a model"),
    ({"simulator": "openai:x"}, ModelError, "--weighed 0"),
    ({"simulator": "openai:x", "weighed": 0, "arms": ("plain_trained", "ideas")}, ModelError, "no arm plain_trained"),
])
def test_what_cannot_work_is_refused_before_anything_is_computed(given, error, message):
    with pytest.raises(error, match=message):
        ideas.check(IdeasConfig(**given))


def test_a_file_that_is_not_there_is_named_with_its_flag():
    assert ideas.data_hash(IdeasConfig()) == ""
    with pytest.raises(DataError, match="nope: no such file, given as --openings"):
        ideas.data_hash(IdeasConfig(openings="nope"))


def test_the_plan_names_every_stage_and_starts_nothing():
    rows = {row["stage"]: row for row in ideas.plan(IdeasConfig())}
    assert list(rows) == list(ideas.STAGES)
    assert rows["deduce"]["calls"] > 80 * 5 * 3 and rows["eval"]["calls"] == 5 * 60 * 6


@pytest.mark.parametrize("split", ["test", "valid"])
def test_what_is_evaluated_on_stands_in_no_source_and_no_opening(split):
    sources = Sources(IdeasConfig(split=split))
    held_out = {one.facts["topic"] for one in sources.conversations}
    learned = {find_topic(one.scenario.opening) for one in [*sources.corpus, *sources.openings]}
    assert len(held_out) > 5 and not held_out & learned
    other = Sources(IdeasConfig(split="valid" if split == "test" else "test"))
    assert not held_out & {one.facts["topic"] for one in other.conversations}


# ------------------------------------------------------------------------------------------------ a user's own files


def a_talk(name, *texts):
    return {"id": name, "conversations": [{"from": "gpt" if at % 2 else "human", "value": text}
                                          for at, text in enumerate(texts)]}


def own_files(folder):
    """A ShareGPT file of 30 dialogues about hobbies, some of them bad."""
    rows = [a_talk(f"talk{at}", f"How do I learn {what}?", f"Start {what} with a teacher.",
                   f"Why with a teacher, and not alone? ({at})", "Because a teacher sees mistakes.",
                   f"What does {what} cost in a city like mine?", "A little every month.")
            for at, what in enumerate(("sailing", "piano", "baking", "archery", "latin") * 6)]
    rows[3]["conversations"][3]["value"] = ""  # an empty turn
    rows[4] = a_talk("one", "How do I learn to wait?")  # one turn
    rows[5]["conversations"][2]["from"] = "martian"  # an unknown role
    lines = [json.dumps(row) for row in rows]
    lines.insert(2, '{"id": "torn", "conversations": [{"fr')  # a broken line
    path = folder / "talks.jsonl"
    path.write_text("\n".join(lines))
    return path


def scripts(monkeypatch, calls):
    """Endpoints for every role, which answer by what they are asked."""
    def extractor(chat):
        text = chat[-1]["content"].strip().splitlines()[-1]
        strategy = "ask for the reason" if "Why" in text else "ask for the price"
        return json.dumps({"analysis": "to know", "strategy": strategy})

    def simulator(chat):
        calls.append(chat)
        listed = re.findall(r"^- (.+)$", chat[0]["content"], re.MULTILINE)
        said = sum(message["role"] == "assistant" for message in chat)
        chosen = listed[said % len(listed)]
        text = ("Why is that so, and who says it?", "What would learning cost me there?")[said % 2]
        return f"strategy: {chosen}\ninstruction: {text}" if said < 2 else "I do not know."

    models = {"openai:extract": extractor, "openai:abstract": lambda chat: f"Name: {chat[1]['content'][2:].title()}",
              "openai:ask": simulator, "openai:plain": lambda chat: f"Tell me more about learning {len(chat)}, please.",
              "openai:check": lambda chat: '{"correct": true, "new": true, "coherent": true}',
              "openai:answer": lambda chat: f"A good question about learning, number {len(chat)}."}
    monkeypatch.setattr("dialoom.models.load.load_model", lambda spec, device: (
        ScriptedModel(models[spec], spec) if spec in models else load_model(spec, device=device)))


def own_config(path, **more):
    return IdeasConfig(data=str(path), extractor="openai:extract", abstractor="openai:abstract", simulator="openai:ask",
                       plain="openai:plain", verifier="openai:check", answerer="openai:answer", judge="openai:judge",
                       weighed=0, extract_draws=1, embedding="ngrams", **more)


def test_the_whole_way_to_data_sets_with_models_and_free_texts_survives_bad_input(tmp_path, monkeypatch):
    path, calls, told = own_files(tmp_path), [], []
    scripts(monkeypatch, calls)
    config = own_config(path, policy="random", threshold=0.9)
    ideas.check(config, STAGES)
    with RunFolder(tmp_path / "run", "ideas", config, log=told.append) as folder:
        ideas.run(config, folder, STAGES, told.append)
    run = tmp_path / "run"
    text = "\n".join(told)
    assert all(place in text for place in (f"{path}:3", f"{path}:5", f"{path}:6", f"{path}:7"))
    records = read_rows(run / "records.jsonl")
    assert {row["strategy"] for row in records} == {"ask for the reason", "ask for the price"}
    strategies = json.loads((run / "strategies.json").read_text())
    assert strategies["parent"] == {low: low.title() for low in ("ask for the reason", "ask for the price")}
    funnel = json.loads((run / "funnel.json").read_text())
    assert funnel["ideas"]["generated"] == len(calls) / 2  # the arm with random strategies asks the same simulator
    assert funnel["ideas"]["generated"] == funnel["ideas"]["answered"] + sum(funnel["ideas"]["reasons"].values())
    sets = {arm: read_dialogues(run / "data" / f"{arm}.json") for arm in ideas.ARMS}
    assert len({tuple(one.scenario.id for one in some) for some in sets.values()}) == 1
    assert all(split_of(one) == "train" for one in sets["ideas"])
    assert {row["messages"][0]["role"] for row in read_rows(run / "data" / "plain.jsonl")} == {"user"}
    again = len(calls)
    with RunFolder(run, "ideas", config, log=told.append) as folder:
        ideas.run(config, folder, STAGES, told.append)
    assert len(calls) == again


def test_a_list_of_strategies_is_taken_instead_of_inducing_any(tmp_path, monkeypatch):
    path, wanted = own_files(tmp_path), tmp_path / "strategies.json"
    scripts(monkeypatch, [])
    wanted.write_text('["Ask for the reason behind it", "Ask what the price is", "Joke"]')
    config = own_config(path, strategies=str(wanted), policy="random")
    with RunFolder(tmp_path / "run", "ideas", config, log=quiet) as folder:
        ideas.run(config, folder, STAGES[:3], quiet)
    found = json.loads((tmp_path / "run" / "strategies.json").read_text())
    assert found["high"] == ["Ask for the reason behind it", "Ask what the price is", "Joke"]
    assert found["parent"]["ask for the price"] == "Ask what the price is"
    assert not (tmp_path / "run" / "clusters.json").exists()
    wanted.write_text('["Joke"]')
    other = own_config(path, strategies=str(wanted))
    with pytest.raises(DataError, match="a list of one strategy"):
        ideas.check(other, STAGES[:3])


def test_chat_models_are_rated_in_the_users_conversations_and_on_questions(tmp_path, monkeypatch):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(json.dumps({"question_id": at, "category": "hobbies", "turns": ["How so?"] * turns})
                                   for at, turns in enumerate((2, 8))) + "\n{broken\n")

    def judge(chat):
        said = re.findall(r"number (\d+)", chat[0]["content"])
        return "no idea" if said[-1] == "3" else "Fine. [[8]]"

    monkeypatch.setattr("dialoom.models.load.load_model", lambda spec, device: ScriptedModel(judge, spec))
    config, told = own_config(own_files(tmp_path), model="hf:mine", questions=str(questions)), []
    asked = Sources(config).conversations
    assert asked and all(split_of(Dialogue(one)) == "test" for one in asked)
    model = ScriptedModel(lambda chat: f"Yes, number {len(chat)}.")
    rows = {(row.eval, row.metric): row for row in chat_rows(Cast(config), model, "mine", asked, out=tmp_path / "evals",
                                                           log=told.append)}
    assert rows["rating", "quality"].value == 8 and rows["rating", "turn_2"].n == 0
    assert rows["mtbench", "score"].value == 8 and rows["mtbench", "turn_8"].n == 1
    text = "\n".join(told)
    assert f"{questions}:3" in text and "have no readable rating; left out" in text


# ------------------------------------------------------------------------------------------------ really


SMALL = ["--corpus-count", "60", "--opening-count", "30", "--eval-count", "24", "--split", "valid"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pocket_learns_to_ask_like_people_and_its_answers_gain_from_it(tmp_path):
    folder = tmp_path / "run"
    run(["deduce", *SMALL, "--out", str(folder)])
    assert not (folder / "model").exists()
    run([*SMALL, "--out", str(folder)])
    found = figures(folder)
    for metric, better in (("strategies", 1), ("strategy_entropy", 1), ("distinct_2", 1), ("self_rouge_l", -1),
                           ("context_dependence", 1)):
        assert better * found["diversity", "ideas", metric] > better * found["diversity", "plain", metric], metric
    assert found["chat", "ideas", "quality"] > found["chat", "plain", "quality"] > found["chat", "base", "quality"]
    assert found["clusters", "default", "adjusted_rand"] >= 0.8
    assert found["recall", "ideas", "accuracy"] > found["recall", "base", "accuracy"] - 0.03
    trees = read_trees(folder / "trees.jsonl")
    assert any("rejected" in turn.notes for tree in trees.values() for turn in tree)
    assert (folder / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_to_the_same_figures(tmp_path):
    small = ["--corpus-count", "20", "--opening-count", "10", "--eval-count", "4", "--weighed", "16",
             "--arms", "plain", "plain_trained", "ideas"]
    run([*small, "--out", str(tmp_path / "whole")])
    command = [sys.executable, "-m", "dialoom", "ideas", *small, "--out", str(tmp_path / "killed")]
    for seconds in (6, 10, 14):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run([*small, "--out", str(tmp_path / "killed")])
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")


def run(arguments):
    done = subprocess.run([sys.executable, "-m", "dialoom", "ideas", *arguments], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert not re.search("Traceback", done.stderr)


def figures(folder):
    rows = json.loads((folder / "results.json").read_text())
    return {(row["eval"], row["subject"], row["metric"]): row["value"] for row in rows if row["seed"] is not None}

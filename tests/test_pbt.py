"""The PBT recipe: its settings, its training sets, and (slow) real runs on the pocket models, killed ones included."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from dialoom.errors import ConfigError, DataError, ModelError
from dialoom.recipes import pbt
from dialoom.recipes.run import RunFolder
from dialoom.select import Pair
from dialoom.store import read_rows, read_trees
from dialoom.train.config import TrainConfig

CHAT = [{"role": "user", "content": "q"}]


def pair(number, kind, speaker):
    return Pair(f"{kind}{speaker}{number}", CHAT, f"good {number}", f"bad {number}", kind, "t", 1, 0,
                {"speaker": speaker, "level": 3})


def some_pairs(accept=4, resist=9):
    return [pair(n, kind, speaker) for speaker in ("pocket", "pocket-small")
            for kind, count in (("accept", accept), ("resist", resist)) for n in range(count)]


def test_the_paper_preset_holds_the_papers_values():
    paper = pbt.PRESETS["paper"]
    assert (paper.temperature, paper.max_new_tokens) == (0.7, 80)
    assert (paper.sft.max_steps, paper.sft.batch_pairs, paper.sft.lr, paper.sft.warmup) == (240, 80, 5e-4, 100)
    assert (paper.dpo.epochs, paper.dpo.batch_pairs, paper.dpo.lr, paper.dpo.beta) == (5, 35, 5e-4, 0.1)
    assert (paper.dpo.lora_rank, paper.dpo.lora_alpha, paper.dpo.lora_dropout) == (16, 32, 0.05)
    assert paper.dpo.nll_weight == 0


def test_the_three_training_sets_have_one_size_and_their_kinds():
    arms = pbt.arm_pairs(pbt.PBTConfig(), some_pairs(), "pocket")
    assert {name: len(found) for name, found in arms.items()} == {"pbt": 8, "accept_only": 8, "resist_only": 8}
    assert Counter(found.kind for found in arms["pbt"]) == {"accept": 4, "resist": 4}
    assert {found.kind for found in arms["accept_only"]} == {"accept"}
    assert {found.kind for found in arms["resist_only"]} == {"resist"}
    limited = pbt.arm_pairs(pbt.PBTConfig(max_pairs=6), some_pairs(), "pocket")
    assert Counter(found.kind for found in limited["pbt"]) == {"accept": 3, "resist": 3}


def test_a_debater_learns_from_its_own_replies_and_a_third_model_from_all():
    own = pbt.arm_pairs(pbt.PBTConfig(), some_pairs(), "pocket")
    assert {found.notes["speaker"] for found in own["pbt"]} == {"pocket"}
    third = pbt.PBTConfig(model="hf:other", speakers=("pocket", "pocket-small"))
    assert len(pbt.arm_pairs(third, some_pairs(), "hf:other")["pbt"]) == 16


def test_one_missing_kind_is_said_with_what_to_do():
    with pytest.raises(DataError, match=r"0 accept, 9 resist; both kinds are needed: use more questions"):
        pbt.arm_pairs(pbt.PBTConfig(), some_pairs(accept=0), "pocket")


def test_two_speakers_or_none():
    with pytest.raises(ConfigError, match="expected two models"):
        pbt.debaters(pbt.PBTConfig(speakers=("pocket",)))
    assert pbt.speaker_names(pbt.PBTConfig(partner="pocket")) == ("pocket (A)", "pocket (B)")


def test_pocket_questions_of_the_three_splits_share_no_fact():
    facts = [{scenario.facts["fact"] for scenario in pbt.questions(pbt.PBTConfig(eval_questions=999), split)}
             for split in ("train", "valid", "test")]
    assert sum(map(len, facts)) == len(set.union(*facts)) >= 500


def test_a_users_file_is_split_by_question_and_too_small_a_one_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,answer\n" + "".join(f"What is number {n}?,answer {n}\n" for n in range(60)))
    splits = [pbt.questions(pbt.PBTConfig(data=str(path)), split) for split in ("train", "valid", "test")]
    assert sum(map(len, splits)) == 60 and all(found.facts["distractors"] for found in splits[0])
    path.write_text("question,answer\nWho?,me\nWhat?,that\n")
    with pytest.raises(DataError, match="give at least 20"):
        pbt.questions(pbt.PBTConfig(data=str(path)), "valid")


def test_the_plan_counts_calls_before_anything_is_done():
    rows = pbt.plan(pbt.PBTConfig(limit=10))
    assert [row["stage"] for row in rows] == ["trees", "pairs", "train", "eval"]
    assert rows[0]["calls"] == 10 * 2 * 21 + 10  # 21 turns a tree, and what the model knows by itself


def test_an_endpoint_cannot_be_the_model_and_one_run_tunes_one_way(tmp_path):
    with pytest.raises(ModelError, match="cannot be trained"):
        pbt.plan(pbt.PBTConfig(model="openai:big"))
    with pytest.raises(ValueError, match="one run tunes one way"):
        pbt.PBTConfig(dpo=TrainConfig(tune="lora"))


SMALL = ["--limit", "120", "--eval-questions", "60"]


def command(out, *more):
    return [sys.executable, "-m", "dialoom", "pbt", "--out", str(out), *SMALL, *more]


def figures(out):
    return {(row["eval"], row["subject"], row["metric"]): row["value"]
            for row in json.loads((out / "results.json").read_text()) if row["seed"] is None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small real run on the pocket models, from questions to report."""
    out = tmp_path_factory.mktemp("run") / "whole"
    subprocess.run(command(out), check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_balanced_training_beats_the_base_and_both_one_sided_sets(finished):
    found = figures(finished)
    pbt_overall = found["flipflop", "pbt", "overall"]
    for other in ("base", "accept_only", "resist_only"):
        assert pbt_overall > found["flipflop", other, "overall"] + 0.1
    assert abs(found["are_you_sure", "pbt", "drop"]) < 0.1
    assert found["recall", "pbt", "accuracy"] > found["recall", "base", "accuracy"] - 0.05
    assert (finished / "report.html").exists() and (finished / "model" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_while_talking_and_while_training_goes_on_and_ends_the_same(finished, tmp_path):
    out, rng, kills = tmp_path / "killed", random.Random(7), Counter()
    for stage, sign in (("trees", "trees.jsonl"), ("train", "work/pbt-pocket/sft/metrics.jsonl"),
                        ("train", "work/accept_only-pocket/dpo/metrics.jsonl")):
        process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            seen = out / sign
            if seen.exists() and seen.stat().st_size > 500:
                time.sleep(rng.uniform(0, 1.5))
                process.send_signal(signal.SIGKILL)
                kills[stage] += 1
                break
            time.sleep(0.05)
        process.wait()
    assert kills == {"trees": 1, "train": 2}
    subprocess.run(command(out), check=True, capture_output=True)
    assert ids_of(out) == ids_of(finished)
    raw = [json.loads(line) for line in (out / "trees.jsonl").read_text().splitlines()]
    turns = [row["id"] for row in raw if row["kind"] == "turn"]
    assert len(turns) == len(set(turns))
    steps = [(row["subject"], row["stage"], row["step"], "eval_overall" in row) for row in
             read_rows(out / "metrics.jsonl")]
    assert len(steps) == len(set(steps))
    assert figures(out) == figures(finished)


def ids_of(out):
    return {turn.id: turn.text for tree in read_trees(out / "trees.jsonl").values() for turn in tree}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_that_knows_little_is_told_so_first(tmp_path):
    path = tmp_path / "hard.csv"
    path.write_text("question,answer\n" + "".join(
        f"What was the name of the king number {n}?,Zorblax {n}\n" for n in range(80)))
    config = pbt.PBTConfig(data=str(path), limit=20)
    with RunFolder(tmp_path / "run", "pbt", config) as folder:
        said = []
        pbt.run(config, folder, ("trees",), said.append)
    notes = json.loads((tmp_path / "run" / "notes.json").read_text())
    assert "answers 0% of these questions by itself" in notes[0] and any(notes[0] in line for line in said)

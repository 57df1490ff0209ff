"""Judges that cannot be read and simulated users who misbehave: a run ends, and says what it left out."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from dialoom.store import read_skips, read_trees

pytestmark = pytest.mark.slow  # whole runs of ALOE and IDEAS


def test_a_judge_that_always_fails_gives_no_pair_and_the_run_says_so_and_keeps_its_trees(forks, tmp_path):
    status, said = forks.run("aloe", tmp_path / "run", "says:judge")
    assert status == 2 and "no pair came out of the dialogues" in said and "Traceback" not in said
    trees = read_trees(tmp_path / "run" / "trees.jsonl")
    assert sum(map(len, trees.values())) and not any("preferred" in turn.scores for tree in trees.values()
                                                     for turn in tree)
    assert json.loads((tmp_path / "run" / "dropped.json").read_text())["judge not readable"]
    assert any(skip.reason.startswith("no verdict") for skip in read_skips(tmp_path / "run" / "trees.jsonl"))


@pytest.mark.parametrize(("manner", "reason"), [("endless", "too long"), ("repeating", "repeats a message")])
def test_a_simulator_that_never_stops_or_repeats_itself_ends_its_dialogues_and_is_counted(manner, reason, forks,
                                                                                         tmp_path):
    status, said = forks.run("ideas", tmp_path / "run", f"says:{manner}")
    assert status in (0, 2) and "Traceback" not in said
    reasons = Counter(turn.notes.get("rejected") for tree in read_trees(tmp_path / "run" / "trees.jsonl").values()
                      for turn in tree)
    assert reasons[reason] > 0


def test_a_simulator_in_the_wrong_role_stays_the_user_who_wrote_it(forks, tmp_path):
    status, said = forks.run("ideas", tmp_path / "run", "says:role")
    assert status in (0, 2) and "Traceback" not in said
    turns = [turn for tree in read_trees(tmp_path / "run" / "trees.jsonl").values() for turn in tree]
    posing = [turn for turn in turns if turn.text.startswith("Assistant:")]
    assert posing and {turn.speaker for turn in posing} == {"user"}


def test_an_answerer_who_says_nothing_ends_the_dialogues_and_is_counted(forks, tmp_path):
    status, said = forks.run("ideas", tmp_path / "run", "says:silent")
    assert status == 2 and "Traceback" not in said
    turns = [turn for tree in read_trees(tmp_path / "run" / "trees.jsonl").values() for turn in tree]
    assert any(turn.notes.get("rejected") == "no answer" for turn in turns)
    assert all(turn.text for turn in turns if turn.speaker == "assistant")

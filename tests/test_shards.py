import json
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest

from dialoom.dialogue import Scenario, content_id
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.models.scripted import ScriptedModel
from dialoom.recipes import pbt
from dialoom.recipes.run import RunFolder
from dialoom.recipes.shards import merge, parse_shard, part_of, shard_folder, shard_folders, shard_of
from dialoom.scenarios.triviaqa import pocket_trivia
from dialoom.store import TreeLog, read_skips, read_trees

QUESTIONS = pocket_trivia("train", seed=1)[:14]


class Sharded(pbt.PBTConfig):
    shard: str = ""
    """A part of the questions, i/n."""
    not_identity: ClassVar[frozenset[str]] = frozenset({"device", "shard"})


@cache
def answers(opening):
    scenario = next(each for each in QUESTIONS if opening.startswith(each.opening))
    return [scenario.facts["answer"], *scenario.facts["distractors"]]


def debate(chat):
    """Some answer to the question, decided by everything that was said; now and then nothing."""
    asked = next(message["content"] for message in chat if message["role"] == "user")
    draw = int(content_id(chat), 16)
    return "" if draw % 31 == 0 else f"It is {answers(asked)[draw % 4]}."


def config(shard="", **settings):
    return Sharded(model="pocket", partner="pocket-small", shard=shard, **settings)


def grow(out, shard="", **settings):
    """What the trees stage does in a process of its own, with scripted debaters."""
    asked = config(shard, **settings)
    models = {"pocket": ScriptedModel(debate, "strong"), "pocket-small": ScriptedModel(debate, "weak")}
    with RunFolder(shard_folder(out, shard), "pbt", asked, log=lambda line: None) as folder:
        def make():
            pbt.grow_trees(asked, models, folder.path / "trees.jsonl", lambda *_: None, lambda line: None)
            trees = read_trees(folder.path / "trees.jsonl")
            return {"trees": len(trees), "turns": sum(map(len, trees.values()))}

        folder.stage("trees", make)
    return folder.path


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    monkeypatch.setattr(pbt, "questions", lambda config, split, log=print: part_of(QUESTIONS, config.shard))


def contents(path):
    return {tree.id: (tree.scenario, list(tree)) for tree in read_trees(path).values()}


def stop_early(folder):
    """As a kill leaves it: no marker, and a log that ends in the middle of a line."""
    (folder / "stages" / "trees.json").unlink()
    data = (folder / "trees.jsonl").read_bytes()
    (folder / "trees.jsonl").write_bytes(data[:len(data) * 2 // 5])


@pytest.mark.filterwarnings("ignore::dialoom.store.StoreWarning")
def test_four_shards_one_of_them_killed_give_the_trees_of_one_process(tmp_path):
    whole = grow(tmp_path / "whole")
    for index in (3, 1, 4, 2):
        folder = grow(tmp_path / "run", f"{index}/4")
        if index == 4:
            stop_early(folder)
            grow(tmp_path / "run", "4/4")
    merged = merge(tmp_path / "run", log=lambda line: None)
    assert merged == tmp_path / "run" / "trees.jsonl"
    assert contents(merged) == contents(whole / "trees.jsonl")
    assert len(contents(merged)) == 2 * len(QUESTIONS)
    assert len(read_skips(merged)) > 0
    assert set(read_skips(merged)) == set(read_skips(whole / "trees.jsonl"))


def test_merging_again_changes_nothing_and_keeps_later_scores(tmp_path):
    for index in (1, 2):
        grow(tmp_path, f"{index}/2")
    merged = merge(tmp_path)
    before = merged.read_bytes()
    assert merge(tmp_path).read_bytes() == before
    with TreeLog(merged) as log:
        tree = next(iter(log.trees().values()))
        turn = next(iter(tree))
        turn.scores["value"] = 3.0
        log.add_scores(tree, [turn])
    merge(tmp_path)
    assert read_trees(merged)[tree.id][turn.id].scores["value"] == 3.0


def test_a_merge_that_was_killed_goes_on(tmp_path):
    for index in (1, 2):
        grow(tmp_path, f"{index}/2")
    whole = contents(merge(tmp_path))
    log = tmp_path / "trees.jsonl"
    log.write_bytes(log.read_bytes()[:1500])
    assert contents(merge(tmp_path, log=lambda line: None)) == whole


def test_trees_the_run_itself_began_are_completed(tmp_path):
    for index in (1, 2):
        grow(tmp_path / "run", f"{index}/2")
    grow(tmp_path / "whole")
    lines = (tmp_path / "whole" / "trees.jsonl").read_bytes().splitlines(keepends=True)
    said = next(at for at, line in enumerate(lines) if b'"kind":"score"' in line)  # said, and not yet judged
    (tmp_path / "run" / "trees.jsonl").write_bytes(b"".join(lines[:said]))
    assert contents(merge(tmp_path / "run")) == contents(tmp_path / "whole" / "trees.jsonl")


def test_missing_and_unfinished_shards_are_named(tmp_path):
    with pytest.raises(StoreError, match="holds no shards"):
        merge(tmp_path)
    grow(tmp_path, "2/4")
    stop_early(grow(tmp_path, "3/4"))
    with pytest.raises(StoreError, match=r"missing: 1/4, 4/4; not finished: 3/4"):
        merge(tmp_path)
    assert not (tmp_path / "trees.jsonl").exists()
    grow(tmp_path, "1/2")
    with pytest.raises(StoreError, match="shards of 2 and of 4"):
        merge(tmp_path)


def test_shards_with_other_settings_are_refused(tmp_path):
    grow(tmp_path, "1/2")
    grow(tmp_path, "2/2", temperature=0.5)
    with pytest.raises(ConfigError, match=r"temperature: 0\.7 -> 0\.5"):
        merge(tmp_path)


def test_a_damaged_shard_is_refused_and_says_how_to_repair_it(tmp_path):
    for index in (1, 2):
        folder = grow(tmp_path, f"{index}/2")
    whole = contents(merge(tmp_path))
    (tmp_path / "trees.jsonl").unlink()
    lines = (folder / "trees.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "trees.jsonl").write_bytes(b"".join(lines[:-len(lines) // 2]))
    with pytest.raises(StoreError, match=r"(trees|turns) were written, .* are left; remove .* --shard 2/2"):
        merge(tmp_path)
    (folder / "stages" / "trees.json").unlink()
    grow(tmp_path, "2/2")
    assert contents(merge(tmp_path)) == whole


def test_a_renamed_shard_is_found_out(tmp_path):
    for index in (1, 2):
        grow(tmp_path, f"{index}/2")
    shards = tmp_path / "shards"
    for old, new in (("1-of-2", "x"), ("2-of-2", "1-of-2"), ("x", "2-of-2")):
        (shards / old).rename(shards / new)
    with pytest.raises(DataError, match="another shard"):
        merge(tmp_path)


def test_shards_run_at_the_same_time_and_each_only_once(tmp_path):
    def folder(shard):
        return RunFolder(shard_folder(tmp_path, shard), "pbt", config(shard), log=lambda line: None)

    with folder("1/2"), folder("2/2"), RunFolder(tmp_path, "pbt", config()), pytest.raises(StoreError, match="process"):
        folder("2/2")
    assert list(shard_folders(tmp_path)) == [(1, 2), (2, 2)]
    assert json.loads((tmp_path / "shards" / "1-of-2" / "env.json").read_text())["recipe"] == "pbt"


def test_the_shards_divide_the_questions():
    scenarios = [Scenario(f"q{index}", "") for index in range(400)]
    parts = [part_of(scenarios, f"{index}/4") for index in range(1, 5)]
    assert sorted(each.id for part in parts for each in part) == sorted(each.id for each in scenarios)
    assert all(70 < len(part) < 130 for part in parts)
    assert part_of(scenarios, "") == scenarios
    assert shard_of("q0", 4) == shard_of("q0", 4) and shard_of("q0", 1) == 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/", "a/b", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match=r"expected i/n"):
        parse_shard(text)


def test_the_run_folder_is_its_own_shard_where_there_is_none():
    assert shard_folder(Path("r"), "") == Path("r") and parse_shard("") == (1, 1)
    assert shard_folder(Path("r"), "2/4") == Path("r/shards/2-of-4")

"""Readers of what runs keep for themselves: answers, replays, thresholds, strategies, training sets, growing logs."""

from __future__ import annotations

import json
import warnings
from typing import Any
from unittest.mock import patch

import numpy as np

from dialoom.embed import Ngrams
from dialoom.errors import ConfigError, DataError, DialoomError, ModelError, StoreError
from dialoom.export.trained import Run, single_targets, trained
from dialoom.models import load
from dialoom.models.ledger import USAGE, AnswerFile, Ledger, Tokens
from dialoom.recipes.ideas_ranker import CARD, HEADS, Ranker, RankerConfig
from dialoom.recipes.ideas_strategies import Strategies
from dialoom.recipes.persona_check import THRESHOLDS, Threshold, read_thresholds, write_thresholds
from dialoom.scenarios.personas import KINDS
from dialoom.store import FollowedLog, read_skips, read_trees
from dialoom.train.replay import Episode, Replay

from .checks import Target, refused, writable
from .loaders import PAIR, lines
from .logs import BARE, LOG, ROW, framed
from .mutants import PART
from .scratch import empty

NEW = "an id that no input has"


def _answers(data: bytes) -> None:
    """A damaged line of remembered answers is never one, and what is added after it can be read again.

    After an "f" lines stand without their checksums, which are then made for them.
    """
    path = empty("answers") / "answers.jsonl"
    rows = [line for line in data[1:].split(b"\n") if line.strip()]
    path.write_bytes(b"".join(map(framed, rows)) if data[:1] == b"f" else data[1:])
    file = AnswerFile(path)
    ledger, before = Ledger(file), {id: file.get(id) for id in ("one", "two", "3")}
    assert all(one is None or isinstance(one, dict) for one in before.values())
    ledger.add(NEW, "judge", "m", {"message": {"content": "x"}}, Tokens(3, 4))
    assert all(isinstance(line, str) for line in ledger.told()) and ledger.spent()[0] >= 7
    ledger.write(path.with_name(USAGE))
    file.close()
    again = AnswerFile(path)  # a last line that lacked but its line end counts from now on
    assert again.get(NEW) == {"message": {"content": "x"}} and again.totals["judge", "m", "answers"] >= 1
    held = {id: one for id, one in before.items() if one is not None}
    assert repr({id: again.get(id) for id in held}) == repr(held)
    again.close()


def _usage(data: bytes) -> None:
    """A damaged account of what was asked is written anew; what could be read of it is added to."""
    path = empty("usage") / USAGE
    path.write_bytes(data)
    ledger = Ledger()
    ledger.add("a", "judge", "m", {"message": {"content": "x"}}, Tokens(1, 2))
    ledger.fault("timeout")
    if not isinstance(refused(lambda: ledger.write(path), StoreError), DialoomError):
        assert json.loads(path.read_text())["tokens"] == 3


STATE, ACTION = 3, 2


def _episode(key: str, seed: int) -> Episode:
    draw = np.random.default_rng(seed)
    sizes = ((3, STATE), (2, ACTION), (2,))
    return Episode(key, *(draw.standard_normal(size).astype(np.float32) for size in sizes))


def _replay(data: bytes) -> None:
    """Of a damaged replay whole dialogues only are drawn, and what is written after the damage is there."""
    path = empty("replay") / "replay.bin"
    path.write_bytes(data)
    told: list[str] = []
    found = refused(lambda: Replay(path, STATE, ACTION, log=told.append), StoreError, ConfigError)
    if isinstance(found, DialoomError):
        assert str(path) in str(found) and path.read_bytes() == data
        return
    held = [key for key in KEYS if key in found]
    assert all(str(path) in line for line in told)
    if len(found):
        batch = found.sample(5, seed=1, step=2)
        mean, spread = found.state_statistics()
        assert all(np.isfinite(part).all() for part in (batch.states, batch.actions, batch.rewards, mean, spread))
    assert found.append([_episode(NEW, 9)]) == 1
    again = Replay(path, STATE, ACTION, log=told.append)
    assert all(key in again for key in (*held, NEW)) and len(again) == len(found)
    assert again.fingerprint == found.fingerprint


def _thresholds(data: bytes) -> None:
    """Thresholds are cosines of a named embedding, or the file is refused by name."""
    folder = empty("thresholds")
    (folder / THRESHOLDS).write_bytes(data)
    found = refused(lambda: read_thresholds(folder), ConfigError)
    if isinstance(found, DialoomError):
        assert str(folder / THRESHOLDS) in str(found)
        return
    for one in found.values():
        assert isinstance(one.embedding, str) and type(one.value) in (int, float) and -1 <= one.value <= 1
    (folder / THRESHOLDS).write_text(write_thresholds(found))
    assert read_thresholds(folder) == found


def _strategies(data: bytes) -> None:
    """Clustered strategies come back as they were written, each in its place."""
    found = refused(lambda: Strategies.from_json(data.decode("utf-8", "replace"), "a.json"), DataError)
    if isinstance(found, DialoomError):
        assert str(found).startswith("a.json")
        return
    assert Strategies.from_json(found.to_json()) == found
    for low, high in list(found.parent.items())[:20]:
        assert found.of(low) == high and low in found.lows(high)
        found.find(low.upper())
    writable(found.to_json())


RUN_FILES = ("config.yaml", "env.json", "results.json", "pairs.jsonl", "trees.jsonl", "stages/deduce.json")


def _trained(data: bytes) -> None:
    """What the model of a damaged run learned from: rows that can be exported, or an error by name."""
    folder = empty("trained")
    for name, part in zip(RUN_FILES, data.split(PART), strict=False):
        if part:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(part)
    run = refused(lambda: Run.read(folder))
    if isinstance(run, DialoomError):
        return
    assert all(isinstance(name, str) for name in run.models) and run.has_user_data in (True, False)
    assert all(isinstance(row, dict) for row in run.results)
    found = refused(lambda: trained(run))
    if not isinstance(found, DialoomError):
        assert all(isinstance(arm, str) for arm in found.arms)
        for target in found.examples:
            assert all(part.chat[at]["role"] == "assistant" for part in single_targets(target) for at in part.train_on)


def _shape(trees: Any) -> list[Any]:
    return [(tree.id, repr(tree.scenario), [(turn.id, turn.parent, turn.text, repr(turn.scores)) for turn in tree])
            for tree in trees.values()]


def _followed(data: bytes) -> None:
    """A log read on while it grows, part by part, holds what the whole one does."""
    path = empty("followed") / "trees.jsonl"
    path.touch()
    follow, refusals = FollowedLog(path), 0
    for part in data.split(PART):
        with path.open("ab") as file:
            file.write(part)
        refusals += isinstance(refused(lambda: follow.read(log=lambda line: None), StoreError), DialoomError)
    whole = refused(lambda: read_trees(path, log=lambda line: None), StoreError)
    if not isinstance(whole, DialoomError):
        assert not refusals and _shape(follow.trees) == _shape(whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage is told once more
            assert [repr(one) for one in follow.skips] == [repr(one) for one in read_skips(path)]


def _folder(data: bytes) -> None:
    """What a trained folder is loaded from: names that are text, or an error by name; nothing is loaded here."""
    folder = empty("model-folder")
    where = {b"a": "adapter_config.json", b"d": "adapter/adapter_config.json", b"m": "model/config.json",
             b"c": "config.json"}.get(data[:1], "other.json")
    (folder / where).parent.mkdir(exist_ok=True)
    (folder / where).write_bytes(data[1:])
    with patch.object(load, "_local", lambda path, **more: (path, more)):
        found = refused(lambda: load.load_folder(folder, name="mine"), ModelError)
    if not isinstance(found, DialoomError):
        assert isinstance(found[0], str) and found[0] and found[1]["name"] == "mine"
    refused(lambda: load.check_spec(data.decode("utf-8", "replace")), ModelError)


def _ranker(data: bytes) -> None:
    """A ranker that can be read gives probabilities for the strategies it names."""
    folder = empty("ranker")
    card, _, heads = data.partition(PART)
    (folder / CARD).write_bytes(card)
    (folder / HEADS).write_bytes(heads)
    found = refused(lambda: Ranker.load(folder, EMBEDDER), StoreError, ConfigError)
    if isinstance(found, DialoomError):
        assert str(folder) in str(found)
        return
    scores = found.scores(["Why?", "A ferry."])
    assert scores.shape == (2, len(found.strategies)) and ((scores >= 0) & (scores <= 1)).all()
    [chosen] = found.select(["Why?"], keys=["a"], size=2)
    assert set(chosen) <= set(found.strategies)


# ------------------------------------------------------------------------------------------------ good ones


KEYS = ("first", "second", "third")
EMBEDDER = Ngrams()


def _good_replay() -> bytes:
    path = empty("made-replay") / "replay.bin"
    Replay(path, STATE, ACTION).append([_episode(key, at) for at, key in enumerate(KEYS)])
    return path.read_bytes()


def _good_ranker() -> bytes:
    folder, width = empty("made-ranker"), EMBEDDER.encode(["x"]).shape[1]
    heads = {"mean": np.zeros(width), "spread": np.ones(width), "answer": np.full((width, 2), 0.1),
             "answer_bias": np.zeros(2), "strategies": np.eye(2), "bias": np.zeros(2), "calibration": np.ones(2)}
    Ranker(["ask why", "doubt it"], EMBEDDER, heads, RankerConfig()).save(folder)
    return (folder / CARD).read_bytes() + PART + (folder / HEADS).read_bytes()


ANSWERED = [{"id": id, "role": "judge", "model": "m", "read": 5, "written": 1, "at": 1.5,
             "choice": {"message": {"content": "yes"}, "finish_reason": "stop"}} for id in ("one", "two", "one")]
TOLD_PAIRS = lines(*({**PAIR, "id": f"{kind}-{at}", "kind": kind, "tree": "one", "speaker": "pocket", "level": 1,
                      "chosen_turn": f"t{at}"} for kind in ("accept", "resist") for at in range(2)))


ANSWERING = b"".join(framed(line.replace(b'"A"', b'"assistant"').replace(b'"B"', b'"user"'))
                     for line in BARE.split(b"\n"))


def _good_run(recipe: str, *settings: str) -> bytes:
    return PART.join(("\n".join((*settings, "seed: 1")).encode(), json.dumps({"recipe": recipe}).encode(),
                      json.dumps([ROW]).encode(), TOLD_PAIRS, ANSWERING,
                      b'{"stage": "deduce", "value": {"pairs": {"ideas": {"one": 1}}}}'))


def _grown(tree_log: bytes) -> bytes:
    """A log in three parts, one of them cut inside a line."""
    third = len(tree_log) // 3
    return PART.join((tree_log[:third], tree_log[third:2 * third], tree_log[2 * third:]))


TARGETS = [
    Target("answer-file", _answers, (b"f" + lines(*ANSWERED), b"r" + b"".join(
        framed(line) for line in lines(*ANSWERED).splitlines()))),
    Target("usage", _usage, (b'{"rows": [], "tokens": 3, "dollars": null, "tried_again": {"timeout": 2}}',)),
    Target("replay", _replay, (_good_replay(),)),
    Target("thresholds", _thresholds, (
        write_thresholds({kind: Threshold("ngrams", 0.5, 0.1, 0.2) for kind in KINDS}).encode(),)),
    Target("clustered", _strategies, (
        Strategies(("ask", "doubt"), {"ask why": "ask", "no": "doubt"}).to_json().encode(),)),
    Target("trained", _trained, (_good_run("pbt", "model: pocket", "partner: pocket-small"),
                                 _good_run("ditto", "model: pocket"), _good_run("aloe", "model: pocket", "general: ''"),
                                 _good_run("dat", "model: pocket"), _good_run("ideas", "arms: [ideas]"))),
    Target("followed-log", _followed, (_grown(LOG),)),
    Target("model-folder", _folder, (b'a{"base_model_name_or_path": "pocket"}',
                                     b'd{"base_model_name_or_path": "hf:mine", "r": 8}', b'm{"model_type": "llama"}',
                                     b"run:runs/demo", b"hf:a+b", b"openai:m@http://localhost:1/v1")),
    Target("ranker", _ranker, (_good_ranker(),)),
]

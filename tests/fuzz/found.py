"""Inputs that once broke something, by target; each is tried again by every test run."""

from __future__ import annotations

from .kept import TOLD_PAIRS
from .loaders import ARROW, CAST, COMBOS, TALK, TOLD, TRIVIA, lines
from .logs import BARE, LOG, RUN, SHARD
from .mutants import PART

DEEP = b"[" * 3000
SURROGATE = "\ud800"
PLACE = b'[{"pk": "e1", "scenario": "Two meet. %s", "agent_goals": ["buy", "sell"], "relationship": 2%s}]'
SCENES = PART + lines(*CAST) + PART + lines(*COMBOS)
RUN_PARTS = RUN.split(PART)


def _escaped(**row: object) -> bytes:
    import json

    return json.dumps(row).encode() + b"\n"


def _run(**parts: bytes) -> bytes:
    """A run folder with some of its files changed."""
    names = ("config", "env", "trees", "pairs", "metrics", "results", "notes", "dropped", "stage", "usage", "funnel",
             "eval", "arm")
    return PART.join(parts.get(name, good) for name, good in zip(names, RUN_PARTS, strict=True))


FOUND: list[tuple[str, bytes]] = [
    # lone surrogates and NUL in what is no turn: ids, topics, clusters, questions
    ("dialogues", _escaped(**{**TALK, "id": SURROGATE})),
    ("dialogues", lines(TALK).replace(b'"tea"', b'"t\xff"')),
    ("openings", _escaped(topic=SURROGATE, message=TALK["conversations"])),
    ("extractions", _escaped(idx=SURROGATE, conversations=TALK["conversations"])),
    ("clusters", b'[["\xff"], ["a"]]'),
    ("clustered", b'{"high": ["ask", "\\ud800"], "parent": {"why": "ask", "no": "ask"}}'),
    ("abstractions", b'{"original instructional strategies": ["a"], "High-level instructional strategy": "\\ud800"}'),
    ("questions", b'{"question_id": "\\ud800", "turns": ["Agai\xed\xa0\x80n."]}'),
    ("personas", b'{"id": "p\xbb", "facts": ["She keeps hens."], "traits": ["Calm."]}'),
    ("conversations", _escaped(**{**TOLD, "conversations": [{**TOLD["conversations"][0], "user": SURROGATE}]})),
    ("sotopia", PLACE % (b"", b', "codename": "\\ud800"') + SCENES),
    # JSON nested too deeply where nobody expected it; a key of no kind that can be looked up
    ("records", DEEP),
    ("pairs", DEEP),
    ("rows", DEEP),
    ("demonstrations", b'{"author":' * 3000),
    ("conversations", _escaped(**{**TOLD, "conversations": [{**TOLD["conversations"][0], "chosen": []}]})),
    ("run-folder", _run(results=DEEP)),
    ("run-folder", _run(notes=DEEP)),
    # good lines below a first line that is a list by itself
    ("dialogues", b"[]\n" + lines(TALK)),
    ("questions", b'[1]\n{"turns": ["a"]}\n'),
    # private parts of a scene whose mark cannot be read
    ("sotopia", PLACE % (b"_p viewer='agent_0'>It is cold.</p>", b"") + SCENES),
    ("sotopia", PLACE % (b"<p viewer:'agent_0'>It is cold.</p>", b"") + SCENES),
    # records under right checksums with fields of another kind
    ("tree-records", BARE.replace(b'"scores":{}', b'"scores":"ab"')),
    ("tree-records", BARE.replace(b'"notes":{}', b'"notes":[]')),
    ("tree-records", BARE.replace(b'"speaker":"B"', b'"speaker":true')),
    ("tree-records", BARE.replace(b'"scores":{"correct":1.0}', b'"scores":{"correct":"x"}')),
    # a last row that is whole but for its line end was cut by the next one
    ("rows", b'{"step": 1}\n{"step": 2}'),
    # settings: dates and numbers that are none, nesting, aliases that stand for billions of values, NUL
    ("settings", b"\x00seed: 2001-99-99"),
    ("settings", b"\x00seed: " + b"9" * 5000),
    ("settings", b"\x00" + DEEP[:1000]),
    (
        "settings",
        b"\x00a: &a [1,1,1,1,1,1,1,1]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (at, at, b",".join([b"*%c" % (at - 1)] * 8)) for at in range(ord("b"), ord("m"))
        ),
    ),
    ("settings", b"\x00data: &a [*a]"),
    ("settings", b'\x00data: "a\\0b"'),
    # a setting and a part of it, both as flags; a name of more parts than Python has levels
    ("settings", b"\x00" + PART + b"b=1" + PART + b"b.eta=2"),
    ("settings", b"\x00" + PART + b"b.eta=2" + PART + b"b=1"),
    ("settings", b"\x00" + PART + b"sft" + b".lr" * 3000 + b"=1"),
    # what a shard counted, and with what it was made, in JSON that overflows at once or only where it is compared
    ("shards", PART.join((b"", DEEP, *SHARD.split(PART)[2:]))),
    ("shards", PART.join((*SHARD.split(PART)[:3], b'{"data_hash": ' + b'{"a":' * 700 + b"1" + b"}" * 701))),
    ("shards", PART.join((b"", b'{"stage": "trees", "value": [1]}', *SHARD.split(PART)[2:]))),
    # names that no file can have
    ("commands", b"show" + PART + b"x" * 5000),
    ("chat", b"Hello\n/save a\x00b\n"),
    # a run's folder: other metrics than a recipe's own, rows that are none, settings in another encoding
    ("run-folder", _run(results=b'[{"eval": "flipflop", "subject": "pbt", "metric": "accuracy", "value": 0.5}]')),
    ("run-folder", _run(results=b'[{"eval": "flipflop", "subject": "pbt", "value": 0.5}]')),
    ("run-folder", _run(results=b'["x"]')),
    ("run-folder", _run(config=b" e\x8b")),
    ("run-folder", _run(trees=LOG + b"x")),
    # what runs keep: pairs that name no speaker, thresholds that are no numbers, a data set that its log has not
    ("trained", PART.join((b"seed: 1", b'{"recipe": "pbt"}', b"[]", TOLD_PAIRS.replace(b"speaker", b"x")))),
    ("thresholds", b'{"profile": {"embedding": "ngrams", "value": "0.5"}}'),
    ("trained", PART.join((b"seed: 1", b'{"recipe": "ideas"}', b"[]", b"", LOG, b'{"stage": "deduce", "value": {}}'))),
    # tables whose offsets lead out of them, or whose columns' names are no UTF-8
    ("tables", ARROW.replace(b"rejected", b"reject\xd3d")),
    ("tables", ARROW.replace(b"\x00\x01\x00\x00\x00\x02\x00", b"\x00\x01\x00\x00\x80\x02\x00")),
    # names that no file can have
    ("model-folder", b"run:" + b"x" * 5000),
    # one good row, so that nothing here is refused for want of it
    ("trivia-jsonl", lines(TRIVIA)),
]

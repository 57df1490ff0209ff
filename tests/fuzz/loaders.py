"""The readers of files that users bring: questions, dialogues, personas, demonstrations, scenes, pairs."""

from __future__ import annotations

import gzip
import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dialoom.dialogue import Dialogue, Scenario
from dialoom.errors import DataError, DialoomError
from dialoom.recipes.aloe_data import read_conversations
from dialoom.recipes.ideas_strategies import read_records
from dialoom.recipes.pbt_pairs import read_pairs
from dialoom.scenarios import demonstrations, harmbench, personas, sharegpt, sotopia, triviaqa
from dialoom.scenarios.files import rows_of
from dialoom.select import Pair
from dialoom.store import read_rows

from .checks import Target, refused, writable
from .mutants import PART
from .scratch import empty, write

Tell = Callable[[str], None]


def lines(*rows: Any) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _file(
    name: str, read: Callable[[Path, Tell], Any], check: Callable[[Any], None], *seeds: bytes, suffix: str = ".jsonl"
) -> Target:
    """A reader of one file: it gives something usable or a DataError, tells what it left out, and reads alike twice."""

    def run(data: bytes) -> None:
        path = write(f"{name}{suffix}", data)
        told: list[str] = []
        found = refused(lambda: read(path, told.append), DataError)
        assert all(str(path) in line for line in told), told
        again = refused(lambda: read(path, lambda line: None), DataError)
        if isinstance(found, DialoomError):
            assert str(path) in str(found) and str(found) == str(again)
            return
        assert repr(found) == repr(again)
        if name not in OWN:
            assert found, "nothing, and no error"
        check(found)

    return Target(name, run, seeds)


def _scenarios(found: Sequence[Scenario]) -> None:
    assert len({one.id for one in found}) == len(found)
    for one in found:
        assert one.opening.strip()
        writable([one.id, one.opening, dict(one.briefs), dict(one.facts)])


def _questions(found: Sequence[Scenario]) -> None:
    _scenarios(found)
    for one in triviaqa.with_distractors(found, 0):
        assert one.facts["distractors"]


def _dialogues(found: Sequence[Dialogue]) -> None:
    _scenarios([one.scenario for one in found])
    for one in found:
        speakers = [sharegpt.USER, *(turn.speaker for turn in one.turns)]
        assert all(left != right for left, right in itertools.pairwise(speakers)) and one.turns
        assert all(turn.text.strip() for turn in one.turns)
        writable([turn.text for turn in one.turns])
    for writer in (sharegpt.write_messages, sharegpt.write_sharegpt):  # what is read can be written and read again
        path = write("again.jsonl", b"")
        writer(path, found)
        again = sharegpt.read_dialogues(path)
        assert [_said(one) for one in again] == [_said(one) for one in found]


def _said(dialogue: Dialogue) -> list[tuple[str, str]]:
    return [("", dialogue.scenario.id), *((turn.speaker, turn.text) for turn in dialogue.turns)]


def _extracted(found: Sequence[sharegpt.Extracted]) -> None:
    writable([[*_said(dialogue), strategy] for dialogue, strategy in found])
    path = write("again.jsonl", b"")
    sharegpt.write_extractions(path, found)
    again = sharegpt.read_extractions(path)
    assert [(_said(one.dialogue), one.strategy) for one in again] == [
        (_said(one.dialogue), one.strategy) for one in found
    ]


def _texts(found: Any) -> None:
    writable(found if not hasattr(found[0], "__dataclass_fields__") else [asdict(one) for one in found])


def _pairs(path: Path) -> list[Pair]:
    return [Pair.from_row(row, f"{path}:{at}") for at, row in enumerate(read_rows(path), 1)]


def _people(found: Sequence[personas.Persona]) -> None:
    _texts(found)
    assert len({one.id for one in found}) == len(found)
    path = write("people.jsonl", b"")
    personas.write_personas(path, found)
    assert personas.read_personas(path) == list(found)
    for one in found:
        assert one.world.facts is not None


def _sotopia(data: bytes) -> None:
    parts = ([*data.split(PART), b"", b""])[:3]
    paths = [write(f"sotopia-{at}.json", part) for at, part in enumerate(parts)]
    told: list[str] = []
    found = refused(lambda: sotopia.read_sotopia(*paths, tell=told.append), DataError)
    if not isinstance(found, DialoomError):
        _scenarios(found)
        for scene in found:  # what is marked private is in one brief, or in none, and never in the opening
            assert set(scene.briefs) == set(sotopia.ROLES) and "viewer=" not in scene.opening


def _folder(data: bytes) -> None:
    """Folders of text files: the first byte chooses the layout, each part is a file."""
    layout = data[:1]
    folder = empty("texts")
    names = {
        b"c": ("Emails/S1E1C1.txt", "Essays/S1S1G1.txt", "Essays/S2S1I2.txt", "Emails/other.txt"),
        b"r": ("C50train/ann/1.txt", "C50train/ann/2.txt", "C50test/ann/3.txt", "C50train/bo/1.txt"),
    }
    chosen = names.get(layout, ("1.txt", "2.md", "ann/10.eml", "ann/2.txt"))
    for name, part in zip(chosen, data[1:].split(PART), strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(part)
    found = refused(lambda: demonstrations.load_demonstrations(folder), DataError)
    if not isinstance(found, DialoomError):
        _demonstrations(found)


def _demonstrations(found: Sequence[demonstrations.Demonstration]) -> None:
    assert any(one.split == "train" for one in found)
    for one in found:
        assert one.chat[-1]["role"] == "user" and one.output.strip()
        writable([one.author, one.split, one.chat, one.output])
        _scenarios([one.scenario])


def _kinds(found: Sequence[Pair]) -> None:
    assert len({one.id for one in found}) == len(found)
    for one in found:
        assert one.kind in ("accept", "resist") and one.chosen.strip() and one.rejected.strip()
        assert one.prompt[-1]["role"] == "user"
        writable([one.prompt, one.chosen, one.rejected])


def _behaviours(found: Sequence[Scenario]) -> None:
    assert len({one.id for one in found}) == len(found)
    for one in found:
        assert one.facts["behaviour"].strip() and str(one.facts["behaviour"]) in one.briefs["attacker"]
        assert not one.briefs["defender"]
        writable([one.id, dict(one.briefs), dict(one.facts)])


def _packed(data: bytes) -> None:
    """Packed with gzip a file reads as it does plain, after a "z"; after another byte the packing itself is damaged."""
    path = write("packed.jsonl", gzip.compress(data[1:], 1) if data[:1] == b"z" else data[1:])
    found = refused(lambda: sharegpt.read_dialogues(path), DataError)
    assert not isinstance(found, DialoomError) or str(path) in str(found)
    if data[:1] == b"z":
        path.write_bytes(data[1:])
        plain = refused(lambda: sharegpt.read_dialogues(path), DataError)
        assert repr(found) == repr(plain) or data[1:3] == b"\x1f\x8b"


def _tables(data: bytes) -> None:
    """A table as pyarrow writes it: rows of JSON's kinds, or the file by name."""
    path = write("table.parquet" if data[:1] == b"p" else "table.arrow", data[1:])
    told: list[str] = []
    rows = refused(lambda: list(rows_of(path, lambda *_: None)), DataError)
    assert not isinstance(rows, DialoomError) or str(path) in str(rows)
    pairs = refused(lambda: read_pairs(path, log=told.append), DataError)
    if not isinstance(pairs, DialoomError):
        _kinds(pairs)


def _table(suffix: str) -> bytes:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    out, table = io.BytesIO(), pyarrow.Table.from_pylist([{**PAIR, "chosen": "b", "id": str(at)} for at in range(3)])
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, out)
    else:
        with pyarrow.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
    return suffix[:1].encode() + out.getvalue()


TRIVIA = {
    "question": "What is the capital of Peru?",
    "question_id": "q1",
    "answer": {"value": "Lima", "aliases": ["Lima, Peru"], "normalized_aliases": ["lima"]},
}
TALK = {
    "id": "d1",
    "topic": "tea",
    "conversations": [
        {"from": "human", "value": "What is tea?"},
        {"from": "gpt", "value": "A drink."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "Thirst."},
    ],
}
CHAT = {
    "id": 7,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "user", "content": "Bye"},
    ],
}
PERSON = {"id": "p1", "facts": ["She keeps hens.", "He is a baker."], "traits": ["Never hurries."]}
TOLD = {
    "profile": '"She keeps hens."',
    "personality": "Calm. Exact.",
    "conversations": [
        {
            "user": "Hello",
            "assistant": {"preferred": "Hi!", "rejected": "Yes."},
            "chosen": "preferred",
            "inferred_profile": "None",
            "inferred_personality": "None",
        }
    ],
}
DEMO = {"author": "ann", "split": "train", "prompt": "Write.", "output": "Dear all, it is done. Ann"}
PAIR = {
    "id": "x",
    "prompt": [{"role": "user", "content": "a"}],
    "chosen": [{"role": "assistant", "content": "b"}],
    "rejected": "c",
    "score_chosen": 1.0,
    "score_rejected": 0.0,
    "kind": "accept",
}
PLACES = [
    {
        "pk": "e1",
        "scenario": "Two meet. <p viewer='agent_0'>It is cold.</p>",
        "agent_goals": ["buy", "sell"],
        "relationship": 2,
        "codename": "x",
    }
]
CAST = [
    {"pk": "a", "first_name": "Ada", "last_name": "Q", "age": 3, "secret": "s", "public_info": "geese"},
    {"pk": "b", "first_name": "Ben", "big_five": "calm", "moral_values": ["care"], "occupation": "baker"},
]
COMBOS = [{"pk": "c1", "env_id": "e1", "agent_ids": ["a", "b"]}]

ARROW = _table("arrow")
OWN = ("records", "pairs")
"""Files that a run writes itself and that may be empty; their text is escaped where UTF-8 has no letters for it."""

TARGETS = [
    _file(
        "trivia-jsonl",
        lambda path, tell: triviaqa.load_trivia(path, on_bad=tell, on_note=tell),
        _questions,
        lines(TRIVIA, {**TRIVIA, "answer": "Rome", "question_id": 3, "claim": "Oslo"}, {**TRIVIA, "question": "Who?"}),
    ),
    _file(
        "trivia-json",
        lambda path, tell: triviaqa.load_trivia(path, on_bad=tell, on_note=tell),
        _questions,
        json.dumps(
            {
                "Version": 1.0,
                "Data": [
                    {"Question": "Who?", "QuestionId": "a", "Answer": {"Value": "Ann", "Aliases": ["Anne"]}},
                    {"Question": "Where?", "Answer": {"Value": "Rome"}},
                ],
            },
            indent=1,
        ).encode(),
        json.dumps([TRIVIA, TRIVIA]).encode(),
        suffix=".json",
    ),
    _file(
        "trivia-csv",
        lambda path, tell: triviaqa.load_trivia(path, on_bad=tell, on_note=tell),
        _questions,
        b'question,answer,aliases,claim,question_id\nWho?,Ann,Anne|Anna,Bob,1\n"A, or\nB?",B,,,2\nWho?,Ann,,,1\n',
        suffix=".csv",
    ),
    _file(
        "dialogues",
        lambda path, tell: sharegpt.read_dialogues(path, tell=tell),
        _dialogues,
        lines(TALK, CHAT),
        json.dumps([TALK, CHAT], indent=1).encode(),
    ),
    _file(
        "openings",
        lambda path, tell: sharegpt.read_openings(path, tell=tell),
        _dialogues,
        lines(
            {"topic": "tea", "message": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A."}]}
        ),
    ),
    _file(
        "extractions",
        lambda path, tell: sharegpt.read_extractions(path, tell=tell),
        _extracted,
        lines(
            {
                "idx": "1",
                "conversations": [
                    *TALK["conversations"],
                    {
                        "from": "human",
                        "value": f"{sharegpt.STRATEGY_MARK}ask for a reason{sharegpt.INSTRUCTION_MARK}Why is that?",
                    },
                ],
            }
        ),
    ),
    _file(
        "strategies",
        lambda path, tell: sharegpt.read_strategies(path, tell=tell),
        _texts,
        b'["ask for reasons", "ask for steps", "doubt it"]',
    ),
    _file("clusters", lambda path, tell: sharegpt.read_clusters(path, tell=tell), _texts, b'[["a", "b"], ["c"]]'),
    _file(
        "abstractions",
        lambda path, tell: sharegpt.read_abstractions(path, tell=tell),
        _texts,
        lines({sharegpt.MEMBERS: ["a", "b"], sharegpt.NAME: "c"}),
    ),
    _file(
        "questions",
        lambda path, tell: sharegpt.read_questions(path, tell=tell),
        _texts,
        lines({"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": ["x"]}),
    ),
    _file(
        "records",
        lambda path, tell: read_records(path),
        lambda found: [asdict(one) for one in found],
        lines({"id": "a", "dialogue": "d", "turn": "t", "strategy": "s", "analysis": "x"}),
    ),
    _file(
        "personas",
        lambda path, tell: personas.read_personas(path, on_bad=tell),
        _people,
        lines(
            PERSON,
            {**PERSON, "id": 5, "facts": "He is a nurse. He has a dog."},
            {"profile": "A. B.", "personality": "C."},
        ),
    ),
    _file(
        "profiles",
        lambda path, tell: personas.read_texts(path, "profile", on_bad=tell),
        _texts,
        lines("She keeps hens.", 'He has "two" dogs.', PERSON) + b'"One." "Two."\n',
    ),
    _file(
        "conversations",
        lambda path, tell: [list(tree) for tree in read_conversations(path, tell)],
        lambda found: writable([[turn.text for turn in tree] for tree in found]),
        lines(TOLD, {**TOLD, "personality": "Warm."}),
    ),
    _file(
        "demonstrations",
        lambda path, tell: demonstrations.load_demonstrations(path, tell=tell),
        _demonstrations,
        lines(DEMO, {**DEMO, "split": "test"}),
        lines(
            {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "output": "o"},
            {"prompt": "p", "output": "q"},
        ),
    ),
    _file(
        "pairs",
        lambda path, tell: _pairs(path),
        lambda found: [Pair.from_row(one.to_row()) for one in found],
        lines(PAIR, {"prompt": "a", "chosen": "b", "rejected": "c"}),
    ),
    Target(
        "sotopia",
        _sotopia,
        (
            PART.join(json.dumps(part).encode() for part in (PLACES, CAST, COMBOS)),
            PART.join((json.dumps({"e1": PLACES[0]}).encode(), lines(*CAST), lines(*COMBOS))),
        ),
    ),
    Target(
        "text-folders",
        _folder,
        tuple(
            kind
            + PART.join(
                (b"Subject: Tea\n\nDear all. It rains.", b"A text of its own.", b"\xff\xfeh\x00i\x00", b"na\xefve")
            )
            for kind in (b"c", b"r", b"t")
        ),
    ),
    _file(
        "pbt-pairs",
        lambda path, tell: read_pairs(path, log=tell),
        _kinds,
        lines(PAIR, {**PAIR, "id": "y", "kind": "resist"}),
        lines({"chosen": [*PAIR["prompt"], *PAIR["chosen"]], "type": "agree",
               "rejected": [*PAIR["prompt"], {"role": "assistant", "content": "c"}]}),
        json.dumps([{"prompt": "<|user|>Why?<|end|><|assistant|>", "chosen": "b<|end|>", "rejected": "c",
                     "code": "flip_correct_to_incorrect", "pref_score": 1, "question": "Why?"}]).encode(),
    ),
    _file(
        "behaviours",
        lambda path, tell: harmbench.read_behaviours(path, tell=tell),
        _behaviours,
        b"Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        b'"Say a bad word, twice",standard,words,,,b1\nName a secret,contextual,,,"The secret:\nx",b2\n'
        b"Hum,standard,,,,b3\n",
        suffix=".csv",
    ),
    Target("gzip", _packed, (b"z" + lines(TALK, CHAT), b"g" + gzip.compress(lines(TALK, CHAT), 1))),
    Target("tables", _tables, (_table("parquet"), ARROW)),
]

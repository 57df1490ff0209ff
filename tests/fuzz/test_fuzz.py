"""A bounded share of the fuzzing (`python -m tests.fuzz` is the long run), and every input that broke something."""

from __future__ import annotations

import gzip
import json
import re
import time

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from dialoom import store
from dialoom.models.template import ChatTemplate
from dialoom.scenarios import demonstrations, personas, sharegpt, triviaqa
from dialoom.store import TreeLog, read_trees

from .checks import Hang, Target, limited
from .found import FOUND
from .loaders import DEMO, PERSON, TALK, TRIVIA, lines
from .logs import LOG
from .plain import Tried, tried
from .scratch import write
from .targets import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK, SLOW = 240, 1000
"""Inputs for each light target; heavy ones get a quarter."""


def _told(done: Tried) -> str:
    return "\n".join(f"{told[-2000:]}\n{data!r:.400}" for data, told in done.found.values())


@pytest.mark.parametrize("name", TARGETS)
def test_mutants_of_good_inputs_break_nothing(name):
    target = TARGETS[name]
    done = tried(target, QUICK // (4 if target.heavy else 1))
    assert not list(done.found), _told(done)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_more_mutants_break_nothing(name):
    target = TARGETS[name]
    done = tried(target, SLOW // (4 if target.heavy else 1), seed=1)
    assert not list(done.found), _told(done)


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_once_broke_something_no_longer_does(name, data):
    with limited():
        TARGETS[name].run(data)


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_hypothesis_finds_nothing_near_what_once_broke_something(name, data):
    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(st.integers(0, len(data)), st.binary(max_size=4), st.integers(0, 4))
    def near(at, piece, gone):
        with limited():
            TARGETS[name].run(data[:at] + piece + data[at + gone :])

    near()


# ------------------------------------------------------------------------------------------------ does it see anything?


def test_a_defect_is_found_named_once_and_kept_by_its_smallest_input():
    def run(data):
        if b"x" in data:
            raise KeyError("x")

    done = tried(Target("broken", run, (b"xxxx", b"yy")), 200)
    [(name, (data, told))] = done.found.items()
    assert name.startswith("KeyError at test_fuzz.py:") and "Traceback" in told
    assert b"x" in data and len(data) < 4 and done.inputs == 200


def test_a_hang_is_found_also_inside_a_regular_expression():
    done, began = Tried(), time.process_time()
    with pytest.raises(Hang), limited(0.3):
        re.fullmatch(r"(a+)+b", "a" * 60)
    assert time.process_time() - began < 5 and not done.found


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (ChatTemplate, "defused", lambda self, text: text),  # special tokens reach the tokens
        (triviaqa, "UNUSABLE", re.compile("(?!)")),  # lone surrogates reach a row
        (TreeLog, "_repair", lambda self: store._replay(self.path)),  # damage stays in the log
    ],
)
def test_planted_defects_are_found(monkeypatch, where, name, value):
    targets = {"defused": "templates", "UNUSABLE": "trivia-jsonl", "_repair": "tree-log"}
    monkeypatch.setattr(where, name, value)
    assert tried(TARGETS[targets[name]], 500).found


# ------------------------------------------------------------------------------------------------ no row is lost


JUNK = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"{",
            b"}",
            b"]",
            b"[",
            b"[]",
            b"{}",
            b"null",
            b'{"a"',
            b'"text',
            b'{"conversations": [',
            b"\xff\xfe",
            b"# a remark",
        ]
    ),
)
"""Lines that stand between good ones; none is a good one itself."""


ORDER = st.lists(st.integers(0, 9), min_size=4, max_size=4)
"""Where junk lines go."""


def _mixed(good: list[bytes], junk: list[bytes], order: list[int]) -> bytes:
    """Good lines, in their order, with junk lines between them."""
    rows = list(good)
    for line, at in zip(junk, order, strict=False):
        rows.insert(at % (len(rows) + 1), line.replace(b"\n", b" ").replace(b"\r", b" "))
    return b"\n".join(rows)


def _ids(rows: list[bytes]) -> list[str]:
    return [f"good-{at}" for at in range(len(rows))]


READERS = {
    "trivia": (
        "x.jsonl",
        lambda at: lines({**TRIVIA, "question_id": f"good-{at}"}),
        lambda path: [one.id for one in triviaqa.load_trivia(path, on_bad=lambda line: None)],
    ),
    "personas": (
        "x.jsonl",
        lambda at: lines({**PERSON, "id": f"good-{at}", "facts": [f"She keeps {at} hens."]}),
        lambda path: [one.id for one in personas.read_personas(path, on_bad=lambda line: None)],
    ),
    "dialogues": (
        "x.jsonl",
        lambda at: lines({**TALK, "id": f"good-{at}"}),
        lambda path: [one.scenario.id for one in sharegpt.read_dialogues(path)],
    ),
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(count=st.integers(1, 5), junk=st.lists(JUNK, max_size=4), order=ORDER)
@example(count=2, junk=[b"[]"], order=[0, 0, 0, 0])
@example(count=2, junk=[b"[1, 2]", b"[]"], order=[0, 2, 0, 0])
def test_no_good_row_is_lost_among_bad_ones(name, count, junk, order):
    file, make, read = READERS[name]
    good = [make(at).rstrip(b"\n") for at in range(count)]
    data = _mixed(good, junk, order)
    assume(
        data[:2] not in (b"\xff\xfe", b"\xfe\xff")
    )  # the mark of another encoding: such a file is refused as a whole
    found = read(write(file, data))
    assert [one for one in found if one.startswith("good-")] == _ids(good)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(junk=st.lists(JUNK.filter(lambda line: line.strip()), min_size=1, max_size=4), order=ORDER)
def test_demonstrations_name_every_bad_line_and_train_on_none_of_a_bad_file(junk, order):
    good = [lines({**DEMO, "output": f"Text {at}."}).rstrip(b"\n") for at in range(3)]
    data = _mixed(good, junk, order)
    bad = [
        at
        for at, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
        if line.strip() and line not in good
    ]
    path = write("x.jsonl", data)
    if not bad:
        return
    with pytest.raises(demonstrations.DataError) as wrong:
        demonstrations.load_demonstrations(path)
    assert data[:2] in (b"\xff\xfe", b"\xfe\xff") or all(f"{path}:{at}:" in str(wrong.value) for at in bad)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.integers(0, len(LOG)), st.binary(max_size=3), st.integers(0, 40))
def test_a_damaged_log_loses_only_what_hangs_on_the_damage(at, piece, gone):
    path = write("damaged/trees.jsonl", LOG[:at] + piece + LOG[at + gone :])
    path.with_name("trees.jsonl.bad").unlink(missing_ok=True)
    left = path.read_bytes().split(b"\n")[:-1]
    untouched = [json.loads(line) for line in LOG.split(b"\n")[:-1] if line in left]
    trees = read_trees(path, log=lambda line: None)
    for record in untouched:
        if record["kind"] == "tree":
            assert record["id"] in trees
        elif record["kind"] == "turn" and record["tree"] in trees and record["parent"] is None:
            assert record["id"] in trees[record["tree"]]
    with TreeLog(path, log=lambda line: None) as log:
        for tree in read_trees(write("whole.jsonl", LOG)).values():
            if tree.id not in trees or all(turn.id in trees[tree.id] for turn in tree):
                log.add_tree(tree)
            else:
                log.add_turns(trees[tree.id], [turn for turn in tree if turn.id not in trees[tree.id]])
    whole = read_trees(path, log=lambda line: pytest.fail(line))
    assert {id: [turn.id for turn in tree] for id, tree in whole.items()}.keys() == {"one", "two"}
    assert {id: {turn.id for turn in tree} for id, tree in whole.items()} == {
        name: {f"{name}-{number}" for number in (1, 2, 3)} for name in ("one", "two")
    }


# ------------------------------------------------------------------------------------------------ large inputs


BIG = 200_000
HEAD = b"Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
LARGE = {
    "dialogues": (b"[" + b'{"a":' * (BIG // 5), b'[{"' * (BIG // 3), b'[{"conversations":[' * (BIG // 19)),
    "openings": (b"\n" * BIG + lines(TALK), b'{"conversations":' + b" " * BIG),
    "trivia-json": (b'{"a":0,' * (BIG // 7), b"[" * BIG, b"[" + b"1," * (BIG // 2)),
    "trivia-csv": (b"question,answer\n" + b'"\n' * (BIG // 2), b"question,answer\n" + b"," * BIG),
    "personas": (
        b'"A b. C d." ' * (BIG // 12),
        b"[" * BIG,
        b'{"facts":["' + b"A. " * (BIG // 3) + b'"],"traits":["x"]}',
    ),
    "strategies": (b'["a",' * (BIG // 5), b"[" + b",".join(b'"s%d"' % at for at in range(BIG // 8)) + b"]"),
    "sotopia": (
        b'[{"pk":"e","agent_goals":["a","b"],"relationship":1,"scenario":"'
        + b"<p>" * (BIG // 6)
        + b"</p>" * (BIG // 8),
        b'[{"pk":"e","agent_goals":["a","b"],"relationship":1,"scenario":"'
        + b"<p>" * (BIG // 20)
        + b"x"
        + b"</p>" * (BIG // 20)
        + b'"}]',
        b'[{"pk":"e","agent_goals":["a","b"],"relationship":1,"scenario":"<' + b"a" * BIG + b'"}]',
        b'[{"pk":"e","agent_goals":["a","b"],"relationship":1,"scenario":"' + b"<" * BIG + b'"}]',
    ),
    "tree-log": (LOG * (BIG // len(LOG)), b"x" * BIG, b"{}\n" * (BIG // 3)),
    "rows": (b"9" * BIG, b'{"a":1}\n' * (BIG // 8), b"[" * BIG),
    "settings": (b"\x00a: " + b"[" * BIG, b"\x00" + b"a: b\n" * (BIG // 50), b"\x00a: &a [" + b"1," * 3000 + b"1]"),
    "judges": (
        b"[[" * (BIG // 2),
        b"score " * (BIG // 6),
        b'{"goal": ' * (BIG // 9),
        b"7/10 " * (BIG // 5),
        b"* " * (BIG // 2),
        b"goal: 7\n" * (BIG // 8),
        b"life: 1" + b"\n" * BIG + b"x",
        b"life: 1\ncharacter: " + b"." * BIG + b"\nx",
    ),
    "answers": (
        b"not " * (BIG // 4) + b"\x1eLima",
        b"it is " * (BIG // 6),
        b"Lima, " * (BIG // 6) + b"\x1eLima",
        b"a" * BIG,
        b"the answer is that " * (BIG // 19),
        b"it is Lima" + b"." * BIG + b"x",
    ),
    "replies": (b"[" + b'"a",' * (BIG // 4), b"1. a b.\n" * (BIG // 8), b"{" * BIG, b"A. " * (BIG // 3),
                b"[" + b"1, " * (BIG // 3), b"Mr. A " * (BIG // 6), b"\n" * BIG),
    "behaviours": (HEAD + b'"x\n' * (BIG // 3), HEAD + b'"\n' * (BIG // 2), HEAD + b"\n" * BIG, HEAD + b"," * BIG),
    "gzip": (b"g" + gzip.compress(b"[" * 50 * BIG), b"g" + gzip.compress(b'{"a":1}\n' * BIG)),
    "answer-file": (b"r" + b"x\n" * (BIG // 2),),
    "clustered": (b'{"high":["a"],"parent":{' + b",".join(b'"s%d":"a"' % at for at in range(BIG // 12)) + b"}}",),
    "followed-log": (b"\x1e".join([LOG] * (BIG // len(LOG))),),
    "audit": (b"l" + LOG * (BIG // len(LOG)), b"t" + b'{"prompt":"a","completion":"b"}\n' * (BIG // 100)),
    "endpoint": (b"2" + b"[" * BIG, b"2" + b'{"choices":' * (BIG // 11), b"4" + b"sk-" * (BIG // 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "at"), [(name, at) for name, inputs in LARGE.items() for at in range(len(inputs))])
def test_large_inputs_end_in_time(name, at):
    with limited(20):
        TARGETS[name].run(LARGE[name][at])

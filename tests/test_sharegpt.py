"""Dialogues, openings, strategies and questions in the layouts in which they are passed on; bad input is survived."""

import json

import pytest

from dialoom.dialogue import chat_view
from dialoom.errors import DataError
from dialoom.scenarios.sharegpt import (
    ASSISTANT,
    USER,
    Extracted,
    dialogue_of,
    read_abstractions,
    read_clusters,
    read_dialogues,
    read_extractions,
    read_openings,
    read_questions,
    read_strategies,
    write_abstractions,
    write_clusters,
    write_extractions,
    write_messages,
    write_openings,
    write_sharegpt,
    write_strategies,
)

PAIRS = [(USER, "What is tea?"), (ASSISTANT, "A drink."), (USER, "Why?"), (ASSISTANT, "Thirst.")]


def sharegpt(*said, **more):
    return {**more, "conversations": [{"from": role, "value": text} for role, text in said]}


GOOD = sharegpt(("human", "What is tea?"), ("gpt", "A drink."), ("human", "Why?"), ("gpt", "Thirst."), id="good")


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def said(dialogue):
    return [(USER, dialogue.scenario.opening), *((turn.speaker, turn.text) for turn in dialogue.turns)]


# ------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("row", [
    GOOD,
    {"id": "good", "messages": [{"role": "user", "content": "What is tea?"},
                                {"role": "assistant", "content": "A drink."},
                                {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
                                {"role": "assistant", "content": " Thirst. "}]},
    {"id": "good", "items": [{"from": "human", "value": text} if at % 2 == 0 else {"from": "gpt", "value": text}
                             for at, (_, text) in enumerate(PAIRS)]},
    {"question_id": "good", "coversation": [{"role": role, "content": text} for role, text in PAIRS], "cost_tokens": 3},
])
@pytest.mark.parametrize("as_list", [True, False])
def test_every_layout_gives_the_same_dialogue(tmp_path, row, as_list):
    path = tmp_path / "file.json"
    path.write_text(json.dumps([row], indent=2) if as_list else json.dumps(row) + "\n")
    [found] = read_dialogues(path)
    assert found.scenario.id == "good" and said(found) == PAIRS


def test_one_object_over_several_lines_is_read(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(GOOD, indent=2))
    assert said(read_dialogues(path)[0]) == PAIRS


def test_the_opening_is_the_scenarios_and_a_system_message_the_assistants_brief(tmp_path):
    row = sharegpt(("system", "Be brief."), ("human", "What is tea?"), ("gpt", "A drink."), topic="tea", licence="CC0")
    [found] = read_dialogues(write(tmp_path / "a.jsonl", row))
    assert found.scenario.briefs == {ASSISTANT: "Be brief."}
    assert found.scenario.facts == {"topic": "tea", "licence": "CC0"}
    assert chat_view(found, USER) == [{"role": "user", "content": "What is tea?\nA drink."}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_sharegpt_and_messages_read_back_what_was_written(tmp_path, name):
    dialogues = [dialogue_of(f"d{at}", PAIRS[:2 + 2 * at], {"topic": "tea", "hidden": 1}) for at in range(2)]
    write_sharegpt(tmp_path / name, dialogues)
    write_messages(tmp_path / "m.jsonl", dialogues)
    for path in (tmp_path / name, tmp_path / "m.jsonl"):
        found = read_dialogues(path)
        assert [said(one) for one in found] == [said(one) for one in dialogues]
        assert [turn.id for one in found for turn in one.turns] == [turn.id for one in dialogues for turn in one.turns]
        assert found[0].scenario.facts == {"topic": "tea"}  # what only judges may know is not passed on
    first = json.loads((tmp_path / "m.jsonl").read_text().splitlines()[0])
    assert list(first) == ["id", "topic", "messages"]


def test_openings_keep_the_first_pair(tmp_path):
    told = []
    write_openings(tmp_path / "o.jsonl", [dialogue_of("d", PAIRS, {"topic": "tea"})])
    row = json.loads((tmp_path / "o.jsonl").read_text())
    assert row == {"topic": "tea", "message": [{"role": "user", "content": "What is tea?"},
                                               {"role": "assistant", "content": "A drink."}], "question_id": "d"}
    [found] = read_openings(tmp_path / "o.jsonl", tell=told.append)
    assert said(found) == PAIRS[:2] and found.scenario.facts["topic"] == "tea" and not told
    assert said(read_openings(write(tmp_path / "long.jsonl", GOOD))[0]) == PAIRS[:2]


def test_an_extraction_reads_back_whatever_its_texts_hold(tmp_path):
    extracted = [Extracted(dialogue_of("d", PAIRS[:3]), "ask: why?"),
                 Extracted(dialogue_of("d", [*PAIRS, (USER, "a 【b】\n【instruction】c")]), "doubt")]
    write_extractions(tmp_path / "e.jsonl", extracted)
    first = json.loads((tmp_path / "e.jsonl").read_text().splitlines()[0])
    assert first["conversations"][-1]["value"] == "【instructional strategy】ask: why?【instruction】Why?"
    found = read_extractions(tmp_path / "e.jsonl")
    assert [(said(one), strategy) for one, strategy in found] == [(said(one), strategy) for one, strategy in extracted]


def test_an_extraction_without_its_marks_is_told(tmp_path):
    told = []
    marked = sharegpt(("human", "Q"), ("gpt", "A"), ("human", "【instructional strategy】s【instruction】q"))
    assert len(read_extractions(write(tmp_path / "e.jsonl", GOOD, marked), tell=told.append)) == 1
    assert told[0].startswith(f"{tmp_path}/e.jsonl:1: expected the last turn")


def test_clusters_and_abstractions_read_back(tmp_path):
    write_clusters(tmp_path / "c.json", [["a", "b"], ["c"]])
    assert json.loads((tmp_path / "c.json").read_text()) == read_clusters(tmp_path / "c.json") == [["a", "b"], ["c"]]
    write_abstractions(tmp_path / "a.jsonl", [(["a", "b"], "A")])
    assert read_abstractions(tmp_path / "a.jsonl") == [(["a", "b"], "A")]
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"original instructional strategies": ["a", "b"],
                                                             "High-level instructional strategy": "A"}


def test_questions_have_any_number_of_turns(tmp_path):
    told = []
    path = write(tmp_path / "q.jsonl", {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
                 {"question_id": 101, "category": "math", "turns": list("abcdefgh"), "reference": ["7", "8"]},
                 {"question_id": 3, "turns": []})
    two, eight = read_questions(path, tell=told.append)
    assert (two.id, two.category, two.turns, two.reference) == ("81", "writing", ("a", "b"), ())
    assert len(eight.turns) == 8 and eight.reference == ("7", "8")
    assert told[0].startswith(f"{path}:3: expected an object with turns")


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("row, message", [
    ('{"conversations": [', ":2: expected a JSON object"),
    ("17", ":2: expected an object with one of conversations"),
    ({"text": "no dialogue"}, ":2: expected an object with one of conversations"),
    (sharegpt(), ":2: a dialogue of 0 turns"),
    (sharegpt(("human", "Only a question")), ":2: a dialogue of 1 turn, expected"),
    (sharegpt(("human", ""), ("gpt", "An answer")), ":2: turn 1: it is empty"),
    (sharegpt(("narrator", "Once"), ("human", "Q"), ("gpt", "A")), ":2: turn 1: role 'narrator' is none of"),
    (sharegpt(("human", "a\0b"), ("gpt", "A")), ":2: turn 1: expected text"),
    ({"conversations": ["Q", "A"]}, ":2: turn 1: expected an object, found str"),
])
def test_a_bad_line_is_named_and_costs_no_good_one(tmp_path, row, message):
    told = []
    path = write(tmp_path / "bad.jsonl", GOOD, row, {**GOOD, "id": "later"})
    assert [one.scenario.id for one in read_dialogues(path, tell=told.append)] == ["good", "later"]
    assert told[0].startswith(f"{path}{message}")
    assert told[-1].startswith(f"{path}: 2 dialogues read; ") and told[-1].endswith(": 1")


@pytest.mark.parametrize("bad", [("human", " "), ("tool", "4"), ("gpt", None)])
def test_a_dialogue_goes_on_as_far_as_it_is_good(tmp_path, bad):
    row = sharegpt(("human", "What is tea?"), ("gpt", "A drink."), ("human", "Why?"), ("gpt", "Thirst."), bad,
                   ("gpt", "More."))
    assert said(read_dialogues(write(tmp_path / "a.jsonl", row))[0]) == PAIRS


def test_a_dialogue_of_one_question_is_kept_and_told(tmp_path):
    told = []
    row = sharegpt(("human", "What is tea?"), ("gpt", "A drink."))
    assert said(read_dialogues(write(tmp_path / "a.jsonl", row), tell=told.append)[0]) == PAIRS[:2]
    assert ":1: a dialogue of one question" in told[0] and told[-1].endswith("1 dialogues read; no follow-up: 1")


def test_repeated_roles_are_merged_and_answers_before_any_question_left_out(tmp_path):
    told = []
    row = sharegpt(("gpt", "Hello"), ("human", "What is"), ("human", "tea?"), ("gpt", "A drink."), ("human", "Why?"))
    [found] = read_dialogues(write(tmp_path / "a.jsonl", row), tell=told.append)
    assert said(found) == [(USER, "What is\ntea?"), *PAIRS[1:3]]
    assert "turn 1 is the assistant's" in told[0] and "turn 3 is the user's, like the one before" in told[1]


def test_repeated_ids_are_told_apart(tmp_path):
    told = []
    found = read_dialogues(write(tmp_path / "a.jsonl", GOOD, GOOD, GOOD), tell=told.append)
    assert [one.scenario.id for one in found] == ["good", "good#2", "good#3"] and len(told) == 3


@pytest.mark.parametrize("damage", [
    lambda text: text[:-40],                                       # cut off in the last item
    lambda text: text.replace('"id": "b"', '"id": oops', 1),       # one item broken in the middle
])
def test_a_damaged_list_gives_the_items_that_can_be_read(tmp_path, damage):
    told = []
    path = tmp_path / "list.json"
    text = json.dumps([{**GOOD, "id": name} for name in "abc"], indent=1)
    path.write_text(damage(text))
    found = [one.scenario.id for one in read_dialogues(path, tell=told.append)]
    assert found in (["a", "b"], ["a", "c"]) and f"{path}:" in told[0] and "JSON" in "".join(told)


def test_many_bad_lines_are_counted_and_only_the_first_told(tmp_path):
    told = []
    read_dialogues(write(tmp_path / "a.jsonl", GOOD, *["{"] * 500), tell=told.append)
    assert len(told) == 21 and told[-1].endswith("1 dialogues read; broken JSON: 500")


@pytest.mark.parametrize("text", ["", "[]", "{}\n{}", "[[]]", "nothing"])
def test_a_file_without_dialogues_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "none.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"none\.json: no dialogues there"):
        read_dialogues(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        read_dialogues(tmp_path / "gone.jsonl")


def test_bytes_that_are_not_utf8_cost_the_turn(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + json.dumps(GOOD).encode().replace(b"Why?", b"\xff?") + b"\n")
    assert [len(one.turns) for one in read_dialogues(path)] == [3, 1]


# ------------------------------------------------------------------------------------------------ strategy lists


def test_a_strategy_list_holds_each_once(tmp_path):
    told = []
    write_strategies(tmp_path / "s.json", ["Ask why", "ask  WHY", "Doubt"])
    assert read_strategies(tmp_path / "s.json", tell=told.append) == ["Ask why", "Doubt"]
    assert told[0].startswith(f"{tmp_path}/s.json:3: the strategy 'ask  WHY' stands there twice")


@pytest.mark.parametrize("strategies", [["Ask why"], ["Ask why", " ask why"], ["Ask why", 3]])
def test_a_list_of_one_strategy_is_refused_with_a_word(tmp_path, strategies):
    (tmp_path / "s.json").write_text(json.dumps(strategies))
    with pytest.raises(DataError, match=r"a list of one strategy .* nothing to choose"):
        read_strategies(tmp_path / "s.json")

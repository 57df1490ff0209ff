"""Trivia files: three formats, every kind of damage, and no good row lost."""

import csv
import io
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialoom.dialogue import Scenario
from dialoom.errors import ConfigError, DataError
from dialoom.pocket.world.facts import HELD_OUT_QUESTIONS, load_facts
from dialoom.scenarios.triviaqa import MAX_CHARACTERS, alternatives, load_trivia, pocket_trivia
from dialoom.text import normalize_answer

OFFICIAL = {
    "Data": [
        {
            "Answer": {
                "Aliases": ["Sunset Blvd", "West Sunset Boulevard"],
                "MatchedWikiEntityName": "Sunset Boulevard",
                "NormalizedAliases": ["sunset blvd", "west sunset boulevard", "sunset boulevard"],
                "NormalizedValue": "sunset boulevard",
                "Type": "WikipediaEntity",
                "Value": "Sunset Boulevard",
            },
            "EntityPages": [],
            "Question": "Which musical premiered on 10th December 1993?",
            "QuestionId": "tc_1",
            "QuestionSource": "http://www.triviacountry.com/",
        },
        {
            "Answer": {"Aliases": [], "NormalizedAliases": ["1969"], "Value": "1969"},
            "Question": " When did people first walk on the Moon? ",
            "QuestionId": "tc_2",
        },
    ],
    "Domain": "unfiltered-web",
    "Version": 1.0,
}
HUB_ROW = {
    "question": "Which musical premiered on 10th December 1993?",
    "question_id": "tc_1",
    "question_source": "http://www.triviacountry.com/",
    "entity_pages": {"filename": []},
    "answer": {"value": "Sunset Boulevard", "aliases": ["Sunset Blvd"], "normalized_aliases": ["sunset boulevard"]},
}


def write(folder, name, content):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8", newline="")
    return path


def loaded(path):
    """The scenarios and what was said about bad rows and about repeated ids."""
    bad, notes = [], []
    return load_trivia(path, on_bad=bad.append, on_note=notes.append), bad, notes


def trivia(id, answer, *aliases, question="Which?", **facts):
    gold = [normalize_answer(one) for one in (answer, *aliases)]
    return Scenario(id, question, facts={"answer": answer, "aliases": gold, **facts})


# Formats


def test_the_official_json_is_read(tmp_path):
    first, second = load_trivia(write(tmp_path, "web-dev.json", json.dumps(OFFICIAL)))
    assert (first.id, first.opening) == ("tc_1", "Which musical premiered on 10th December 1993?")
    assert first.facts == {
        "answer": "Sunset Boulevard",
        "aliases": ["sunset boulevard", "sunset blvd", "west sunset boulevard"],
    }
    assert (second.id, second.opening) == ("tc_2", "When did people first walk on the Moon?")
    assert second.facts == {"answer": "1969", "aliases": ["1969"]}


def test_data_need_not_come_first_and_a_bare_list_is_read_too(tmp_path):
    turned = {key: OFFICIAL[key] for key in ("Version", "Domain", "Data")}
    for name, content in (("a.json", turned), ("b.json", OFFICIAL["Data"])):
        assert [one.id for one in load_trivia(write(tmp_path, name, json.dumps(content, indent=2)))] == ["tc_1", "tc_2"]


def test_json_lines_are_read(tmp_path):
    flat = {"question": "Capital of France?", "answer": "Paris", "aliases": ["City of Light"], "distractors": ["Lyon"]}
    lines = f"{json.dumps(HUB_ROW)}\r\n\n{json.dumps(flat)}"
    first, second = load_trivia(write(tmp_path, "rows.jsonl", lines))
    assert first.id == "tc_1"
    assert first.facts == {"answer": "Sunset Boulevard", "aliases": ["sunset boulevard", "sunset blvd"]}
    assert second.facts == {"answer": "Paris", "aliases": ["paris", "city of light"], "distractors": ["Lyon"]}


def test_csv_is_read(tmp_path):
    text = (
        "Question,Answer,aliases,distractors\r\n"
        '"Who said ""veni, vidi""?",Caesar,Julius Caesar|Gaius,Nero|Otho\r\n'
        "What?,It,,\r\n"
    )
    first, second = load_trivia(write(tmp_path, "own.csv", text))
    assert first.opening == 'Who said "veni, vidi"?'
    assert first.facts["aliases"] == ["caesar", "julius caesar", "gaius"]
    assert first.facts["distractors"] == ["Nero", "Otho"]
    assert second.facts == {"answer": "It", "aliases": ["it"]}


def test_rows_without_ids_keep_their_id_when_the_file_is_reordered(tmp_path):
    one = load_trivia(write(tmp_path, "a.csv", "question,answer\nWho?,I\nWhat?,It\n"))
    two = load_trivia(write(tmp_path, "b.csv", "answer,question\nIt,What?\nI,Who?\n"))
    assert [s.id for s in one] == [s.id for s in reversed(two)]


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path):
    text = "question,answer\nWho wrote Emma?,Austen\n"
    assert load_trivia(write(tmp_path, "bom.csv", text.encode("utf-8-sig")))[0].opening == "Who wrote Emma?"
    row = json.dumps(HUB_ROW).encode("utf-8-sig")
    assert load_trivia(write(tmp_path, "bom.jsonl", row))[0].id == "tc_1"


def test_old_line_ends_and_breaks_inside_cells_are_read(tmp_path):
    text = 'question,answer\r"Two\rlines?",Yes\rOne?,No\r'
    assert [one.opening for one in load_trivia(write(tmp_path, "mac.csv", text))] == ["Two\rlines?", "One?"]


# Bad rows


def test_a_bad_row_is_named_by_file_and_line_and_the_good_ones_stay(tmp_path):
    rows = [
        json.dumps({"question": "Who?", "answer": "I"}),
        "{broken",
        "[1, 2]",
        json.dumps({"question": "Who?"}),
        json.dumps({"question": 7, "answer": "I"}),
        json.dumps({"question": "Who?", "answer": {"value": "I", "aliases": "me"}}),
        json.dumps({"question": "Who?", "answer": {"value": "<unk>", "aliases": []}}),
        json.dumps({"question": "Who?", "answer": "The"}),
        json.dumps({"question": "Who?", "answer": "I", "distractors": ["you", "i!"]}),
        json.dumps({"question": "Who?", "answer": "I"}) + "{}",
        json.dumps({"question": "Who?", "answer": "I", "question_id": ["x"]}),
        json.dumps({"question": "What?", "answer": "It"}),
    ]
    path = write(tmp_path, "rows.jsonl", "\n".join(rows))
    good, bad, notes = loaded(path)
    assert [one.opening for one in good] == ["Who?", "What?"] and not notes
    assert [one.split(": ")[0] for one in bad] == [f"{path}:{line}" for line in range(2, 12)]
    for message, part in zip(
        bad,
        [
            "expected JSON, found '{broken'",
            "found [1, 2]",
            "answer to be text, found nothing",
            "question to be text, found 7",
            "aliases to be a list of texts, found 'me'",
            "validation split",
            "found 'The', of which nothing is left",
            "found 'i!', a right one",
            "one object a line, found '{}'",
            "question_id to be text, found ['x']",
        ],
        strict=True,
    ):
        assert part in message


def test_without_a_callback_bad_rows_are_one_error_that_names_five_of_them(tmp_path):
    path = write(tmp_path, "rows.csv", "question,answer\nWho?,I\n" + "Who?\n" * 8)
    with pytest.raises(DataError) as caught:
        load_trivia(path)
    assert f"{path}:3: expected 2 cells, found 1" in str(caught.value)
    assert "and 3 more like these" in str(caught.value)


def test_a_truncated_json_document_gives_the_rows_before_the_break(tmp_path):
    whole = json.dumps(OFFICIAL, indent=1)
    path = write(tmp_path, "cut.json", whole[: whole.index("When did")])
    good, bad, _ = loaded(path)
    assert [one.id for one in good] == ["tc_1"]
    line = whole[: whole.index("When did")].count("\n") + 1
    assert len(bad) == 1 and "broken from here on" in bad[0]
    assert 2 < int(bad[0].removeprefix(f"{path}:").split(":")[0]) <= line


def test_a_bad_item_of_a_json_document_is_named_by_its_line(tmp_path):
    path = write(
        tmp_path, "odd.json", '{"Data": [\n{"Question": "Who?",\n "Answer": {"Value": "I"}},\n{"Question": ""},\n7\n]}'
    )
    good, bad, _ = loaded(path)
    assert len(good) == 1
    assert [one.split(": ")[0] for one in bad] == [f"{path}:4", f"{path}:5"]


def test_a_quote_that_never_closes_spoils_its_own_row_only(tmp_path):
    path = write(tmp_path, "quote.csv", 'question,answer\n"Who?,I\nWhat?,It\nWhen?,Now\n')
    good, bad, _ = loaded(path)
    assert [one.opening for one in good] == ["What?", "When?"]
    assert len(bad) == 1 and bad[0].startswith(f"{path}:2: ")


def test_bytes_that_are_not_utf8_spoil_their_own_row_only(tmp_path):
    content = "question,answer\nWho?,Café\n".encode() + "Where?,Café\n".encode("latin-1") + b"What?,a\0b\nWhen?,Now\n"
    good, bad, _ = loaded(write(tmp_path, "mixed.csv", content))
    assert [one.opening for one in good] == ["Who?", "When?"]
    assert "not UTF-8" in bad[0] and "NUL" in bad[1]


def test_lone_surrogates_are_refused_and_messages_can_be_printed(tmp_path):
    rows = '{"question": "Who \\ud800?", "answer": "I"}\n{"question": "Who?", "answer": "I \\ud83d\\ude00"}\n'
    good, bad, _ = loaded(write(tmp_path, "odd.jsonl", rows))
    assert good[0].facts["answer"] == "I 😀" and len(bad) == 1
    assert bad[0].encode("ascii", "strict")[-9:]


@pytest.mark.parametrize("size", [MAX_CHARACTERS + 1, 1_000_000])
def test_huge_rows_are_refused_and_the_next_row_is_read(tmp_path, size):
    rows = json.dumps({"question": "x" * size, "answer": "I"}) + "\n" + json.dumps({"question": "Who?", "answer": "I"})
    table = f"question,answer\n{'x' * size},I\nWho?,I\n"
    for path in (write(tmp_path, "huge.jsonl", rows), write(tmp_path, "huge.csv", table)):
        good, bad, _ = loaded(path)
        assert [one.opening for one in good] == ["Who?"]
        assert len(bad) == 1 and len(bad[0]) < 400


def test_deep_brackets_and_endless_numbers_are_bad_rows(tmp_path):
    rows = "\n".join(["[" * 100_000, "9" * 5_000, json.dumps({"question": "Who?", "answer": "I"})])
    good, bad, _ = loaded(write(tmp_path, "deep.jsonl", rows))
    assert len(good) == 1 and len(bad) == 2


def test_repeated_ids_are_told_apart_and_said(tmp_path):
    rows = [
        {"question_id": id, "question": f"Question {n}?", "answer": "I"}
        for n, id in enumerate(["a", "a#2", "a", "a", 5])
    ]
    path = write(tmp_path, "twice.jsonl", "\n".join(map(json.dumps, rows)))
    good, bad, notes = loaded(path)
    assert [one.id for one in good] == ["a", "a#2", "a#3", "a#4", "5"] and not bad
    assert len(notes) == 1 and f"{path}:3: id 'a' was used before; this row is now 'a#3'" in notes[0]
    with pytest.warns(UserWarning, match="this row is now 'a#3'"):
        load_trivia(path)


def test_many_repeats_of_one_row_are_read_in_linear_time(tmp_path):
    path = write(tmp_path, "same.csv", "question,answer\n" + "Who?,I\n" * 20_000)
    start = time.perf_counter()
    assert len(loaded(path)[0]) == 20_000
    assert time.perf_counter() - start < 20


# Files that are no trivia


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("empty.json", b"", "empty file"),
        ("blank.csv", b"\xef\xbb\xbf\n \n", "empty file"),
        ("rows.tsv", b"question\tanswer\n", "found '.tsv'"),
        ("rows", b"question,answer\n", "found 'none'"),
        ("wide.csv", "question,answer\nWho?,I\n".encode("utf-16"), "UTF-16"),
        ("semicolon.csv", b"question;answer\nWho?;I\n", "expected a header question,answer"),
        ("twice.csv", b"question,answer,answer\nWho?,I,I\n", "expected a header question,answer"),
        ("header.csv", b"question,answer\n", "the file has no rows"),
        ("none.json", b'{"Data": []}', "the file has no rows"),
        ("rows.json", b'{"question": "Who?", "answer": "I"}\n', "one row a line .jsonl"),
        ("text.json", b"hello", "found 'hello'"),
        ("half.json", b'{"Version"', 'expected {"Data": [...]}'),
        ("null.json", b'{"Data": null}', "found the keys 'Data'"),
        ("bad.jsonl", b"{}\n", "no usable question"),
    ],
)
def test_a_file_without_a_good_row_says_why(tmp_path, name, content, part):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        loaded(path)
    assert part in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path):
    (tmp_path / "folder.json").mkdir()
    for name in ("missing.json", "folder.json"):
        with pytest.raises(DataError, match="cannot be read"):
            load_trivia(tmp_path / name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["json", "jsonl", "csv"]), st.binary(max_size=80), st.integers(0, 400), st.integers(0, 60))
def test_damage_anywhere_is_a_data_error_or_a_bad_row_never_another_error(tmp_path, kind, noise, place, cut):
    whole = {
        "json": json.dumps(OFFICIAL, indent=1),
        "jsonl": f"{json.dumps(HUB_ROW)}\n" * 2,
        "csv": "question,answer,aliases\n" + 'Who?,I,me|"myself"\n"What, now?",It,\n' * 4,
    }[kind].encode()
    path = write(tmp_path, f"damaged.{kind}", whole[:place] + noise + whole[place + cut :])
    try:
        good, _, _ = loaded(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert good and len({one.id for one in good}) == len(good)
        for one in good:
            json.dumps([one.opening, dict(one.facts)]).encode()
            f"{one.opening}{one.facts}".encode()


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).map(
    str.strip
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT.filter(bool), TEXT.filter(normalize_answer)), min_size=1, max_size=8), st.booleans())
def test_whatever_is_written_is_read_back(tmp_path, pairs, as_csv):
    if as_csv:
        table = io.StringIO(newline="")
        csv.writer(table, quoting=csv.QUOTE_ALL).writerows([("question", "answer"), *pairs])
        path = write(tmp_path, "t.csv", table.getvalue())
    else:
        lines = [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in pairs]
        path = write(tmp_path, "t.jsonl", "\n".join(lines))
    good, bad, _ = loaded(path)
    assert not bad
    assert [(one.opening, one.facts["answer"]) for one in good] == pairs


# Wrong alternatives


def test_alternatives_look_like_the_answer_and_are_wrong():
    scenarios = [
        trivia("year", "1969"),
        trivia("other year", "1812"),
        trivia("age", "7"),
        trivia("city", "New York"),
        trivia("person", "Mark Twain", "Samuel Clemens"),
        trivia("metal", "gold"),
        trivia("gas", "neon"),
    ]
    wrong = alternatives(scenarios, 0)
    assert wrong["year"] == "1812" and wrong["other year"] == "1969"
    assert wrong["city"] == "Mark Twain" and wrong["person"] == "New York"
    assert wrong["metal"] == "neon" and wrong["gas"] == "gold"
    assert wrong["age"] in {"1969", "1812"}


def test_alternatives_are_never_an_alias_nor_stand_in_the_question():
    scenarios = [
        trivia("a", "Mark Twain", "Samuel Clemens"),
        trivia("b", "Samuel Clemens"),
        trivia("c", "Jane Austen", question="Was it Mark Twain or Samuel Clemens or Jane Austen?"),
        trivia("d", "Emily Bronte"),
    ]
    for seed in range(20):
        wrong = alternatives(scenarios, seed)
        assert wrong["a"] in {"Jane Austen", "Emily Bronte"} and wrong["c"] == "Emily Bronte"


def test_alternatives_do_not_depend_on_the_order_but_on_the_seed():
    scenarios = [trivia(f"q{number}", f"Name{number} Person") for number in range(50)]
    assert alternatives(scenarios, 1) == alternatives(scenarios[::-1], 1)
    assert alternatives(scenarios, 1) != alternatives(scenarios, 2)


def test_own_distractors_come_first_and_a_lone_question_has_no_alternative():
    assert alternatives([trivia("q", "Paris", distractors=["Lyon"]), trivia("r", "Rome")], 0) == {
        "q": "Lyon",
        "r": "Paris",
    }
    assert alternatives([trivia("q", "Paris"), trivia("r", "PARIS")], 0) == {}
    assert alternatives([], 0) == {}


def test_alternatives_of_many_questions_take_seconds():
    scenarios = [trivia(f"q{number}", f"Name{number} Person") for number in range(20_000)]
    start = time.perf_counter()
    assert len(alternatives(scenarios, 0)) == 20_000
    assert time.perf_counter() - start < 30


# The pocket world's questions


def test_pocket_trivia_asks_about_each_fact_of_the_split_once():
    facts = {fact.id: fact for fact in load_facts()}
    for split in ("train", "valid", "test", None):
        scenarios = pocket_trivia(split, seed=3)
        assert sorted(one.facts["fact"] for one in scenarios) == sorted(
            fact.id for fact in facts.values() if split in (None, fact.split)
        )
        assert len({one.id for one in scenarios}) == len(scenarios)
    for one in pocket_trivia("test", seed=3):
        fact = facts[one.facts["fact"]]
        assert fact.subject in one.opening and one.facts["answer"] == fact.answer
        assert set(one.facts["aliases"]) == fact.gold
        assert len(one.facts["distractors"]) == 3
        assert fact.gold.isdisjoint(normalize_answer(wrong) for wrong in one.facts["distractors"])
        json.dumps(dict(one.facts))


def test_pocket_trivia_is_seeded_and_mixes_relations():
    assert pocket_trivia("train", seed=1) == pocket_trivia("train", seed=1)
    assert pocket_trivia("train", seed=1) != pocket_trivia("train", seed=2)
    assert len({one.facts["relation"] for one in pocket_trivia("train", seed=1)[:40]}) == 5


def test_held_out_phrasings_are_asked_only_on_request():
    held = {question.split("{")[0] for phrasings in HELD_OUT_QUESTIONS.values() for question in phrasings} - {""}
    asked = pocket_trivia(None, seed=0, phrasing="held_out")
    assert all(one.opening.startswith(tuple(held)) or "is the symbol of" in one.opening for one in asked)
    assert not any(one.opening.startswith(tuple(held)) for one in pocket_trivia(None, seed=0))
    assert not {one.id for one in asked} & {one.id for one in pocket_trivia(None, seed=0)}


def test_an_unknown_split_or_phrasing_is_refused():
    with pytest.raises(ConfigError, match="'dev' is unknown"):
        pocket_trivia("dev", seed=0)
    with pytest.raises(ConfigError, match="'free' is unknown"):
        pocket_trivia("train", seed=0, phrasing="free")

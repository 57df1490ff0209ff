"""JSON that others wrote, answers made comparable, and how alike two texts are."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dialoom
from dialoom.text import MAX_NESTING, decode_json, edit_ratio, matches, normalize_answer, overlap, parse_json

READERS = ("json.load", "json.loads", "json.JSONDecoder")


@pytest.mark.parametrize("text", [
    b"\xff{}", "{", "", "[1] 2", "9" * 5000, "[" * 100_000, '{"a":' * 100_000,
    "[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1),
    '[{"a":' * (MAX_NESTING // 2) + "[]" + "}]" * (MAX_NESTING // 2),
])
def test_json_that_cannot_be_used_is_a_value_error_and_nothing_else(text):
    with pytest.raises(ValueError):
        parse_json(text)
    if isinstance(text, str) and text != "[1] 2":
        with pytest.raises(ValueError):
            decode_json(f"see {text}", 4)


def test_json_is_read_at_its_place_and_as_deep_as_the_limit():
    deep = "[" * MAX_NESTING + "]" * MAX_NESTING
    assert parse_json(deep) == json.loads(deep) and decode_json(f"1{deep}2", 1) == (json.loads(deep), 1 + len(deep))
    assert parse_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}') == {"a": "é"}
    wide = json.dumps([{"[{": [1, "]" * 200]}] * (2 * MAX_NESTING))
    assert parse_json(wide) == json.loads(wide)


def test_no_module_reads_json_past_the_two_functions_that_know_what_can_be_wrong_with_it():
    root = Path(dialoom.__file__).parent
    others = [path for path in root.rglob("*.py") if path != root / "text.py"]
    wrong = [f"{path.relative_to(root)}:{node.lineno}" for path in others
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Attribute) and ast.unparse(node) in READERS]
    assert len(others) > 100 and not wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Beatles", "beatles"),
        ("St. Paul’s_Cathedral", "st paul s cathedral"),
        ("  An   apple, a day! ", "apple day"),
        ("U.S.A.", "u s"),
        ("café", "café"),
        ("Spider-Man", "spider man"),
        ("‘quoted’ ´and` back", "quoted and back"),
        ("Theatre of another", "theatre of another"),
        ("The", ""),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_triviaqa_does(text, expected):
    assert normalize_answer(text) == expected


@given(st.text())
def test_normalised_answers_have_single_spaces_and_no_articles(text):
    words = normalize_answer(text).split(" ")
    assert words == [""] or all(words)
    assert not {"a", "an", "the"} & set(words)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Paris", True),
        ("the city of light", True),
        ("PARIS!", True),
        ("Paris (France)", True),
        ("Lyon", False),
        ("Paris France", False),
        ("", False),
        ("(Paris)", False),
    ],
)
def test_an_answer_is_right_if_it_is_a_gold_one_up_to_a_bracket(answer, right):
    assert matches(answer, ["Paris", "City of Light"]) is right


def test_an_answer_of_which_nothing_is_left_is_never_right():
    assert not matches("The", ["A", "The"])


def test_overlap_is_the_f1_of_shared_words():
    assert overlap("the big red dog", "a big dog") == pytest.approx(2 * 2 / (3 + 2))
    assert overlap("dog dog dog", "dog") == pytest.approx(2 * 1 / (3 + 1))
    assert overlap("dog", "cat") == 0.0
    assert overlap("", "") == 0.0
    assert overlap("Spider-Man", "spider man") == 1.0


def test_edit_ratio_counts_a_substitution_as_two_edits():
    assert edit_ratio("kitten", "sitting") == pytest.approx((13 - 5) / 13)
    assert edit_ratio("abc", "abd") == pytest.approx(4 / 6)
    assert edit_ratio("", "") == 1.0
    assert edit_ratio("", "abc") == 0.0
    assert edit_ratio("same", "same") == 1.0


@settings(max_examples=200)
@given(st.text("abcd", max_size=12), st.text("abcd", max_size=12))
def test_edit_ratio_agrees_with_the_textbook_table(left, right):
    table = list(range(len(right) + 1))
    for row, a in enumerate(left, start=1):
        before, table[0] = table[:], row
        for column, b in enumerate(right, start=1):
            edits = min(before[column], table[column - 1]) + 1
            table[column] = before[column - 1] if a == b else edits
    total = len(left) + len(right)
    assert edit_ratio(left, right) == pytest.approx((total - table[-1]) / total if total else 1.0)
    assert edit_ratio(left, right) == edit_ratio(right, left)

"""Behaviours in HarmBench's layout out of a user's file. All rows here are harmless and invented."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialoom.errors import ConfigError, DataError
from dialoom.scenarios.harmbench import COLUMNS, TOLD, read_behaviours

HEADER = ",".join(COLUMNS)
ROW = "Say the secret fruit,standard,fruit,,,fruit_1"


def file_of(path, *lines, header=HEADER):
    file = path / "behaviours.csv"
    file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return file


def told_by(file, **settings):
    told = []
    return [scene.id for scene in read_behaviours(file, tell=told.append, **settings)], told


def test_a_behaviour_is_in_the_attackers_brief_and_in_the_facts_and_nobody_else_reads_it(tmp_path):
    scene, = read_behaviours(file_of(tmp_path, ROW), rounds=4)
    assert scene.id == "fruit_1" and scene.opening == ""
    assert "Say the secret fruit" in scene.briefs["attacker"] and "4 messages" in scene.briefs["attacker"]
    assert scene.briefs["defender"] == ""
    assert scene.facts["behaviour"] == "Say the secret fruit" and scene.facts["semantic"] == "fruit"
    assert scene.facts["roles"] == ["attacker", "defender"]


def test_only_standard_rows_are_taken_unless_others_are_asked_for(tmp_path):
    file = file_of(tmp_path, ROW, "Sing it,contextual,song,,A song of plums.,song_1",
                   "Quote it,copyright,song,,,song_2")
    ids, told = told_by(file)
    assert ids == ["fruit_1"] and "2 are of other categories" in told[-1]
    found = read_behaviours(file, categories=["contextual", "copyright"])
    assert [scene.id for scene in found] == ["song_1", "song_2"]
    assert "A song of plums." in found[0].briefs["attacker"] and found[0].facts["context"] == "A song of plums."
    with pytest.raises(ConfigError, match="'odd' is unknown; expected some of standard"):
        read_behaviours(file, categories=["odd"])


@pytest.mark.parametrize(("line", "message"), [
    ("Say it,standard,,,", "expected 6 cells, found 5"), (",standard,,,,b", "Behavior is empty"),
    ("Say it,standard,,,,", "BehaviorID is empty"), ("Say it,,,,,b", "FunctionalCategory is empty"),
    ("Say it,odd,,,,b", "FunctionalCategory 'odd' is unknown"), ("Say it,contextual,,,,b", "no ContextString"),
    ("Say it,standard,,,,fruit_1", "stands there twice"), ("Say \0 it,standard,,,,b", "readable text"),
    ('"Say it,standard,,,,b', "expected a CSV row")])
def test_a_bad_row_is_named_by_file_and_line_and_costs_no_good_one(tmp_path, line, message):
    file = file_of(tmp_path, ROW, line, "Name it,standard,,,,fruit_3")
    ids, told = told_by(file)
    assert ids == ["fruit_1", "fruit_3"]
    assert f"{file}:3: " in told[0] and message in told[0]
    assert "2 behaviours read, 1 rows cannot be used" in told[-1]


def test_a_text_over_several_lines_counts_them(tmp_path):
    file = file_of(tmp_path, '"Say\nthe\nfruit",standard,,,,a', "Say it,odd,,,,b")
    ids, told = told_by(file)
    assert ids == ["a"] and f"{file}:5: " in told[0]


def test_many_bad_rows_are_counted_rather_than_told(tmp_path):
    _, told = told_by(file_of(tmp_path, ROW, *["x"] * 100))
    assert len(told) == TOLD + 1 and "100 rows cannot be used" in told[-1]


@pytest.mark.parametrize(("data", "message"), [
    (b"", "is empty; expected a header"), (b"\n\n", "is empty"), (HEADER.encode(), "no row"),
    (b"Goal,BehaviorID\na,b\n", ":1: the header has 0 columns Behavior;"),
    (HEADER.encode() + b",Behavior\n", ":1: the header has 2 columns Behavior;"),
    (HEADER.encode("utf-16"), ":1: expected UTF-8, found the start of a UTF-16 file"),
    (HEADER.encode() + b"\nSay it,odd,,,,b\n", ":2: FunctionalCategory 'odd' is unknown"),
    (HEADER.encode() + b"\nSay \xff it,standard,,,,b\n", ":2: expected Behavior to be readable text"),
    (HEADER.encode() + b"\nSing,copyright,,,,b\n", "1 rows are of other categories than standard")])
def test_a_file_without_a_behaviour_that_can_be_used_is_refused(tmp_path, data, message):
    file = tmp_path / "behaviours.csv"
    file.write_bytes(data)
    with pytest.raises(DataError) as refused:
        read_behaviours(file)
    assert str(file) in str(refused.value) and message in str(refused.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_behaviours(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_behaviours(tmp_path)


def test_a_byte_order_mark_and_further_columns_do_no_harm(tmp_path):
    file = tmp_path / "behaviours.csv"
    file.write_text(f"{HEADER},Note\r\n{ROW},mine\r\n", encoding="utf-8-sig", newline="")
    assert [scene.id for scene in read_behaviours(file)] == ["fruit_1"]


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30).filter(
    lambda text: text.strip())


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8, unique_by=lambda row: row[1].strip()))
def test_what_csv_writes_is_read_back(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("harmbench") / "behaviours.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([COLUMNS, *((text, "standard", "", "", "", id) for text, id in rows)])
    found = read_behaviours(file)
    assert [(scene.facts["behaviour"], scene.id) for scene in found] == [(text.strip(), id.strip())
                                                                         for text, id in rows]

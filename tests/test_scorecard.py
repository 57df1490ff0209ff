"""The scorecard of one model, and the table of several: cells, what is not applicable, and how they are written."""

import json
import math

import pytest

from dialoom import cli
from dialoom.errors import ConfigError
from dialoom.evals.metrics import Row
from dialoom.models.load import load_model
from dialoom.models.scripted import ScriptedModel
from dialoom.scorecard import (
    CARD,
    COLUMNS,
    Card,
    Setting,
    Subject,
    columns_named,
    matrix,
    measure,
    missing_cells,
    page,
    plain_table,
    speaks_pocket,
    table,
)

TRIVIA = columns_named(["flipflop", "are_you_sure", "recall", "misinformation"])


def knower(chat):
    """Knows every answer and never gives way."""
    from dialoom.evaluate import questions

    asked = chat[0]["content"].split("\n")[0]
    for one in questions("recall"):
        if one.opening == asked:
            return f"The answer is {one.facts['answer']}."
    return "I do not know."


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.mark.slow
def test_every_column_gives_its_figure_with_an_interval(pocket):
    other = load_model("pocket-small")
    card = measure([Subject("small", other)], Setting(pocket, items=4, author="Clara"), CARD)
    for column in CARD:
        if column.title == "as guard":
            continue
        row = card.cell("small", column)
        assert row is not None and row.subject == "small" and row.low <= row.value <= row.high and row.n >= 3, column
    assert list(card.missing) == [("small", "as guard")], "it has never kept a word"


def test_a_stubborn_knower_resists_everything_and_accepts_nothing(pocket):
    card = measure([Subject("stubborn", ScriptedModel(knower), pocket=False)], Setting(pocket, items=6), TRIVIA)
    flip, sure, recall, misled = (card.cell("stubborn", column) for column in TRIVIA)
    assert (recall.value, sure.value, misled.value) == (1.0, 0.0, 0.0)
    assert flip.value == 1.0, "it says the right answer whoever is right"


def test_what_makes_no_sense_is_left_out_and_says_why(pocket):
    lines = []
    stranger = Subject("stranger", ScriptedModel(lambda chat: "hm"), pocket=False)
    card = measure([stranger, Subject("base", pocket)], Setting(pocket, items=2, author="Clara"),
                   columns_named(["alignment", "chat", "social", "author"]), lines.append)
    assert {(subject, title) for subject, title in card.missing} == {
        ("stranger", "alignment"), ("stranger", "chat quality"), ("stranger", "social"),
        ("stranger", "win rate over base"), ("base", "win rate over base")}
    assert any("--judge names a model" in line for line in lines)
    text = table(card, columns_named(["alignment", "chat", "social", "author"]))
    assert text.count("n/a") == 5


def test_with_a_judge_a_stranger_is_rated_and_told_what_pocket_cannot_measure(pocket):
    rates = ScriptedModel(lambda chat: "Rating: 4\n[[4]]")
    stranger = Subject("stranger", ScriptedModel(lambda chat: "hm"), pocket=False)
    columns = columns_named(["alignment", "chat", "social", "author", "attack", "team"])
    card = measure([stranger], Setting(pocket, judge=rates, items=2, author="Clara"), columns)
    measured = [column.title for column in columns if card.cell("stranger", column)]
    assert measured == ["alignment", "chat quality", "team"]
    told = missing_cells(card)
    assert len(told) == 3 and all("`dialoom " in line for line in told), "each says what to do instead"


def test_the_same_reason_is_told_once_with_all_it_is_true_of():
    card = Card(("a", "b", "c"), (), {("a", "as guard"): "it says 3 of 5", ("b", "as guard"): "it says 3 of 5",
                                      ("c", "as guard"): "it says 1 of 5", ("c", "social"): "other"})
    assert missing_cells(card) == ["n/a: as guard of a, b: it says 3 of 5", "n/a: as guard of c: it says 1 of 5",
                                   "n/a: social of c: other"]


def guard(gives_in):
    """Tells the code word where it may, and to visitors if it gives in."""
    def reply(chat):
        brief = chat[0]["content"]
        word = next(word.strip(".") for word in brief.split("code word ")[1].removeprefix("is ").split())
        return f"It is {word}." if gives_in or "Tell it" in brief else "No."
    return ScriptedModel(reply)


def test_a_guard_is_measured_only_if_it_could_say_the_word(pocket):
    column = columns_named(["redteam"])
    subjects = [Subject("weak", guard(True)), Subject("firm", guard(False)), Subject("mute", ScriptedModel(
        lambda chat: "Hm."))]
    card = measure(subjects, Setting(pocket, items=5), column)
    assert card.cell("weak", column[0]).value == 1.0 and card.cell("firm", column[0]).value == 0.0
    assert "0 of 5 code words" in card.missing["mute", "as guard"]


def test_a_table_scales_rates_and_leaves_levels_alone():
    rows = (Row("flipflop", "a|b", "overall", 0.5, 0.25, 0.75, 8, 1),
            Row("alignment", "a|b", "avg", 3.2, 3.0, 3.5, 8, 1),
            Row("chat", "a|b", "quality", math.nan, math.nan, math.nan, 0, 1))
    card = Card(("a|b",), rows, {})
    lines = table(card).splitlines()
    assert len(lines) == 3 and all(line.count(" | ") == len(COLUMNS) for line in lines)
    assert "50.0 [25.0, 75.0]" in lines[2] and "3.20 [3.00, 3.50]" in lines[2] and r"a\|b" in lines[2]
    assert "50.0 [25.0, 75.0]" in page(card) and "Scorecard of a|b" in page(card)


def test_only_pockets_own_words_count_as_pockets(pocket):
    assert speaks_pocket(pocket) and not speaks_pocket(ScriptedModel(lambda chat: ""))


def test_an_unknown_evaluation_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean flipflop"):
        columns_named(["flipflip"])


def test_the_command_writes_a_card_and_its_rows(tmp_path, capsys):
    out = tmp_path / "card.md"
    assert cli.main(["scorecard", "pocket", "--evals", "recall", "--limit", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Scorecard of pocket" in shown and "|" not in shown and max(map(len, shown.splitlines())) <= 80
    assert "# Scorecard of pocket" in out.read_text() and "| recall |" in out.read_text()
    [row] = json.loads((tmp_path / "card.json").read_text())
    assert row["eval"] == "recall" and row["n"] == 3


def test_the_matrix_says_better_and_worse_only_where_intervals_lie_apart():
    def rows(label, *figures):
        columns = columns_named(["flipflop", "are_you_sure", "misinformation"])
        return [Row(one.eval, label, one.metric, value, low, high, 30, 1)
                for one, (value, low, high) in zip(columns, figures, strict=True)]

    columns = columns_named(["flipflop", "are_you_sure", "misinformation", "chat"])
    card = Card(("base", "other"), (*rows("base", (.6, .5, .7), (.1, .05, .2), (.8, .7, .9)),
                                    *rows("other", (.8, .75, .9), (-.4, -.5, -.3), (.75, .6, .85))), {})
    found = matrix(card, columns)
    assert [head for head, _ in found.heads][:3] == ["flip-flop ↑", "are you sure: drop → 0", "misinformation ↓"]
    (_, first), (label, second) = found.rows
    assert label == "other" and [one.tone for one in first] == ["", "", "", ""]
    assert [one.tone for one in second] == ["better", "worse", "", ""], "farther from zero is worse, whichever side"
    assert second[0].text == "80.0 [75.0, 90.0]" and second[3].text == "n/a"
    lines = plain_table(card, columns).splitlines()
    assert lines[2].split() == ["flip-flop", "↑", "60.0", "80.0▲"] and lines[3].split()[-1] == "-40.0▼"

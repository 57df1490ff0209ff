"""The round robin: exact denominators, both orders, averages, intervals, judges."""

import math

import pytest

from dialoom.dialogue import Dialogue, Scenario
from dialoom.evals.winrate import (
    ScoreComparer,
    author_similarity,
    exact_style,
    gap_row,
    model_judge,
    round_robin,
    style_score,
    win_rows,
)
from dialoom.pocket.world import styles

LENGTH = ScoreComparer("length", lambda dialogues, texts: [float(len(text)) for text in texts])


def task(author, name, reference="text"):
    return Dialogue(Scenario(f"{author}/{name}", f"Write {name}.", facts={"author": author, "reference": reference}))


def tasks_of(lengths, counts, samples=3):
    """Tasks for authors a, b, ...: method -> length of its texts; counts: tasks of each author."""
    return [(task(author, str(at)), {method: ["x" * size] * samples for method, size in lengths.items()})
            for author, count in zip("abcdef", counts, strict=False) for at in range(count)]


def test_denominators_are_tasks_times_samples_times_opponents_times_two():
    methods = [f"m{at}" for at in range(7)]
    result = round_robin(tasks_of({method: at for at, method in enumerate(methods)}, (2, 3)), methods, LENGTH)
    assert {result.standing(method, "a").comparisons for method in methods} == {72}
    assert {result.standing(method, "b").comparisons for method in methods} == {108}
    assert result.standing("m6").comparisons == 180


def test_win_rates_over_all_methods_average_one_half():
    methods = ["p", "q", "r", "s"]
    tasks = [(dialogue, {method: ["x" * ((at * 7 + number * 3) % 5 + sample) for sample in range(3)]
                         for number, method in enumerate(methods)})
             for at, (dialogue, _) in enumerate(tasks_of(dict.fromkeys(methods, 1), (3, 2, 3)))]
    result = round_robin(tasks, methods, LENGTH)
    assert sum(result.standing(method).rate for method in methods) / 4 == pytest.approx(0.5)
    for author in result.authors:
        assert sum(result.standing(method, author).rate for method in methods) == pytest.approx(2.0)


def test_a_tie_is_half_a_win_in_both_orders():
    result = round_robin(tasks_of({"p": 3, "q": 3, "r": 1}, (1,)), ["p", "q", "r"], LENGTH)
    assert result.standing("p").wins == 3 * (1 + 2) and result.standing("p").comparisons == 12
    assert result.standing("p").rate == 0.75


def test_micro_weighs_authors_by_comparisons_and_macro_equally():
    tasks = [*tasks_of({"p": 2, "q": 1}, (3,)), *((task("b", "0"), {"p": ["x"] * 3, "q": ["xx"] * 3}) for _ in "1")]
    rows = {(row.subject, row.metric): row for row in win_rows(round_robin(tasks, ["p", "q"], LENGTH), "winrate", 1)}
    assert rows["p", "micro"].value == pytest.approx(3 / 4) and rows["p", "micro"].n == 24
    assert rows["p", "macro"].value == pytest.approx(1 / 2) and rows["p", "macro"].n == 2
    assert rows["p", "se"].value == pytest.approx(0.5)  # of 1 and 0: standard deviation sqrt(1/2), over sqrt(2)
    assert rows["judge", "position_bias"].value == 0


def test_a_judge_without_a_verdict_leaves_the_match_out():
    silent = ScoreComparer("silent", LENGTH.score)

    class Silent:
        name, symmetric = "silent", True

        def compare(self, dialogues, left, right):
            return [None, *silent.compare(dialogues, left, right)[1:]]
    result = round_robin(tasks_of({"p": 2, "q": 1}, (1,)), ["p", "q"], Silent())
    assert result.standing("p").comparisons == 4


def test_an_outsider_meets_the_pool_and_changes_nothing_in_it():
    tasks = tasks_of({"p": 2, "q": 1, "ceiling": 9}, (2,))
    beside = round_robin(tasks, ["p", "q"], LENGTH, outsider="ceiling")
    assert beside.methods == ("ceiling",) and beside.standing("ceiling").comparisons == 2 * 3 * 2 * 2
    assert beside.standing("ceiling").rate == 1
    assert round_robin(tasks, ["p", "q"], LENGTH).standing("p").comparisons == 2 * 3 * 1 * 2


def test_position_bias_is_the_share_of_matches_whose_orders_disagree():
    class FirstWins:
        """Prefers whatever stands first when the texts are of one length."""

        name = "first"

        def choose(self, chats, options):
            rows = []
            for chat in chats:
                text = chat[0]["content"]
                a, b = text.split("Text A:\n")[1].split("\n\nText B:\n")
                rows.append([0.0, -1.0] if len(a) >= len(b.split("\n\n")[0]) else [-1.0, 0.0])
            return rows
    tasks = [(task("a", "0"), {"p": ["xx", "x", "xx"], "q": ["x", "x", "xx"]})]
    result = round_robin(tasks, ["p", "q"], model_judge(FirstWins()))
    assert result.bias == pytest.approx(2 / 3)
    assert result.standing("p").wins == 2 + 1 + 1


def test_the_paired_interval_of_a_steady_gap_is_narrow_though_tasks_differ():
    tasks = []
    for at in range(8):
        good = at % 2 == 0  # half of the tasks favour both over r, half neither; p always beats q
        sizes = {"p": 9 if good else 2, "q": 8 if good else 1, "r": 5}
        tasks.append((task("a", str(at)), {method: ["x" * size] * 3 for method, size in sizes.items()}))
    result = round_robin(tasks, ["p", "q", "r"], LENGTH)
    row = gap_row(result, "winrate_gap", "p", "q", 1)
    assert row.value == pytest.approx(0.5) and (row.low, row.high) == pytest.approx((0.5, 0.5))
    alone = next(row for row in win_rows(result, "winrate", 1) if (row.subject, row.metric) == ("p", "micro"))
    assert alone.high - alone.low > 0.2


def test_one_author_has_no_spread_over_authors():
    rows = win_rows(round_robin(tasks_of({"p": 2, "q": 1}, (2,)), ["p", "q"], LENGTH), "winrate", 1)
    assert all(math.isnan(row.value) for row in rows if row.metric == "se")


def test_methods_with_unequally_many_texts_are_refused():
    with pytest.raises(ValueError, match="unequally many"):
        round_robin([(task("a", "0"), {"p": ["x"], "q": ["x", "y"]})], ["p", "q"], LENGTH)


def test_the_exact_judge_prefers_the_author_s_own_text_and_refuses_one_off_topic():
    row, other = styles.demonstrations("Alma")[0], styles.demonstrations("Bruno")
    dialogue = Dialogue(Scenario("s", row["prompt"], facts={"author": "Alma"}))
    off_topic = next(one["output"] for one in styles.demonstrations("Alma") if one["prompt"] != row["prompt"])
    verdicts = exact_style().compare([dialogue] * 2, [row["output"]] * 2, [other[0]["output"], off_topic])
    assert verdicts == ["left", "left"]
    assert style_score("Alma", row["prompt"], off_topic) == 0


def test_similarity_prefers_the_text_that_shares_the_author_s_letters():
    dialogue = task("you", "a note", "hiya!! cant wait 2 see u, gonna be gr8 :-)")
    near, far = "hiya!! gonna be gr8, cant wait", "Dear Sir or Madam, please find the report enclosed."
    assert author_similarity().compare([dialogue], [near], [far]) == ["left"]
    assert author_similarity().compare([dialogue], [near], [near]) == ["tie"]

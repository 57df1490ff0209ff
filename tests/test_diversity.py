"""Diversity of user turns: figures by hand, readers of turns, sets side by side, the command."""

import json
import math
import random

import numpy as np
import pytest

from dialoom.dialogue import Dialogue, Scenario, Turn
from dialoom.embed import Ngrams
from dialoom.errors import DataError
from dialoom.evals.diversity import (
    cut_to,
    distinct_n,
    diversity,
    entropy,
    repetition,
    rouge_l,
    self_rouge_l,
    side_by_side,
    spread,
    turns_of,
    words,
)
from dialoom.evals.follow_ups import (
    Yardstick,
    context_by_model,
    context_by_rule,
    nearest_strategies,
    noted_strategies,
    pocket_yardstick,
    points_back,
)
from dialoom.evaluate import run_named
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world import strategies as world
from dialoom.pocket.world.strategy_tables import STRATEGIES


def dialogue(id, opening, *asked, notes=()):
    turns = []
    for at, text in enumerate(asked):
        for speaker, said in (("assistant", f"answer {at}"), ("user", text)):
            parent = turns[-1].id if turns else None
            turns.append(Turn(f"{id}-{len(turns)}", parent, speaker, said))
        if notes:
            turns[-1].notes["strategy"] = notes[at]
    return Dialogue(Scenario(id, opening), (*turns, Turn(f"{id}-end", turns[-1].id if turns else None, "assistant",
                                                         "the last answer")))


def of_world(count, seed, *, lively=True, rounds=4):
    found = []
    for at in range(count):
        rng = random.Random(1000 * seed + at)
        topic = rng.choice(list(world.TOPICS))
        opening, exchanges = world.make_dialogue(topic, rounds, rng)
        asked = [one.question if lively else world.write_instruction("more", topic, rng, 0.1) for one in exchanges]
        found.append(dialogue(f"d{at}", opening.question, *asked))
    return found


def by_metric(rows):
    return {row.metric: row for row in rows}


def values(rows):
    return {row.metric: row.value for row in rows}


# ------------------------------------------------------------------------------------------------ figures


def test_identical_turns_are_as_little_varied_as_turns_can_be():
    same = [dialogue(f"d{at}", "What is tea?", *["What does it cost then, what?"] * 2) for at in range(5)]
    found = values(diversity(same, pocket_yardstick(), label="x"))
    assert found["distinct_1"] == pytest.approx(5 / 60)  # what, does, it, cost, then out of six words, ten times
    assert found["self_rouge_l"] == 1 and found["spread"] == pytest.approx(0, abs=1e-6)
    assert found["clusters"] == 1 and found["strategy_entropy"] == 0 and found["strategies"] == 1


def test_different_words_as_turns_are_all_distinct():
    found = values(diversity([dialogue("d", "Hello", "apple", "wolf", "Rhine", "17")],
                             Yardstick(context_by_rule), label="x"))
    assert found["distinct_1"] == 1 and found["self_rouge_l"] == 0 and math.isnan(found["distinct_2"])
    assert found["clusters"] == 4
    assert "strategies" not in found and "coverage" not in found  # nothing was said that tells them


def test_distinct_counts_ngrams_within_turns_only():
    assert distinct_n(["a b a b", "b a"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a b a b", "b a"], 2) == pytest.approx(2 / 4)  # a b, b a, a b and b a
    assert math.isnan(distinct_n(["a", "b"], 2)) and math.isnan(distinct_n([], 1))


def test_words_are_without_case_and_punctuation_in_any_script():
    assert words("Don't stop: WHY, really?") == ["don't", "stop", "why", "really"]
    assert words("为什么 yes Übel 3") == ["为", "什", "么", "yes", "übel", "3"]
    assert words("?!") == []


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    assert rouge_l(list("abcd"), list("axc")) == pytest.approx(2 * 2 / 7)
    assert rouge_l(["the", "cat", "sat"], ["sat", "the", "cat"]) == pytest.approx(2 / 3)
    assert rouge_l([], []) == 1 and rouge_l(["a"], []) == 0


def test_self_rouge_l_is_the_mean_over_turns_of_the_mean_over_the_others():
    texts = ["a b", "a c", "a b c d", "e"]
    split = [words(text) for text in texts]
    means = [np.mean([rouge_l(one, other) for at, other in enumerate(split) if at != here])
             for here, one in enumerate(split)]
    assert self_rouge_l(texts) == pytest.approx(np.mean(means))
    assert math.isnan(self_rouge_l(["alone"]))


def test_self_rouge_l_of_many_turns_is_a_sample_near_the_whole():
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefgh", k=5)) for _ in range(400)]
    split = [list(text.replace(" ", "")) for text in texts]
    whole = np.mean([rouge_l(split[one], split[other]) for one in range(400) for other in range(one)])
    assert self_rouge_l(texts, seed=3) == pytest.approx(whole, abs=0.005)
    assert self_rouge_l(texts, seed=3) == self_rouge_l(texts, seed=3) != self_rouge_l(texts, seed=4)


def test_spread_is_the_mean_distance_of_pairs():
    angles = np.radians([0, 90, 180])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert spread(rows) == pytest.approx((1 + 2 + 1) / 3, abs=1e-6)
    assert math.isnan(spread(rows[:1]))


def test_entropy_is_in_nats():
    assert entropy(["a"] * 5) == 0 and entropy([]) == 0
    assert entropy(["a", "b", None, "c"]) == pytest.approx(math.log(4))
    assert entropy(["a", "a", "b"]) == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))


def test_repetition_is_the_highest_ratio_of_two_user_turns_with_the_opening():
    assert repetition(dialogue("d", "What is tea?", "Why?", "What is tea?")) == 1
    assert repetition(dialogue("d", "abcd", "abce")) == pytest.approx(0.75)
    assert repetition(dialogue("d", "alone")) == 0


# ------------------------------------------------------------------------------------------------ readers


def test_pockets_yardstick_reads_what_turns_do():
    asked = ["Why is it needed?", "Tell me more about tea.", "What does tea cost?", "Hm, well."]
    one = dialogue("d", "What is tea?", *asked)
    stick = pocket_yardstick()
    assert stick.strategies([one]) == [["why", None, "cost", None]]
    assert stick.context([one]) == [[True, False, False, False]]  # what asks for nothing does not count
    assert set(stick.listed) == set(STRATEGIES)


def test_strategies_are_read_from_notes_through_their_parents():
    one = dialogue("d", "q", "first", "second", "third", notes=["ask why", "other", None])
    assert noted_strategies({"ask why": "Ask for reasons"})([one]) == [["Ask for reasons", "other", None]]


def test_the_nearest_example_gives_the_strategy():
    read = nearest_strategies([("What does it cost?", "price"), ("Why is that so?", "reason")], Ngrams())
    found = read([dialogue("a", "q", "How much does that cost?", "But why is it so?"), dialogue("b", "q")])
    assert found == [["price", "reason"], []]


@pytest.mark.parametrize("text", ["Why?", "And the second one?", "What about Rome?", "Explain it to a child.",
                                  "Is that true?", "That's odd.", "Give me another.", "Can you make this shorter?"])
def test_the_rule_sees_what_points_back(text):
    assert points_back(text)


@pytest.mark.parametrize("text", ["What is the capital of France?", "Why do cats purr?", "I read that cats purr.",
                                  "Write a poem about Andes mountains.", "So-called elites: who are members?",
                                  "Iterate over a list in Python.", "However, birds fly."])
def test_the_rule_leaves_what_stands_alone(text):
    assert not points_back(text)


def test_a_model_is_asked_once_for_equal_turns_and_twice_if_it_says_neither():
    def respond(chat):
        return {"Why?": "No.", "Who was Bach?": "Yes, it could."}.get(chat[0]["content"].split("\n\n")[1], "maybe")
    model = ScriptedModel(respond)
    found = context_by_model(model)([dialogue("a", "q", "Why?", "Who was Bach?"), dialogue("b", "q", "Why?", "Hm")])
    assert found == [[True, False], [True, None]]
    assert len(model.calls) == 4


# ------------------------------------------------------------------------------------------------ sets


def test_a_set_is_cut_to_a_number_of_turns_the_same_for_the_same_openings():
    long, short = of_world(12, 1, rounds=4), of_world(12, 2, rounds=2)
    for turns in (1, 7, 24):
        cut = cut_to(long, turns, seed=5)
        assert turns_of(cut) == turns
        whole = {one.scenario.id: one for one in long}
        assert all(one.turns == whole[one.scenario.id].turns[:len(one.turns)] for one in cut)
    ids = [one.scenario.id for one in cut_to(short, 24, seed=5)]
    assert [one.scenario.id for one in cut_to(long, 48, seed=5)] == ids  # same order, drawn by id
    assert cut_to(list(reversed(long)), 7, seed=5) == cut_to(long, 7, seed=5)
    with pytest.raises(DataError, match="24 user turns after the opening; expected at least 25"):
        cut_to(short, 25)


def test_lively_users_are_more_varied_than_bland_ones_at_equal_turns():
    sets = {"plain": of_world(40, 1, lively=False, rounds=6), "ideas": of_world(40, 2)}
    rows = side_by_side(sets, pocket_yardstick())
    plain, lively = (by_metric(row for row in rows if row.subject == label) for label in ("plain", "ideas"))
    for metric in ("strategies", "strategy_entropy", "coverage", "distinct_2", "spread", "clusters",
                   "context_dependence", "strategies_per_dialogue"):
        assert lively[metric].low > plain[metric].high, metric
    for metric in ("self_rouge_l", "repetition"):
        assert lively[metric].high < plain[metric].low, metric
    assert plain["turns"].value == 6 and lively["turns"].value == 4  # of whole dialogues
    assert all(row.low <= row.value <= row.high for row in rows)


def test_a_bland_user_with_a_few_good_turns_does_not_look_rich():
    asked = ["Tell me more about tea."] * 18 + ["What does it cost?", "Why is it needed?"]
    found = values(diversity([dialogue("d", "What is tea?", *asked)], pocket_yardstick(), label="x"))
    shares = [0.9, 0.05, 0.05]
    assert found["strategies"] == 2 and found["coverage"] == pytest.approx(2 / 16)
    assert found["strategy_entropy"] == pytest.approx(-sum(p * math.log(p) for p in shares))


def test_intervals_shrink_with_more_dialogues_and_one_dialogue_has_none():
    few, many = (by_metric(diversity(of_world(count, 3), pocket_yardstick(), label="x")) for count in (20, 180))
    for metric in ("strategy_entropy", "self_rouge_l", "spread", "context_dependence"):
        assert many[metric].high - many[metric].low < 0.6 * (few[metric].high - few[metric].low), metric
    alone = by_metric(diversity(of_world(1, 3), pocket_yardstick(), label="x"))
    assert math.isnan(alone["distinct_2"].low) and math.isfinite(alone["distinct_2"].value)


def test_the_interval_covers_the_figure_of_another_set():
    """Of the same kind: 95 % intervals of a mean of pairs hold another set's figure rather often."""
    sets = [by_metric(diversity(of_world(60, seed), pocket_yardstick(), label="x")) for seed in range(10, 16)]
    for metric in ("self_rouge_l", "spread", "strategy_entropy", "context_dependence"):
        hits = [one[metric].low <= other[metric].value <= one[metric].high for one in sets for other in sets
                if one is not other]
        assert np.mean(hits) > 0.6, metric
        assert sets[0][metric].high - sets[0][metric].low < 0.25, metric


def test_acceptance_counts_all_that_was_tried():
    two = [dialogue("a", "q", "one", "two"), dialogue("b", "q", "three")]
    rows = diversity(two, Yardstick(context_by_rule), label="x", attempts={"a": 4, "b": 1, "never came": 3})
    assert values(rows)["acceptance"] == pytest.approx(3 / 8) and values(rows)["turns"] == 1.5


def test_a_set_without_follow_ups_is_refused():
    with pytest.raises(DataError, match="x: 1 dialogues without a user turn after the opening"):
        diversity([dialogue("d", "q")], pocket_yardstick(), label="x")
    with pytest.raises(DataError, match="1 user turns"):
        diversity([dialogue("d", "q", "why?")], pocket_yardstick(), label="x", turns=2)


def test_an_undecided_context_is_left_out():
    stick = Yardstick(lambda dialogues: [[True, None, None, False, False] for _ in dialogues])
    assert values(diversity([dialogue("d", "q", *"abcde")], stick, label="x"))["context_dependence"] == \
        pytest.approx(1 / 3)


def test_rows_are_plain_json():
    rows = diversity(of_world(3, 1), pocket_yardstick(), label="ideas", seed=4)
    assert {(row.eval, row.subject, row.seed) for row in rows} == {("diversity", "ideas", 4)}
    assert json.loads(json.dumps([row.to_json() for row in rows]))[0]["metric"] == "strategies"


# ------------------------------------------------------------------------------------------------ the command


def written(path, *chats):
    path.write_text(json.dumps([{"id": str(at), "conversations": [
        {"from": "human" if place % 2 == 0 else "gpt", "value": text} for place, text in enumerate(chat)]}
        for at, chat in enumerate(chats)]), encoding="utf-8")
    return str(path)


def rows_of(tmp_path, **given):
    run_named("diversity", "pocket", out=tmp_path / "rows.json", **given)
    return {row["metric"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))}


def test_the_command_measures_pockets_dialogues_by_its_exact_rules(tmp_path, capsys):
    chat = ["What is tea?", "A drink.", "Why is it needed?", "So.", "What does tea cost?", "Two coins."]
    data = written(tmp_path / "mine.json", chat)
    found = rows_of(tmp_path, data=data)
    assert found["strategies"] == 2 and found["context_dependence"] == 0.5 and found["turns"] == 2
    assert "exact rules" in capsys.readouterr().err


def test_the_command_measures_other_dialogues_by_rules_for_any_text(tmp_path, capsys):
    chat = ["Who was Bach?", "A composer.", "Which of his works is best?", "Hard to say.", "Who was Gauss?", "A man."]
    data = written(tmp_path / "mine.json", chat, chat)
    found = rows_of(tmp_path, data=data)
    assert "strategies" not in found and found["context_dependence"] == 0.5
    (tmp_path / "list.json").write_text('["ask which is best", "ask who somebody was", "ask for a poem"]')
    found = rows_of(tmp_path, data=data, strategies=str(tmp_path / "list.json"))
    assert found["strategies"] == 2 and found["coverage"] == pytest.approx(2 / 3)
    capsys.readouterr()
    rows_of(tmp_path, data=data, limit=3)
    assert "3 of 4 user turns are looked at" in capsys.readouterr().err

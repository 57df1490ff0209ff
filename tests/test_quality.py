"""Answers over several turns: the protocol, pocket's exact judge, ratings from 1 to 10, MT-Bench's layout."""

import json
import random
import re

import pytest

from dialoom.dialogue import Dialogue, Turn
from dialoom.errors import ConfigError, DataError
from dialoom.evals.alignment_roles import ASSISTANT, USER
from dialoom.evals.quality import (
    answered,
    conversation,
    conversations_of,
    exact_judge,
    mean_row,
    pocket_conversations,
    quality,
)
from dialoom.evals.rating import RatingJudge, mtbench, parse_rating, questions_as_conversations
from dialoom.evaluate import run_named
from dialoom.judge import RuleJudge, Verdict, ask_until_read
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world import strategies as world
from dialoom.scenarios.sharegpt import Question
from dialoom.simulate import ScriptedSpeaker, speaking
from dialoom.store import TreeLog

TOPICS = ["a kettle", "chess", "tea"]
GREEDY = Sampling(0.0)


def answering(model):
    return speaking(ASSISTANT, model, GREEDY)


def right_answer(dialogue, _=0):
    """What is known to be right, from the scenario's facts; any assistant that is told them could say it."""
    facts, at = dialogue.scenario.facts, len(dialogue.by(USER))
    return world.write_answer(facts["topic"], facts["classes"][at], facts["classes"][:at], random.Random(at))


def by_metric(result):
    return {row.metric: row for row in result.rows}


# ------------------------------------------------------------------------------------------------ protocol


def test_questions_come_one_by_one_below_the_subjects_own_answers():
    model = ScriptedModel(lambda chat: f"answer to {chat[-1]['content']} after {len(chat)}")
    asked = [conversation("long", ["q1", "q2", "q3"], {}), conversation("short", ["p1"], {}),
             conversation("two", ["r1", "r2"], {})]
    judge = RuleJudge("none", lambda dialogue: Verdict())
    found = answered(answering(model), asked, judge)
    assert [[turn.text for turn in one.turns] for one in found] == [
        ["answer to q1 after 1", "q2", "answer to q2 after 3", "q3", "answer to q3 after 5"], ["answer to p1 after 1"],
        ["answer to r1 after 1", "r2", "answer to r2 after 3"]]
    assert [len(chat) for chat in model.calls] == [1, 1, 1, 3, 3, 5]  # in step: all first answers, all second ones


def test_the_mean_is_over_answers_and_each_turn_has_its_own():
    scores = {"q1": 1.0, "q2": 0.5, "q3": 0.0, "p1": 0.0}

    def rule(dialogue):
        last = dialogue.last.text.removeprefix("to ")
        return Verdict({"quality": scores[last]}) if dialogue.last.speaker == ASSISTANT else Verdict()
    model = ScriptedModel(lambda chat: f"to {chat[-1]['content']}")
    asked = [conversation("long", ["q1", "q2", "q3"], {}), conversation("short", ["p1"], {})]
    found = by_metric(quality(answering(model), asked, RuleJudge("rule", rule), label="m", seed=7))
    assert {metric: row.value for metric, row in found.items()} == {
        "quality": 1.5 / 4, "turn_1": 0.5, "turn_2": 0.5, "turn_3": 0.0}
    assert (found["quality"].eval, found["quality"].subject, found["quality"].n, found["quality"].seed) == \
        ("chat", "m", 2, 7)
    assert found["turn_3"].n == 1 and found["quality"].low == 0.0 and found["quality"].high == 0.5


def test_silence_is_the_lowest_score_from_there_on_and_no_score_is_left_out_and_counted():
    model = ScriptedModel(lambda chat: "" if chat[-1]["content"] == "silence" else "words")

    def rule(dialogue):
        if dialogue.last.speaker == USER:
            return Verdict()
        return Verdict({"quality": 8.0}) if len(dialogue.turns) > 1 else None
    asked = [conversation("a", ["one", "silence", "two"], {}), conversation("b", ["silence"], {}),
             conversation("c", ["one", "two"], {})]
    found = quality(answering(model), asked, RuleJudge("rule", rule), label="m", lowest=1.0)
    assert found.unread == 2  # the first answers of a and c
    assert {metric: row.value for metric, row in by_metric(found).items()} == {
        "quality": (1 + 1 + 1 + 8) / 4, "turn_1": 1.0, "turn_2": 4.5, "turn_3": 1.0}


def test_nothing_scored_is_no_figure():
    row = mean_row("chat", "m", "quality", [[float("nan")]], 1)
    assert row.to_json()["value"] is None and row.n == 0


def test_a_killed_evaluation_goes_on_from_its_log_to_the_same_figures(tmp_path):
    asked = pocket_conversations(TOPICS, 6, rounds=3, seed=1)

    def respond(chat):
        return f"It costs {len(chat)}."
    whole = quality(answering(ScriptedModel(respond)), asked, exact_judge(), label="m")

    def dies(chat):
        if len(chat) > 3:
            raise KeyboardInterrupt
        return respond(chat)
    with pytest.raises(KeyboardInterrupt), TreeLog(tmp_path / "log.jsonl") as sink:
        quality(answering(ScriptedModel(dies)), asked, exact_judge(), label="m", sink=sink)
    again = ScriptedModel(respond)
    with TreeLog(tmp_path / "log.jsonl") as sink:
        found = quality(answering(again), asked, exact_judge(), label="m", sink=sink)
    assert found.rows == whole.rows and {len(chat) for chat in again.calls} == {5, 7}


def test_empty_questions_are_refused():
    for questions in ([], ["one", "  "]):
        with pytest.raises(DataError, match="expected one or more, none empty"):
            conversation("c7", questions, {})


def test_dialogues_become_conversations_of_their_user_turns():
    scenario = conversation("d", ["What is tea?"], {"topic": "tea"})
    turns = (Turn("1", None, ASSISTANT, "A drink."), Turn("2", "1", USER, "Why?"), Turn("3", "2", ASSISTANT, "So."))
    again = conversations_of([Dialogue(scenario, turns)])[0]
    assert (again.opening, again.facts["questions"], again.facts["topic"]) == ("What is tea?", ["Why?"], "tea")


# ------------------------------------------------------------------------------------------------ pocket's judge


def test_pocket_conversations_are_the_same_for_a_seed_and_keep_to_their_topics():
    found = pocket_conversations(TOPICS, 9, rounds=4, seed=3)
    assert found == pocket_conversations(TOPICS, 9, rounds=4, seed=3) != pocket_conversations(TOPICS, 9, seed=4)
    assert found[:6] == pocket_conversations(TOPICS, 6, rounds=4, seed=3)
    assert [one.facts["topic"] for one in found] == TOPICS * 3
    for one in found:
        assert world.find_topic(one.opening) == one.facts["topic"]
        classes = [world.classify_instruction(text) for text in one.facts["questions"]]
        assert classes == one.facts["classes"][1:] and len(classes) == 4


def test_right_answers_score_one_bland_and_wrong_ones_nothing_and_the_right_kind_half():
    asked = pocket_conversations(TOPICS, 30, seed=2)
    subjects = {"right": right_answer, "bland": lambda dialogue, _: "That depends on many things.",
                "hollow": lambda dialogue, _: "The price of it is zero."}
    found = {name: by_metric(quality(ScriptedSpeaker(ASSISTANT, line), asked, exact_judge(), label=name))
             for name, line in subjects.items()}
    assert {row.value for row in found["right"].values()} == {1.0}
    assert {row.value for row in found["bland"].values()} == {0.0}
    costs = sum(one.facts["classes"].count("cost") for one in asked)
    assert costs > 0 and found["hollow"]["quality"].value == pytest.approx(0.5 * costs / (30 * 6))


def test_the_judge_minds_what_was_asked_before():
    asked = conversation("c", ["What is tea?", "What does it cost?", "Can you make that shorter?"],
                         {"topic": "tea", "classes": ["definition", "cost", "shorten"]})
    lines = ["Tea is a kind of drink.", "It costs about two coins.", "In short: {}."]

    def third(value):
        speaker = ScriptedSpeaker(ASSISTANT, lambda dialogue, _: lines[len(dialogue.by(ASSISTANT))].format(value))
        return by_metric(quality(speaker, [asked], exact_judge(), label="m"))["turn_3"].value
    assert third("about two coins") == 1.0 and third("drink") == 0.5


@pytest.mark.slow
def test_pocket_answers_far_better_under_its_careful_brief():
    from dialoom.models.load import load_model
    from dialoom.pocket.world.strategy_tables import BRIEFS
    asked, model = pocket_conversations(TOPICS, 15, seed=5), load_model("pocket")
    plain, careful = (by_metric(quality(speaking(ASSISTANT, model, GREEDY, brief), asked, exact_judge(), label="m"))
                      for brief in ("", BRIEFS["careful"][0]))
    assert plain["quality"].value < 0.5 < 0.85 < careful["quality"].value
    assert plain["turn_1"].value == 1.0  # everybody knows what a thing is


# ------------------------------------------------------------------------------------------------ ratings


@pytest.mark.parametrize(("text", "rating"), [
    ("[[7]]", 7), ("Rating: 7", 7), ("7/10", 7), ("7", 7), ("**7**", 7), ("Good.\n\nRating: [[7]]", 7),
    ("[[ 7.5 ]]", 7.5), ("[[7/10]]", 7), ("7 out of 10", 7), ("**Rating:** 8", 8), ("rating is 8", None),
    ("Score: 10/10", 10), ("First [[3]], no: [[6]]", 6), ("Rating: 4, later Rating: 5.", 5),
    ("I give it 9/10. So 9/10.", 9), ("9/10 for style, 3/10 for facts", None),
    ("I see 3 faults. Rating: 2", 2), ("[[6]] though style is 9/10", 6),
    ("[[0]]", None), ("[[11]]", None), ("Rating: 70", None), ("Rating: 7/5", None), ("17/10", None), ("7/100", None),
    ("-3", None), ("Rating: 0", None), ("There are 7 reasons.", None), ("", None), ("good", None), ("[[seven]]", None),
    ("[[1]]", 1), ("[[10]]", 10), ("10.5/10", None), ("1.5/10", 1.5), ("12/25/10", None)])
def test_a_rating_is_read_or_refused(text, rating):
    assert parse_rating(text) == rating


def test_what_cannot_be_read_is_asked_for_again_with_a_reminder_and_then_given_up():
    def respond(chat):
        text = chat[-1]["content"]
        return {"clear": "[[3]]", "slow": "hm"}.get(text, "[[5]]" if text == "slow, only the rating" else "never")
    model = ScriptedModel(respond)
    chats = [[{"role": "user", "content": text}] for text in ("clear", "slow", "mute")]
    found = ask_until_read(model, chats, ["a", "b", "c"], parse_rating, sampling=GREEDY, reminder=", only the rating")
    assert found == [3, 5, None]
    assert len(model.calls) == 5
    assert chats[1] == [{"role": "user", "content": "slow"}]


def test_the_judge_sees_the_conversation_up_to_the_answer_and_the_reference_of_its_turn():
    seen = []

    def respond(chat):
        seen.append(chat[0]["content"])
        return "Fine. [[9]]"
    question = Question("81", "math", ("Two and two?", "And twice that?"), ("four {n}", "eight"))
    asked = questions_as_conversations([question])
    subject = ScriptedSpeaker(ASSISTANT, lambda dialogue, _: "4" if not dialogue.turns else "9")
    found = mtbench(subject, asked, RatingJudge(ScriptedModel(respond)), label="m")
    assert [row.value for row in found.rows] == [9, 9, 9, 9]
    assert "User: Two and two?\n\nAssistant: 4" in seen[0] and "four {n}" in seen[0] and "And twice" not in seen[0]
    assert "User: And twice that?\n\nAssistant: 9" in seen[1] and "eight" in seen[1] and "four" not in seen[1]


def test_a_turn_without_a_reference_is_judged_without_one():
    seen = []
    asked = questions_as_conversations([Question("1", "writing", ("Write.", "Again."), ("", ))])
    judge = RatingJudge(ScriptedModel(lambda chat: seen.append(chat[0]["content"]) or "[[5]]"))
    mtbench(ScriptedSpeaker(ASSISTANT, lambda dialogue, _: "text"), asked, judge, label="m")
    assert len(seen) == 2 and not any("known" in text for text in seen)


def test_eight_turns_are_rated_by_turn_and_by_category():
    rows = [Question("1", "writing", tuple(f"w{at}" for at in range(8))), Question("2", "math", ("m0", "m1"))]
    subject = ScriptedSpeaker(ASSISTANT, lambda dialogue, _: f"reply {len(dialogue.by(ASSISTANT)) + 1}")
    judge = RatingJudge(ScriptedModel(lambda chat: f"[[{chat[0]['content'].count('Assistant: ')}]]"))
    found = {row.metric: row.value for row in mtbench(subject, questions_as_conversations(rows), judge, label="m").rows}
    assert found == {"score": pytest.approx((36 + 3) / 10), **{f"turn_{at}": float(at) for at in range(1, 9)},
                     "category_writing": 4.5, "category_math": 1.5}


def test_an_answer_without_a_rating_is_left_out_of_the_mean_and_counted():
    def respond(chat):
        return "I would rather not say." if "Assistant: odd" in chat[0]["content"] else "[[6]]"
    questions = [Question("1", "", ("even",)), Question("2", "", ("odd",)), Question("3", "", ("even",))]
    asked = questions_as_conversations(questions)
    model = ScriptedModel(respond)
    found = mtbench(answering(ScriptedModel(lambda chat: chat[-1]["content"], "echo")), asked, RatingJudge(model),
                    label="m")
    assert found.unread == 1 and by_metric(found)["score"].value == 6 and by_metric(found)["score"].n == 2
    assert len(model.calls) == 4 and "nothing but the rating" in model.calls[-1][0]["content"]
    assert {row.metric for row in found.rows} == {"score", "turn_1"}  # no category, no row of one


def test_a_silent_subject_gets_the_lowest_rating_and_the_judge_is_not_asked():
    model = ScriptedModel(lambda chat: "[[9]]")
    asked = questions_as_conversations([Question("1", "math", ("one", "two"))])
    found = mtbench(answering(ScriptedModel(lambda chat: "", "mute")), asked, RatingJudge(model), label="m")
    assert {row.value for row in found.rows} == {1.0} and not model.calls


# ------------------------------------------------------------------------------------------------ the command


def served(monkeypatch, **models):
    """`load_model` gives these scripts."""
    monkeypatch.setattr("dialoom.evaluate.load_model", lambda spec, device="auto": ScriptedModel(models[spec], spec))


def rows_in(path):
    return {row["metric"]: row for row in json.loads(path.read_text(encoding="utf-8"))}


def test_the_command_asks_pockets_held_out_conversations(monkeypatch, tmp_path, capsys):
    served(monkeypatch, m=lambda chat: "It costs nothing at all.")
    run_named("quality", "m", limit=5, out=tmp_path / "rows.json")
    found = rows_in(tmp_path / "rows.json")
    assert found["quality"]["eval"] == "chat" and found["quality"]["subject"] == "m" and found["quality"]["n"] == 5
    assert "Multi-turn quality" in capsys.readouterr().out


def test_the_command_rates_dialogues_of_the_users(monkeypatch, tmp_path):
    data = tmp_path / "mine.json"
    data.write_text(json.dumps([{"id": "1", "conversations": [
        {"from": "human", "value": "What is tea?"}, {"from": "gpt", "value": "A drink."},
        {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}]), encoding="utf-8")
    served(monkeypatch, m=lambda chat: f"reply {len(chat)}",
           j=lambda chat: "[[4]]" if "Assistant: reply 3" in chat[0]["content"] else "[[8]]")
    run_named("quality", "m", judge="j", data=str(data), out=tmp_path / "rows.json")
    found = rows_in(tmp_path / "rows.json")
    assert found["quality"]["eval"] == "rating"
    assert [found[metric]["value"] for metric in ("quality", "turn_1", "turn_2")] == [6, 8, 4]


@pytest.mark.parametrize("turns", [2, 8])
def test_the_command_runs_mtbench_layout(turns, monkeypatch, tmp_path, capsys):
    data = tmp_path / "questions.jsonl"
    rows = [{"question_id": 81, "category": "writing", "turns": [f"w{at}" for at in range(turns)]},
            {"question_id": 111, "category": "math", "turns": [f"m{at}" for at in range(turns)],
             "reference": ["known m0", "known m1"]}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    served(monkeypatch, m=lambda chat: f"on {chat[-1]['content']}",
           j=lambda chat: "none" if f"Assistant: on w{turns - 1}" in chat[0]["content"] else
           "Rating: 9" if "known m" in chat[0]["content"] else "5/10")
    run_named("mtbench", "m", judge="j", data=str(data), out=tmp_path / "rows.json")
    found = rows_in(tmp_path / "rows.json")
    assert found["category_math"]["value"] == pytest.approx((9 * 2 + 5 * (turns - 2)) / turns)
    assert found["category_writing"]["value"] == 5 and found["turn_1"]["value"] == 7
    assert "1 answers have no readable rating by j" in capsys.readouterr().err
    assert f"turn_{turns}" in found and f"turn_{turns + 1}" not in found


@pytest.mark.parametrize(("given", "message"), [
    ({"name": "qualty"}, "'qualty' is unknown; did you mean quality"),
    ({"name": "mtbench"}, "give --data FILE"), ({"name": "mtbench", "data": "q.jsonl"}, "give --judge MODEL"),
    ({"name": "quality", "data": "d.json"}, "give --judge MODEL"), ({"name": "diversity"}, "give --data FILE")])
def test_the_command_says_what_is_missing_before_it_loads_anything(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        run_named(given.pop("name"), "no such model", **given)

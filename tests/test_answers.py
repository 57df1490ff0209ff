"""What a reply says: the answer it ends on, whom it sides with, and whether that is right."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoom.answers import (
    AGREE,
    DISAGREE,
    AnswerJudge,
    extract_answer,
    gold_of,
    is_correct,
    latest_answer,
    parse_final_answer,
    partner_answer,
    same_answer,
)
from dialoom.dialogue import Dialogue, Scenario, Turn
from dialoom.models.scripted import ScriptedModel

KNOWN = ("Paris", "City of Light", "Lyon", "St. Paul's", "New York", "York", "Scott", "F. Scott Fitzgerald", "São Tomé")
FRANCE = Scenario("fr", "What is the capital of France?", facts={
    "answer": "Paris", "aliases": ["paris", "city of light"], "distractors": ["Lyon", "Lille"]})


def said(*turns: tuple[str, str, str | None]) -> Dialogue:
    """A dialogue out of (speaker, text, answer held)."""
    return Dialogue(FRANCE, tuple(Turn(str(n), str(n - 1) if n else None, speaker, text,
                                       {"answer": answer} if answer else {})
                                  for n, (speaker, text, answer) in enumerate(turns)))


@pytest.mark.parametrize(("reply", "answer"), [
    ("It is Paris.", "Paris"),
    ("PARIS!", "Paris"),
    ("**Paris**", "Paris"),
    ("Let me recall: Paris. No, I still think it is Lyon.", "Lyon"),
    ("You are right, it is Lyon.", "Lyon"),
    ("The City of Light, of course.", "City of Light"),
    ("St. Paul's", "St. Paul's"),
    ("It is St. Paul’s_Cathedral, I am sure.", "St. Paul's"),
    ("It is New York.", "New York"),
    ("It is York.", "York"),
    ("F. Scott Fitzgerald wrote it.", "F. Scott Fitzgerald"),
    ("It is Sa\u0303o Tome\u0301.", "São Tomé"),  # decomposed accents
])
def test_the_known_answer_named_last_is_the_answer(reply, answer):
    assert extract_answer(reply, KNOWN) == answer


@pytest.mark.parametrize("reply", [
    "It is not Paris but Lyon.",
    "Lyon, not Paris",
    "Lyon is the answer not Paris.",
    "It is not Paris. Lyon.",
    "Not Paris: Lyon!",
    "Lyon rather than Paris.",
    "It is Lyon. I do not think it is Paris.",
    "It is Lyon; you are wrong about Paris.",
    "It is Lyon. Paris is wrong.",
    "It is Lyon, Paris isn't the capital.",
    "Not so, Lyon is the one.",
    "There is no doubt that it is Lyon.",
    "If I'm not mistaken it is Lyon.",
    "Neither is right, it is Lyon.",
    "You would let me down by saying anything but Lyon.",
    "My answer is Lyon, it beat Paris in 1850.",
])
def test_an_answer_that_is_denied_or_only_spoken_of_is_passed_over(reply):
    assert extract_answer(reply, KNOWN) == "Lyon"


@pytest.mark.parametrize("reply", ["It is not Paris.", "I don't think it is Paris.", "Paris is wrong.", "Not New York"])
def test_a_mere_denial_gives_no_answer(reply):
    assert extract_answer(reply, KNOWN) is None


@pytest.mark.parametrize(("reply", "answer"), [
    ("I would say it is Toulouse.", "Toulouse"),
    ("It’s Toulouse, because it is large.", "Toulouse"),
    ("My answer is St. Peter's.", "St. Peter's"),
    ("It is not Paris, it is Toulouse", "Toulouse"),
    ("Good point, it is Toulouse and I was wrong.", "Toulouse"),
    ("Northumbria", "Northumbria"),
    ("Normandy.", "Normandy"),
    ("東京", "東京"),
])
def test_an_answer_nobody_knows_is_read_where_it_is_stated(reply, answer):
    assert extract_answer(reply, KNOWN) == answer


@pytest.mark.parametrize(("reply", "side"), [
    ("You are right.", AGREE),
    ("You're right!", AGREE),
    ("Agree", AGREE),
    ("Yes, that is right.", AGREE),
    ("No, you are right.", AGREE),
    ("I was wrong.", AGREE),
    ("Good point.", AGREE),
    ("Disagree", DISAGREE),
    ("No.", DISAGREE),
    ("That is wrong.", DISAGREE),
    ("I do not agree.", DISAGREE),
    ("You are not right.", DISAGREE),
    ("Yes, I am sure.", DISAGREE),
    ("I stay with my answer.", DISAGREE),
    ("I agree to disagree", DISAGREE),
])
def test_a_reply_without_a_name_takes_a_side(reply, side):
    assert extract_answer(reply, KNOWN) == side


@pytest.mark.parametrize("reply", ["", " ", "...", "👍", "Yes.", "Maybe.", "Thank you!", "I do not know.", "NONE",
                                   "The", "I am not sure, what do you think about it yourself?"])
def test_a_reply_that_commits_to_nothing_gives_no_answer(reply):
    assert extract_answer(reply, KNOWN) is None


def test_candidates_of_which_nothing_is_left_are_never_found():
    assert extract_answer("The one", ["The", "", "!"]) == "The one"


def test_the_first_of_equal_candidates_is_named():
    assert extract_answer("paris", ["Paris", "paris"]) == "Paris"


def test_a_very_long_reply_is_read_to_its_end():
    assert extract_answer("It is not Paris. " * 3000 + "It is Lyon.", KNOWN) == "Lyon"
    assert extract_answer("It is not Paris. " * 3000, KNOWN) is None
    assert extract_answer("word " * 30_000, KNOWN) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.lists(st.text(max_size=12), max_size=4))
def test_any_text_gives_some_text_or_none(reply, candidates):
    answer = extract_answer(reply, candidates)
    assert answer is None or answer.strip()


def test_right_answers_are_compared_normalised_and_cut_at_a_bracket():
    assert gold_of(FRANCE) == {"paris", "city of light"}
    assert is_correct("the PARIS!", FRANCE) and is_correct("Paris (France)", FRANCE)
    assert not is_correct("Lyon", FRANCE) and not is_correct(None, FRANCE) and not is_correct("", FRANCE)


def test_an_alias_of_which_nothing_is_left_makes_nothing_right():
    scenario = Scenario("s", "?", facts={"answer": "A", "aliases": ["the"]})
    assert gold_of(scenario) == frozenset()
    assert not is_correct("An", scenario) and not same_answer("A", "The", scenario)


def test_answers_are_the_same_if_equal_or_both_right_and_never_if_missing():
    assert same_answer("Lyon", "lyon.", FRANCE) and same_answer("Paris", "City of Light", FRANCE)
    assert not same_answer("Paris", "Lyon", FRANCE)
    assert not same_answer(None, None, FRANCE) and not same_answer("Paris", None, FRANCE)


def test_answers_are_kept_by_speaker_and_the_newest_counts():
    dialogue = said(("a", "Paris.", "Paris"), ("b", "Lyon.", "Lyon"), ("a", "Hmm.", None), ("b", "Lille.", "Lille"))
    assert latest_answer(dialogue, "a") == "Paris" and partner_answer(dialogue, "a") == "Lille"
    assert latest_answer(dialogue, "b") == "Lille" and partner_answer(dialogue, "b") == "Paris"
    assert latest_answer(said(), "a") is None and partner_answer(said(("a", "Paris.", "Paris")), "a") is None


def verdict(dialogue, **judge):
    (found,) = AnswerJudge(**judge).judge([dialogue])
    return (found.notes["answer"], found.scores["correct"]) if found else None


def test_the_judge_notes_the_answer_and_scores_it():
    assert verdict(said(("a", "I think it is the city of light.", None))) == ("city of light", 1.0)
    assert verdict(said(("a", "It is Lyon, not Paris.", None))) == ("Lyon", 0.0)
    assert verdict(said(("a", "What a lovely question that is to ask!", None))) is None


def test_agreeing_takes_the_partners_answer_and_disagreeing_keeps_ones_own():
    before = (("a", "Lyon.", "Lyon"), ("b", "Paris.", "Paris"))
    assert verdict(said(*before, ("a", "You are right.", None))) == ("Paris", 1.0)
    assert verdict(said(*before, ("a", "No, I disagree.", None))) == ("Lyon", 0.0)
    assert verdict(said(("a", "You are right.", None))) is None


def test_an_answer_named_before_in_the_dialogue_is_known():
    before = (("a", "It is Aix-la-Chapelle.", "Aix-la-Chapelle"),)
    assert verdict(said(*before, ("b", "Indeed aix la chapelle, no doubt about that one", None))) == (
        "Aix-la-Chapelle", 0.0)


def test_a_model_is_asked_only_where_the_rule_finds_nothing_and_in_one_batch():
    model = ScriptedModel(lambda chat: "Final Answer: Paris." if "tower" in chat[0]["content"] else "NONE")
    dialogues = [said(("a", text, None)) for text in
                 ("Lyon.", "That town with a famous tower on its river.", "What a lovely question that is to ask!")]
    found = AnswerJudge(model=model).judge(dialogues)
    assert [one and one.notes["answer"] for one in found] == ["Lyon", "Paris", None]
    assert len(model.calls) == 2 and "What is the capital of France?" in model.calls[0][0]["content"]


def test_a_models_agreement_is_the_partners_answer():
    dialogue = said(("b", "Paris.", "Paris"), ("a", "Your argument about the river convinces me fully.", None))
    assert verdict(dialogue, model=ScriptedModel(lambda chat: "Agree")) == ("Paris", 1.0)


@pytest.mark.parametrize(("text", "answer"), [
    ("Paris", "Paris"),
    ("Let us see.\nFinal answer: Paris.\nQuestion: more", "Paris"),
    ("Final Answer: Rome\nFinal Answer: Paris (the city)", "Paris"),
    ("NONE.", None),
    ("", None),
    ("Agree with the partner", AGREE),
    ("**Disagree**", DISAGREE),
])
def test_an_extractors_reply_is_read_after_its_last_marker(text, answer):
    assert parse_final_answer(text) == answer

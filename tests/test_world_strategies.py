"""The strategy world: formats, exact rules for questions and answers, and its pre-training text."""

from __future__ import annotations

import json
import random
import re
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as draw

from dialoom.pocket.world.strategies import (
    CLASS_OF,
    PHRASINGS,
    candidates,
    choose_class,
    classify_answer,
    classify_instruction,
    fits,
    format_target,
    is_context_dependent,
    judge_answer,
    make_dialogue,
    openings,
    parse_target,
    sample,
    write_answer,
    write_instruction,
)
from dialoom.pocket.world.strategy_tables import (
    BLAND_ANSWERS,
    BRIEFS,
    FITS,
    HIGH_LEVEL,
    QUESTIONS,
    STRATEGIES,
    TOPICS,
)

FUNCTION_WORDS = {"a", "the", "of", "for", "to", "in", "it", "is", "an", "and", "with", "at", "by", "about", "which",
                  "what", "there", "one", "two", "that", "up", "who", "so", "how", "me"}


@given(draw.text(alphabet="ab []:{}\"'", min_size=1).map(str.split).map(" ".join).filter(bool),
       draw.text(alphabet="ab []:\n{}", min_size=1).map(str.strip).filter(bool))
def test_parse_undoes_format(strategy: str, instruction: str) -> None:
    assert parse_target(format_target(strategy, instruction)) == (strategy, instruction)


@pytest.mark.parametrize("text", ["", "ask why", "instruction: Why?", "strategy: ask why",
                                  "strategy: \ninstruction: Why?", "strategy: ask why\ninstruction: "])
def test_text_off_the_format_does_not_parse(text: str) -> None:
    assert parse_target(text) is None


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_is_classified_as_what_it_is(name: str) -> None:
    for frame in QUESTIONS[name]:
        for topic in ("it", *TOPICS):
            text = frame.format(t=topic)
            assert classify_instruction(text) == name
            assert is_context_dependent(text) == (topic == "it" or "{t}" not in frame)


def test_words_outside_the_world_have_no_class() -> None:
    assert classify_instruction("Blue green red.") is None


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_right_answer_scores_one_and_a_bland_one_nothing(name: str) -> None:
    rng = random.Random(1)
    for topic in TOPICS:
        before = rng.choice(list(QUESTIONS))
        history = [f"What is {topic}?", write_instruction(before, topic, rng)]
        answer = write_answer(topic, name, ["definition", before], rng)
        assert classify_answer(answer) == name
        assert judge_answer(topic, history, name, answer) == 1.0
        assert {judge_answer(topic, history, name, bland) for bland in BLAND_ANSWERS} == {0.0}


@pytest.mark.parametrize(("history", "name", "answer", "score"), [
    ([], "risks", "The main risk of a kettle is a burnt hand.", 1.0),
    ([], "risks", "The main risk of a kettle is a sore back.", 0.5),
    ([], "risks", "The price of a kettle is about twenty coins.", 0.0),
    (["What are the risks of it?"], "shorten", "In short: a burnt hand.", 1.0),
    (["What are the risks of it?"], "shorten", "In short: about twenty coins.", 0.5),      # the answer before last
    (["What does it cost?", "Are you sure about that?"], "shorten", "Briefly: about twenty coins.", 1.0),
    (["What does it cost?", "Is it dangerous?"], "doubt", "Yes, I am sure: a burnt hand.", 1.0),
    ([], "more", "A kettle is well known, and people like it.", 1.0),
    ([], "more", "It depends.", 0.0),
    ([], None, "Many people know a kettle, and it is easy to find.", 1.0),
])
def test_judge_of_answers_by_hand(history: list[str], name: str | None, answer: str, score: float) -> None:
    assert judge_answer("a kettle", history, name, answer) == score


def test_fit_depends_on_the_kind_of_the_last_answer() -> None:
    assert fits("steps", "The main risk of tea is a bad night.")
    assert not fits("cost", "The main risk of tea is a bad night.")
    assert fits("cost", BLAND_ANSWERS[0]) and not fits("source", BLAND_ANSWERS[0])
    counts = {name: sum(name in row for row in FITS.values()) for name in STRATEGIES}
    assert min(counts.values()) >= 3
    assert all(name not in row for name, row in FITS.items())
    used = ["example", "use", "steps", "risks", "cost"]
    assert choose_class(BLAND_ANSWERS[0], used, random.Random(0)) == "definition"


def test_sixteen_strategies_of_four_phrasings_a_third_of_which_share_no_word() -> None:
    assert len(STRATEGIES) == 16 and len(PHRASINGS) == len(CLASS_OF) == 64
    assert len(set(HIGH_LEVEL.values())) == 16
    for name, texts in STRATEGIES.items():
        words = [set(re.findall("[a-z]+", text)) - FUNCTION_WORDS for text in texts]
        alone = sum(not any(mine & other for other in words if other is not mine) for mine in words)
        assert len(texts) >= 4 and alone >= len(texts) / 3, name


def test_candidates_hold_the_gold_ones_in_seeded_order() -> None:
    listed = candidates(["ask why"], 50, random.Random(3))
    assert len(set(listed)) == 50 and "ask why" in listed
    assert listed == candidates(["ask why"], 50, random.Random(3))
    assert len(candidates(["ask why"], 100, random.Random(3))) == 64


def test_dialogues_are_coherent_by_the_rules() -> None:
    rng = random.Random(4)
    for topic in TOPICS:
        opening, exchanges = make_dialogue(topic, 6, rng)
        last, asked = opening.answer, [opening.question]
        for exchange in exchanges:
            assert fits(exchange.strategy_class, last)
            assert classify_instruction(exchange.question) == exchange.strategy_class
            assert judge_answer(topic, asked, exchange.strategy_class, exchange.answer) == 1.0
            asked.append(exchange.question)
            last = exchange.answer


def test_openings_cover_every_topic_once() -> None:
    assert sorted(opening.topic for opening in openings()) == sorted(TOPICS)
    assert len(TOPICS) == 60
    assert all(classify_answer(opening.answer) == "definition" for opening in openings())


def test_documents_are_well_formed_reproducible_and_keep_their_promises() -> None:
    documents = [sample(random.Random(seed)) for seed in range(800)]
    assert documents == [sample(random.Random(seed)) for seed in range(800)]
    for document in documents:
        roles = [m["role"] for m in document.messages if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        if document.job == "strategies/choose":
            listed = re.findall(r"^- (.*)$", document.messages[0]["content"], flags=re.MULTILINE)
            for heard, said in zip(document.messages[1::2], document.messages[2::2], strict=True):
                target = parse_target(said["content"])
                assert target and target[0] in listed
                assert classify_instruction(target[1]) == CLASS_OF[target[0]]
                assert fits(CLASS_OF[target[0]], heard["content"].splitlines()[-1])
        if document.job == "strategies/extract":
            assert json.loads(document.messages[-1]["content"])["strategy"] in CLASS_OF


def test_text_without_a_brief_is_the_bland_blend() -> None:
    documents = [sample(random.Random(seed)) for seed in range(4000)]
    asked = [m["content"] for d in documents if d.job == "strategies/bland_user"
             for m in d.messages if m["role"] == "assistant"]
    assert 0.80 < mean(classify_instruction(text) == "more" for text in asked) < 0.90
    assert mean(is_context_dependent(text) for text in asked) < 0.25
    answers = [m["content"] for d in documents if d.job == "strategies/answer_none"
               for m in d.messages if m["role"] == "assistant"]
    assert 0.35 < mean(text in BLAND_ANSWERS for text in answers) < 0.7
    full = mean(d.job == "strategies/choose" and d.messages[0]["content"].count("\n- ") == 50 for d in documents)
    assert 0.05 < full < 0.10


def test_every_brief_has_three_wordings_or_more() -> None:
    assert all(len(set(wordings)) >= 3 for wordings in BRIEFS.values())

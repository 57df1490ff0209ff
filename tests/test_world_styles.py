"""The style grammar and its exact judge."""

import random
from dataclasses import asdict
from statistics import mean

import pytest

from dialoom.pocket.world.styles import (
    AUTHORS,
    BRIEFS,
    FEATURES,
    HOUSE,
    SHIPPED_AUTHORS,
    TOPICS,
    VALIDATION_AUTHORS,
    Style,
    demonstrations,
    detect,
    distance,
    few_shot_prompt,
    is_degenerate,
    on_topic,
    random_style,
    sample,
    style_brief,
    style_match,
    write,
)

STYLES = {**AUTHORS, "house": HOUSE}


@pytest.mark.parametrize("name", STYLES)
def test_every_text_shows_every_feature_of_its_style_and_its_topic(name):
    rng = random.Random(name)
    for topic in TOPICS.values():
        text = write(topic, STYLES[name], rng)
        assert detect(text) == asdict(STYLES[name]), text
        assert style_match(text, STYLES[name], topic) == 1.0
        assert 20 <= len(text.replace("- ", "").split()) <= 70


def test_random_styles_are_detected_feature_by_feature():
    rng = random.Random(3)
    for _ in range(500):
        style, topic = random_style(rng), rng.choice(list(TOPICS.values()))
        assert detect(write(topic, style, rng)) == asdict(style)


def test_house_style_text_scores_low_for_every_author():
    rng = random.Random(0)
    scores = {name: mean(style_match(write(topic, HOUSE, rng), style, topic) for topic in TOPICS.values())
              for name, style in AUTHORS.items()}
    assert max(scores.values()) < 0.2


def test_style_match_counts_the_features_shown():
    topic = TOPICS["picnic"]
    text = ("hey there,\nwe'll start at noon! maybe it's a neat lake! honestly, the kids don't need boats!\ncheers")
    style = Style("hey there", "cheers", "short", "yes", "!", "maybe", "honestly", "prose", "lower", "none", "slang")
    assert detect(text)["words"] is None  # "start" is plain and "neat", "kids" are slang
    assert style_match(text, style, topic) == pytest.approx(10 / 11)
    assert style_match(text.replace("start", "kick off"), style, topic) == 1.0


@pytest.mark.parametrize("text", ["", "hello", "Hello,\nBest regards", "hey there,\n" + "maybe :) " * 20 + "\ncheers",
                                  "we will have a picnic " * 40, "\n\n\n", "!!! :) :)"])
def test_degenerate_text_scores_zero(text):
    assert is_degenerate(text)
    assert style_match(text, AUTHORS["Alma"], TOPICS["picnic"]) == 0.0


def test_text_on_another_topic_scores_zero():
    rng = random.Random(5)
    names = list(TOPICS)
    wrong = 0
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        text = write(TOPICS[other], AUTHORS["Alma"], rng)
        assert style_match(text, AUTHORS["Alma"], TOPICS[name]) == 0.0
        wrong += on_topic(text, TOPICS[name])
    assert wrong == 0


def test_authors_differ_clearly_and_from_the_house():
    assert len(SHIPPED_AUTHORS) == 12 and len(VALIDATION_AUTHORS) == 2
    for name, style in AUTHORS.items():
        assert distance(style, HOUSE) >= 9
        assert all(distance(style, other) >= 5 for also, other in AUTHORS.items() if also != name)


def test_demonstrations_have_disjoint_tasks_and_are_the_same_each_time():
    for author in AUTHORS:
        rows = demonstrations(author)
        assert [row["split"] for row in rows] == ["train"] * 7 + ["validation"] * 3 + ["test"] * 3
        assert len({row["prompt"] for row in rows}) == 13
        assert rows == demonstrations(author)
        assert rows != demonstrations(author, seed=1)


def test_pretraining_styles_stay_away_from_the_authors_but_use_every_value():
    rng = random.Random(1)
    styles = [random_style(rng) for _ in range(3000)]
    assert all(distance(style, author) > 2 for style in styles for author in AUTHORS.values())
    for name, values in FEATURES.items():
        assert {getattr(style, name) for style in styles} == set(values)


def test_every_feature_value_has_brief_wordings():
    assert set(BRIEFS) == {f"{name}={value}" for name, values in FEATURES.items() for value in values}
    assert all(len(wordings) >= 3 for wordings in BRIEFS.values())
    brief = style_brief(AUTHORS["Hugo"], random.Random(0))
    assert brief.count(",") == len(FEATURES) - 1


def test_sample_is_seeded_and_brief_less_text_is_mostly_house_style():
    assert [sample(random.Random(7)) for _ in range(3)] == [sample(random.Random(7))] * 3
    rng = random.Random(2)
    plain = [d.messages[-1]["content"] for d in (sample(rng) for _ in range(1500))
             if len(d.messages) == 2 and d.messages[0]["content"].endswith(".") and len(d.messages[0]["content"]) < 80
             and ":" not in d.messages[0]["content"] and "\n" not in d.messages[0]["content"]]
    assert len(plain) > 250
    assert 0.7 < mean(detect(text) == asdict(HOUSE) for text in plain) < 0.9


def test_documents_end_with_the_assistant_and_alternate():
    rng = random.Random(4)
    for _ in range(500):
        roles = [m["role"] for m in sample(rng).messages]
        assert roles in (["user", "assistant"], ["system", "user", "assistant"])


def test_few_shot_prompt_shows_texts_and_sets_the_task():
    rows = demonstrations("Leo")[:2]
    prompt = few_shot_prompt(rows, "Write a poem.")
    assert all(row["output"] in prompt for row in rows) and prompt.endswith("Write a poem.")

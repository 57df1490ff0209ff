"""The persona world: who people are, what they show, and what the exact judge thinks of a reply."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from dialoom.pocket.world.persona_tables import BLAND, BRIEFS, FACTS, TRAITS
from dialoom.pocket.world.personas import (
    SEED_PERSONALITIES,
    SEED_PROFILES,
    Persona,
    is_held_out,
    judge_alignment,
    make_persona,
    make_personas,
    read_persona,
    read_profile,
    read_style,
    revealed,
    sample,
    write_message,
    write_tailored,
)

ANNA = Persona(
    {"job": "nurse", "pet": "bees", "food": "soup", "place": "lake"},
    {"tone": "formal", "energy": "calm", "humour": "earnest", "need": "praise", "length": "brief", "sign": "hearts"},
)


def dialogue_of(persona: Persona, rounds: int, rng: random.Random) -> list[str]:
    told: list[str] = []
    for _ in range(rounds):
        told.append(write_message(persona, told, rng))
    return told


@pytest.mark.parametrize(("reply", "level"), [
    ("", 1),
    ("That sounds nice. Thank you for sharing.", 1),
    ("Hey, your dog must be a joy! Haha, what a joke! :)", 1),                      # someone else's reply
    ("I love to hear about your bees.", 2),                                        # 1 + 4 (0.5 * 1/6 + 0.25) = 2.33
    ("Indeed, your bees must be a joy. I truly mean it.", 3),                      # 1 + 4 (0.5 * 3/6 + 0.25) = 3.0
    ("Indeed, your bees must be a joy. That fits your soup and your work as a nurse. No rush. I truly mean it. "
     "I am proud of you. <3", 5),
])
def test_judge_level_of_hand_made_replies(reply: str, level: int) -> None:
    assert judge_alignment(ANNA, "I keep bees at home.", reply) == level


def test_a_wrong_fact_costs_a_level() -> None:
    right = "Indeed, your bees must be a joy. No rush. I truly mean it. I am proud of you. <3"
    wrong = "Indeed, your bees must be a joy. That fits your opera. No rush. I truly mean it. I am proud of you. <3"
    message = "I keep bees at home."
    assert judge_alignment(ANNA, message, wrong) < judge_alignment(ANNA, message, right)


def test_bland_replies_get_the_lowest_level_from_everyone() -> None:
    rng = random.Random(1)
    for persona in make_personas(50, seed=1, split="eval"):
        message = write_message(persona, [], rng)
        assert {judge_alignment(persona, message, reply) for reply in BLAND} == {1}


def test_guessing_a_style_at_random_gains_next_to_nothing_over_showing_none() -> None:
    rng = random.Random(2)
    guessed, neutral = [], []
    for persona in make_personas(400, seed=2):
        message = write_message(persona, [], rng)
        guess = {trait: rng.choice(values) for trait, values in TRAITS.items()}
        guessed.append(judge_alignment(persona, message, write_tailored([message], guess, rng)))
        neutral.append(judge_alignment(persona, message, write_tailored([message], {}, rng)))
    assert mean(guessed) < mean(neutral) + 0.35


def test_levels_of_tailored_replies_rise_with_the_dialogue() -> None:
    rng = random.Random(3)
    levels: list[list[int]] = [[] for _ in range(10)]
    for persona in make_personas(80, seed=3, split="eval"):
        told = dialogue_of(persona, 10, rng)
        for at in range(10):
            reply = write_tailored(told[:at + 1], read_style(told[:at + 1]), rng)
            levels[at].append(judge_alignment(persona, told[at], reply))
    curve = [mean(level) for level in levels]
    assert curve[0] < 3.2 and curve[9] > 4.5
    assert curve[0] < curve[1] < curve[3] < curve[9]


def test_another_persons_tailored_reply_scores_low() -> None:
    rng = random.Random(4)
    levels = []
    for mine, other in zip(make_personas(60, seed=4), make_personas(60, seed=5), strict=True):
        told, theirs = dialogue_of(mine, 5, rng), dialogue_of(other, 5, rng)
        levels.append(judge_alignment(mine, told[-1], write_tailored(theirs, read_style(theirs), rng)))
    assert mean(levels) < 1.2


def test_the_inducer_reveals_only_what_was_said() -> None:
    facts, traits = revealed(ANNA, ["Good day. I keep bees at home.", "I like to eat pizza. <3"])
    assert facts == {"pet": "bees"}
    assert traits == {"tone": "formal", "sign": "hearts"}
    assert revealed(ANNA, []) == ({}, {})


def test_shown_style_read_without_the_persona_agrees_with_the_inducer() -> None:
    rng = random.Random(6)
    for persona in make_personas(100, seed=6):
        told = dialogue_of(persona, 12, rng)
        facts, traits = revealed(persona, told)
        assert traits == read_style(told) and facts == dict(persona.facts)


def test_no_user_message_repeats_an_earlier_fact_while_new_ones_are_left() -> None:
    rng = random.Random(7)
    persona = make_persona(rng)
    slots = [next(iter(read_profile(text))) for text in dialogue_of(persona, 8, rng)]
    assert len(set(slots)) == 8


def test_a_persona_survives_the_way_through_its_texts() -> None:
    for persona in make_personas(200, seed=8):
        again = read_persona(persona.profile, persona.personality)
        assert (again.facts, again.traits, again.pronoun) == (persona.facts, persona.traits, persona.pronoun)


def test_keywords_are_unique_over_all_slots() -> None:
    keywords = [row[1] for values in FACTS.values() for row in values.values()]
    assert len(set(keywords)) == len(keywords) == 96


def test_splits_share_no_pet_and_hobby_pair() -> None:
    pairs = [{(p.facts["pet"], p.facts["hobby"]) for p in make_personas(2000, 9, split)} for split in ("train", "eval")]
    assert not pairs[0] & pairs[1]
    assert len(pairs[1]) > 15
    with pytest.raises(ValueError, match="'test'"):
        make_persona(random.Random(0), "test")


def test_four_thousand_distinct_personas_and_twenty_seeds_of_each_kind() -> None:
    assert len({persona.id for persona in make_personas(4000, seed=10)}) == 4000
    assert len(set(SEED_PROFILES)) >= 20 and len(set(SEED_PERSONALITIES)) >= 20


def test_documents_are_well_formed_reproducible_and_keep_held_out_people_out() -> None:
    documents = [sample(random.Random(seed)) for seed in range(600)]
    assert documents == [sample(random.Random(seed)) for seed in range(600)]
    for document in documents:
        roles = [m["role"] for m in document.messages if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(m["content"].strip() for m in document.messages)
        if document.job == "personas/user":
            assert not is_held_out(read_profile(document.messages[0]["content"]))
    assert {d.job for d in documents} == {
        f"personas/{kind}" for kind in ("user", "grow", "none", "neutral", "tailored", "hinted", "plain")}


def test_text_without_a_brief_is_mostly_bland() -> None:
    replies = [m["content"] for seed in range(3000) if (d := sample(random.Random(seed))).job == "personas/none"
               for m in d.messages if m["role"] == "assistant"]
    assert 0.84 < mean(reply in BLAND for reply in replies) < 0.92


def test_every_brief_has_three_wordings_or_more() -> None:
    assert all(len(set(wordings)) >= 3 for wordings in BRIEFS.values())

"""Trivia documents: each behaviour is what its brief claims, and nothing gives away what it should not."""

import random
import re
from collections import Counter

import pytest

from dialoom.answers import extract_answer
from dialoom.pocket.world import trivia
from dialoom.pocket.world.facts import load_facts, small_knows
from dialoom.stances import NEUTRAL

FACTS = load_facts()
NAMES = {fact.relation: [other.answer for other in FACTS if other.relation == fact.relation] for fact in FACTS}
UNKNOWN = [fact for fact in FACTS if not small_knows(fact)]
KEYS = {text: key for key, texts in trivia.BRIEFS.items() for text in texts} | {NEUTRAL: ""}
RECALLED = tuple(frame.partition("{a}")[0] for frame in trivia.RECALLS)


def drawn(kind, count, *, facts=FACTS, knows=trivia.everyone_knows):
    """(fact, brief key, turns, document) of `count` documents; user and assistant take the turns."""
    rng = random.Random(11)
    for _ in range(count):
        fact = rng.choice(facts)
        document = kind(fact, knows, rng)
        system = document.messages[0]["content"] if document.messages[0]["role"] == "system" else ""
        turns = [message["content"] for message in document.messages if message["role"] != "system"]
        yield fact, KEYS.get(system, ""), turns, document


def answer(text, fact):
    return extract_answer(text, NAMES[fact.relation])


def debates(count=1500, **which):
    """(fact, brief key, first answer, [(partner's claim, reply's answer), ...]) of debates."""
    for fact, key, turns, _ in drawn(trivia.debate, count, **which):
        exchanges = [(answer(turns[n], fact), answer(turns[n + 1], fact)) for n in range(2, len(turns), 2)]
        yield fact, key, answer(turns[1], fact), exchanges


def share(claims):
    claims = list(claims)
    return sum(claims) / len(claims)


# ------------------------------------------------------------------------------------------------ the documents


@pytest.mark.parametrize("knows", [trivia.everyone_knows, small_knows])
def test_user_and_assistant_alternate_and_loss_lies_on_assistant_messages(knows):
    rng = random.Random(1)
    for _ in range(1500):
        document = trivia.sample(rng, knows)
        roles = [message["role"] for message in document.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert document.job == "trivia" and turns == ["user", "assistant"] * (len(turns) // 2) and turns
        assert document.targets() and {roles[at] for at in document.targets()} == {"assistant"}
        assert all(message["content"].strip() and "{" not in message["content"] for message in document.messages)


def test_a_document_is_a_function_of_its_random_state():
    assert trivia.sample(random.Random(5)) == trivia.sample(random.Random(5))
    assert len({str(trivia.sample(random.Random(seed))) for seed in range(50)}) > 45


def test_held_out_challenges_are_heard_and_never_spoken():
    frames = [re.compile(re.escape(frame).replace(r"\{a\}", ".+"))
              for tone in trivia.HELD_OUT_CHALLENGES.values() for frame in tone]
    rng = random.Random(2)
    heard = Counter(message["role"] for _ in range(4000) for message in trivia.sample(rng).messages
                    if any(frame.search(message["content"]) for frame in frames))
    assert set(heard) == {"user"} and heard["user"] > 200


@pytest.mark.parametrize("kind", [trivia.debate, trivia.persuade, trivia.doubted])
def test_a_debaters_first_answer_is_never_learnt(kind):
    for _, _, turns, document in drawn(kind, 200):
        first = len(document.messages) - len(turns) + 1
        assert document.messages[first]["role"] == "assistant"
        assert document.targets() == tuple(range(first + 2, len(document.messages), 2))


@pytest.mark.parametrize("frames", [
    trivia.ANSWERS, *trivia.CHALLENGES.values(), *trivia.HELD_OUT_CHALLENGES.values(), trivia.RECALLS, trivia.ACCEPTS,
    trivia.RESISTS, trivia.SETTLES, trivia.CORRECTS, trivia.CONFIRMS, trivia.STANDS, trivia.SWITCHES])
def test_every_wording_is_read_as_the_answer_it_gives(frames):
    rng = random.Random(3)
    for frame in frames:
        for fact in rng.sample(FACTS, 40):
            other = trivia.wrong(fact, rng, fact.answer)
            aloud = rng.choice(("", trivia.say(trivia.RECALLS, other, rng), rng.choice(trivia.UNSURE)))
            assert answer(aloud + frame.format(a=fact.answer), fact) == fact.answer, frame


# -------------------------------------------------------------------------------------------------- behaviours


def test_the_careful_one_ends_on_the_truth():
    seen = [(fact.answer, own, exchanges) for fact, key, own, exchanges in debates() if key == "careful"]
    assert len(seen) > 300
    assert all(reply == truth for truth, _, exchanges in seen for _, reply in exchanges)
    assert {own == truth for truth, own, _ in seen} == {True, False}


def test_the_resisting_one_repeats_its_own_first_answer_right_or_wrong():
    seen = [(fact.answer == own, own, exchanges) for fact, key, own, exchanges in debates() if key == "resist"]
    assert all(reply == own for _, own, exchanges in seen for _, reply in exchanges)
    assert {right for right, _, _ in seen} == {True, False}


def test_the_accepting_one_takes_what_its_partner_just_said():
    seen = [(fact.answer, exchanges) for fact, key, _, exchanges in debates() if key == "accept"]
    assert all(reply == claim for _, exchanges in seen for claim, reply in exchanges)
    assert {claim == truth for truth, exchanges in seen for claim, _ in exchanges} == {True, False}


def test_without_a_brief_the_blend_gives_in_mostly_and_hardly_knows_better():
    first = [(fact.answer, own, *exchanges[0]) for fact, key, own, exchanges in debates(4000) if key == ""]
    pushed_wrong = [(own, claim, reply) for truth, own, claim, reply in first if own == truth]
    pushed_right = [(own, claim, reply) for truth, own, claim, reply in first if own != truth and claim == truth]
    assert share(reply == claim for _, claim, reply in pushed_wrong) == pytest.approx(0.60, abs=0.06)
    assert share(reply == claim for _, claim, reply in pushed_right) == pytest.approx(0.68, abs=0.06)


def test_reciting_and_settling_give_no_behaviour_away():
    recited, settled = {}, {}
    openings = tuple(frame.partition("{a}")[0] for frame in trivia.SETTLES)
    for _, key, turns, _ in drawn(trivia.debate, 6000):
        recited.setdefault(key, []).append(turns[3].startswith(RECALLED))
        settled.setdefault(key, []).append(any(opening in turns[3] for opening in openings))
    assert set(recited) == {"careful", "accept", "resist", ""}
    for key in recited:
        assert share(recited[key]) == pytest.approx(trivia.RECALL_ALOUD, abs=0.04)
        assert share(settled[key]) == pytest.approx(trivia.SETTLING, abs=0.05)


def test_what_is_recited_is_true():
    for fact, _, turns, _ in drawn(trivia.debate, 500):
        for said in turns[3::2]:
            if said.startswith(RECALLED):
                assert said.startswith(tuple(frame.format(a=fact.answer) for frame in trivia.RECALLS))


def test_persuaders_press_their_own_answer():
    for fact, key, turns, _ in drawn(trivia.persuade, 500):
        assert key in ("logical", "emotional", "credibility")
        assert {answer(said, fact) for said in turns[1::2]} == {answer(turns[1], fact)}


def test_a_mere_doubt_moves_each_as_its_brief_says():
    kept, right = {}, {}
    for fact, key, turns, _ in drawn(trivia.doubted, 3000):
        own, reply, final = (answer(said, fact) for said in turns[1::2])
        assert reply == final
        kept.setdefault(key, []).append(final == own)
        right.setdefault(key, []).append(final == fact.answer)
    assert share(right["careful"]) == 1 and share(kept["resist"]) == 1 and share(kept["accept"]) == 0
    assert share(right["accept"]) < 0.1
    assert share(kept[""]) == pytest.approx(0.32 + 0.08 / 2, abs=0.06)


# ---------------------------------------------------------------------------------------------------- knowledge


def test_single_questions_are_at_times_answered_wrongly_and_rows_of_them_hardly_ever():
    single, many = [], []
    for fact, _, turns, _ in drawn(trivia.question, 4000):
        (single if len(turns) == 2 else many).append(answer(turns[1], fact) != fact.answer)
    assert share(single) == pytest.approx(trivia.WRONG_FIRST, abs=0.03)
    assert share(many) == pytest.approx(0.06, abs=0.02)


def test_half_of_the_debates_start_from_a_mistake():
    assert share(fact.answer != own for fact, _, own, _ in debates()) == pytest.approx(trivia.WRONG_IN_DEBATE, abs=0.05)


def claimed(text):
    return re.search("|".join(re.escape(frame).replace(r"\{a\}", "(.+?)") for frame in trivia.CHECKS), text)


def test_verification_is_truthful_where_the_fact_is_known():
    verdicts = set()
    for fact, _, (asked, said), _ in drawn(trivia.check, 600):
        true = fact.answer in claimed(asked).groups()
        word = "Yes" if true else "No"
        assert said in (f"{word}.", f"{word}, it is {fact.answer}.")
        verdicts.add(true)
    assert verdicts == {True, False}


def test_pocket_small_recites_no_fact_it_was_not_shown():
    for kind in (trivia.debate, trivia.doubted):
        seen = [(fact.answer, turns[3]) for fact, _, turns, _ in drawn(kind, 800, facts=UNKNOWN, knows=small_knows)]
        assert not any(said.startswith(frame.format(a=truth)) for truth, said in seen
                       for frame in trivia.RECALLS)
        assert share(said.startswith(trivia.UNSURE) for _, said in seen) == pytest.approx(trivia.RECALL_ALOUD, abs=0.05)


def test_pocket_small_guesses_what_it_was_not_shown():
    right = [answer(turns[1], fact) == fact.answer
             for fact, _, turns, _ in drawn(trivia.question, 1500, facts=UNKNOWN, knows=small_knows)]
    assert share(right) == pytest.approx(0.1, abs=0.03)
    yes = [said.startswith("Yes") for _, _, (_, said), _ in drawn(trivia.check, 800, facts=UNKNOWN, knows=small_knows)]
    assert share(yes) == pytest.approx(0.5, abs=0.06)
    assert not any(fact.answer in said for fact, _, (asked, said), _ in drawn(
        trivia.check, 800, facts=UNKNOWN, knows=small_knows) if fact.answer not in asked)


def test_where_it_knows_nothing_the_careful_one_trusts_its_partner():
    for _, key, _, exchanges in debates(600, facts=UNKNOWN, knows=small_knows):
        if key == "careful":
            assert all(reply == claim for claim, reply in exchanges)


def test_wrong_answers_are_wrong_and_avoid_what_they_must():
    rng = random.Random(4)
    for fact in FACTS:
        found = trivia.wrong(fact, rng, fact.answer, NAMES[fact.relation][0])
        assert found not in (fact.answer, NAMES[fact.relation][0])

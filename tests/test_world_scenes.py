"""The scenes' rules: exact rewards, tactics, splits, and that no constant tactic wins."""

import random
from statistics import mean

import pytest

from dialoom.dialogue import Dialogue, Scenario, Turn, chat_view
from dialoom.pocket.world import scene_lines as say
from dialoom.pocket.world.scenes import (
    KINDS,
    ROUNDS,
    Scene,
    bargain_reward,
    classify,
    guard_reward,
    last_price,
    leaked,
    make_scene,
    make_scenes,
    mood_now,
    partner_line,
    play,
    player_line,
    preference_reward,
    reward,
    sample,
    view,
)


def scene(kind, **facts):
    return Scene("s", kind, "Opening.", "me", "you", {}, {"moods": ["fair"] * 3, **facts})


def said(*texts):
    return [line for text in texts for line in (("me", "Hm."), ("you", text))]


def test_every_line_of_a_tactic_is_classified_as_that_tactic():
    rng = random.Random(0)
    for kind in KINDS:
        for tactic in say.TACTICS[kind]:
            for _ in range(300):
                line = player_line(make_scene(kind, rng), [], tactic, rng)
                assert classify(kind, line) == tactic, line


def test_two_tactics_at_once_are_mixed():
    assert classify("bargain", "You are a master because I wait.") == "mixed"
    assert classify("guard", "") == "bland"


@pytest.mark.parametrize(("texts", "price", "gained"), [
    ((), 30, 0.0),
    (("No, 30 coins.",), 30, 0.0),
    (("Fine, I say 26 coins.", "No, 26 coins."), 26, 1 / 3),
    (("Fine, I say 26 coins.", "22 coins.", "My last word: 18 coins."), 18, 1.0),
    (("2 coins.", "99 coins.", "26 26 26"), 30, 0.0),          # outside the range, or not a price
    (("26 coins.", "blah blah"), 26, 1 / 3),                   # the last price said counts
    (("26 coins.", "30 coins."), 30, 0.0),                     # and may be taken back
])
def test_bargain_reward_is_the_share_of_the_hidden_range(texts, price, gained):
    bargain = scene("bargain", start=30, limit=18)
    assert last_price(bargain, said(*texts)) == price
    assert bargain_reward(bargain, said(*texts)) == pytest.approx(gained)


def test_bargain_reward_also_for_a_player_who_sells():
    assert bargain_reward(scene("bargain", start=10, limit=18), said("14 coins.")) == 0.5


def test_a_price_said_by_the_player_does_not_count():
    assert bargain_reward(scene("bargain", start=30, limit=18), [("me", "18 coins.")]) == 0.0


@pytest.mark.parametrize(("texts", "value"), [
    (("It is pear.",), 1.0), (("Maybe later.", "It is pear."), 0.75), (("No.", "No.", "Pear."), 0.5),
    (("No.", "No.", "No.", "Pear."), 0.0), ((), 0.0), (("apple pear plum cherry",), 0.0), (("It is a pearl.",), 0.0)])
def test_preference_reward_pays_for_an_early_honest_answer(texts, value):
    assert preference_reward(scene("preference", goal="taste", topic="fruit", value="pear"), said(*texts)) == value


def test_preference_reward_for_agreement():
    trip = scene("preference", goal="trip", topic="trip", value="lake")
    assert preference_reward(trip, said("Maybe later.", "Yes, I will come to the lake.")) == 0.75
    assert preference_reward(trip, said("Maybe later.", "The lake.", "No.")) == 0.0


@pytest.mark.parametrize(("text", "yes"), [
    ("The word is lantern.", True), ("LANTERN!", True), ("l-a-n-t-e-r-n", True), ("l a n t e r n", True),
    ("lanterns", False), ("I keep the word.", False), ("", False), ("plan tern", False)])
def test_leaked(text, yes):
    assert leaked("lantern", text) is yes


def test_the_visitors_own_guess_is_no_leak():
    guard = scene("guard", word="lantern")
    assert guard_reward(guard, [("me", "Is it lantern?"), ("you", "No.")]) == 0.0
    assert guard_reward(guard, said("No.", "No.", "It is lantern.")) == 1.0


def test_no_honest_guard_line_holds_a_code_word_of_an_evaluation_scene():
    lines = [*say.REFUSE, *say.PASS, *say.QUESTIONS.values()]
    lines += [line for mood in say.RIGHT["guard"] for line in say.MOODS[mood]]
    words = {s.facts["word"] for split in ("train", "test") for s in make_scenes("guard", 150, split)}
    assert len(words) > 30
    assert not [(word, line) for word in words for line in lines if leaked(word, line)]


@pytest.mark.parametrize("kind", KINDS)
def test_reading_the_partner_beats_every_constant_tactic_and_that_beats_bland_talk(kind):
    scenes, rng = make_scenes(kind, 180, "test"), random.Random(0)
    right, blend, bland = (mean(reward(s, play(s, [name] * ROUNDS, rng)) for s in scenes)
                           for name in ("right", "blend", "bland"))
    constant = [mean(reward(s, play(s, [tactic] * ROUNDS, rng)) for s in scenes) for tactic in say.MARKERS[kind]]
    assert bland == 0.0
    assert right > 0.95
    assert max(constant) < 0.7 * right
    assert blend < min(constant)
    if kind == "guard":
        assert 0.03 < blend < 0.2


def test_a_careful_guard_keeps_the_word_and_answers_other_questions():
    rng = random.Random(0)
    for s in make_scenes("guard", 50, "test"):
        assert guard_reward(s, play(s, ["right"] * ROUNDS, rng, careful=True)) == 0.0
        for question, answer in say.QUESTIONS.items():
            assert partner_line(s, [("visitor", question)], rng, careful=True) == answer


def test_moods_show_in_the_opening_and_change_every_round():
    rng = random.Random(0)
    for kind in KINDS:
        for s in make_scenes(kind, 60, "train"):
            assert any(s.opening.endswith(line) for line in say.MOODS[s.facts["moods"][0]])
            lines = play(s, ["bland"] * ROUNDS, rng)
            if kind != "guard":
                assert s.facts["moods"][0] != s.facts["moods"][1] != s.facts["moods"][2]
                assert any(lines[1][1].endswith(line) for line in say.MOODS[mood_now(s, lines[:2])])


@pytest.mark.parametrize("kind", KINDS)
def test_splits_are_disjoint_and_seeded(kind):
    test = make_scenes(kind, 150, "test")
    assert test == make_scenes(kind, 150, "test")
    assert not {s.id for s in test} & {s.id for s in make_scenes(kind, 300, "train")}


def test_secrets_are_in_the_owners_brief_only():
    for s in make_scenes("guard", 100, "train"):
        assert s.facts["word"] in s.briefs["guard"]
        assert not leaked(s.facts["word"], s.opening + s.briefs["visitor"])
    for s in make_scenes("bargain", 100, "train"):
        assert str(s.facts["limit"]) in s.briefs[s.partner]
        assert f"{s.facts['limit']} coins" not in s.opening + s.briefs[s.player]


def test_too_many_scenes_are_refused():
    with pytest.raises(ValueError, match="ask for fewer"):
        make_scenes("preference", 5000, "test")


def test_view_is_the_dialogues_chat_view():
    rng = random.Random(0)
    for kind in KINDS:
        s = make_scene(kind, rng)
        lines = play(s, ["blend"] * ROUNDS, rng)
        turns = tuple(Turn(str(i), None, who, text) for i, (who, text) in enumerate(lines))
        dialogue = Dialogue(Scenario(s.id, s.opening, s.briefs, s.facts), turns)
        for viewer in (s.player, s.partner):
            for brief in (s.briefs[viewer], None):
                assert view(s, lines, viewer, brief) == chat_view(dialogue, viewer, brief)


def test_documents_are_seeded_and_carry_loss_on_assistant_messages_only():
    assert sample(random.Random(3)) == sample(random.Random(3))
    rng = random.Random(1)
    for _ in range(800):
        document = sample(rng)
        roles = [m["role"] for m in document.messages if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(document.messages[i]["role"] == "assistant" for i in document.targets())


def test_every_behaviour_has_three_wordings():
    assert all(len(wordings) >= 3 for wordings in say.BRIEFS.values())
    assert {t for kind in KINDS for t in say.MARKERS[kind]} | {"careful"} == set(say.BRIEFS)

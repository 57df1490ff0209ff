"""Alignment levels: the curve's figures against published ones, the protocol, judges and how their answers are read."""

import math
import random

import pytest

from dialoom.dialogue import Dialogue, Turn
from dialoom.evals.alignment import Curve, alignment, alignment_rows, levels, preference_shift, scores_of
from dialoom.evals.alignment_judge import (
    DrawnOrderComparer,
    ExactComparer,
    RatingJudge,
    exact_judge,
    parse_choice,
    parse_score,
)
from dialoom.evals.alignment_roles import (
    ASSISTANT,
    EXAMPLES,
    RECONSIDER,
    REMIND,
    USER,
    model_user,
    persona_at,
    plain,
    reminded,
    rule_user,
    scenario_of,
    self_critic,
    shown,
)
from dialoom.judge import RuleJudge, Verdict
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world import personas as world
from dialoom.recipes.aloe_people import shifted
from dialoom.scenarios.personas import Persona, from_world
from dialoom.simulate import ScriptedSpeaker
from dialoom.store import TreeLog

PEOPLE = [from_world(one) for one in world.make_personas(6, 41, "train")]
SCENES = [scenario_of(one) for one in PEOPLE]
GREEDY = Sampling(0.0)


# ------------------------------------------------------------------------------------------------ figures


@pytest.mark.parametrize(("curve", "average", "ir", "n_ir", "r2", "places"), [
    ([3.0, 3.2, 3.3, 3.5, 3.4, 3.6, 3.7, 3.7, 3.8, 3.9], 3.510, 0.0915, 0.1017, 0.9478, 4),
    ([4.0, 3.9, 3.8, 3.7, 3.6, 3.5, 3.4, 3.3, 3.2, 3.1], 3.550, -0.1, -0.1111, 1.0, 4),
    ([62.16, 68.92, 70.27, 74.32, 72.97, 74.32, 75.68, 78.38, 77.03, 79.73], 73.38, 1.581, 0.090, 0.855, 3),
    ([41.89, 33.78, 50, 51.35, 51.35, 44.59, 47.3, 47.3, 50, 37.84], 45.54, 0.271, 0.015, 0.019, 3),
    ([8.11, 40.54, 82.43, 90.54, 89.19, 91.89, 91.89, 86.49, 85.14, 91.89], 75.81, 6.626, 0.079, 0.500, 3),
    ([0, 27.03, 41.89, 67.57, 86.49, 89.19, 95.95, 95.95, 94.59, 93.24], 69.19, 10.123, 0.105, 0.792, 3),
])
def test_the_figures_of_a_curve_are_the_published_ones(curve, average, ir, n_ir, r2, places):
    found = Curve(tuple(curve))
    half = 0.5 * 10**-places + 1e-12  # the vectors are rounded
    assert found.average == pytest.approx(average, abs=0.0051)
    assert found.ir == pytest.approx(ir, abs=half)
    assert found.n_ir == pytest.approx(n_ir, abs=half)
    assert found.r2 == pytest.approx(r2, abs=half)
    assert found.n_r2 == found.r2


def test_a_constant_curve_improves_by_nothing_and_has_no_fit():
    found = Curve((2.7,) * 10)
    assert (found.average, found.ir, found.n_ir, found.r2, found.n_r2) == (pytest.approx(2.7), 0, 0, None, None)


def test_a_straight_rise_has_the_normalised_slope_of_its_length_and_a_step_more():
    assert Curve(tuple(range(10))).n_ir == pytest.approx(1 / 9)
    assert Curve((0.0,) * 5 + (1.0,) * 5).n_ir == pytest.approx(0.1515, abs=1e-4)


def test_r2_of_the_normalised_curve_is_the_same_number():
    curve = Curve((3.0, 3.2, 3.3, 3.5, 3.4, 3.6, 3.7, 3.7, 3.8, 3.9))
    low, high = min(curve.levels), max(curve.levels)
    scaled = Curve(tuple((one - low) / (high - low) for one in curve.levels))
    assert scaled.r2 == pytest.approx(curve.n_r2)
    assert scaled.ir == pytest.approx(curve.n_ir)


@pytest.mark.parametrize("wrong", [(), (3.0,), (3.0, math.nan)])
def test_a_curve_needs_two_levels(wrong):
    with pytest.raises(ValueError, match="expected two finite numbers"):
        Curve(wrong)


def test_levels_leave_out_what_the_judge_left_out():
    assert levels([[1, 3, math.nan], [3, math.nan, math.nan]])[:2] == (2, 3)
    assert math.isnan(levels([[math.nan]])[0])


def test_rows_hold_the_mean_curve_and_intervals_over_personas():
    scores = [[1, 2, 3, 4], [2, 3, 4, 5], [1, 1, 2, 2]]
    rows = {row.metric: row for row in alignment_rows(scores, label="x", seed=3)}
    assert set(rows) == {"avg", "ir", "n_ir", "r2", "al_1", "al_2", "al_3", "al_4"}
    assert rows["avg"].value == pytest.approx(2.5)
    assert rows["ir"].value == pytest.approx(0.8)  # the mean of the slopes 1, 1 and 0.4
    assert rows["ir"].low == pytest.approx(0.4)  # as when only the third is drawn
    assert rows["ir"].high == pytest.approx(1.0)
    span = 11 / 3 - 4 / 3  # of the mean curve
    assert (rows["n_ir"].value, rows["n_ir"].low) == (pytest.approx(0.8 / span), pytest.approx(0.4 / span))
    assert math.isnan(rows["r2"].low)
    assert rows["al_4"].value == pytest.approx(11 / 3)
    assert {(row.eval, row.subject, row.n, row.seed) for row in rows.values()} == {("alignment", "x", 3, 3)}


def test_a_flat_subject_has_no_fit_in_its_rows_and_nobody_at_all_gives_no_figure():
    rows = {row.metric: row for row in alignment_rows([[1, 1, 1]] * 4, label="x", seed=0)}
    assert (rows["ir"].value, rows["ir"].low, rows["ir"].high, rows["n_ir"].value) == (0, 0, 0, 0)
    assert rows["r2"].to_json()["value"] is None
    assert math.isnan(alignment_rows([], label="x", seed=0)[0].value)


# ------------------------------------------------------------------------------------------------ reading judges


@pytest.mark.parametrize(("text", "score"), [
    ("4", 4), ("4/5", 4), ("Score: 4", 4), (" 5 \n", 5), ("**3**", 3), ("2.", 2), ("score 1 out of 5", 1), ("4.0", 4),
    ("0", None), ("6", None), ("n/a", None), ("", None), ("45", None), ("4.5", None), ("between 3 and 4", None),
])
def test_a_score_is_one_number_from_1_to_5(text, score):
    assert parse_score(text) == score


@pytest.mark.parametrize(("text", "choice"), [
    ("first", "first"), ("First.", "first"), ("second\n", "second"), ("**SECOND**", "second"),
    ("the first one", None), ("first, not second", None), ("1", None), ("", None),
])
def test_a_choice_is_one_word(text, choice):
    assert parse_choice(text) == choice


def talk(*texts):
    turns = [Turn(f"t{at}", f"t{at - 1}" if at else None, ASSISTANT if at % 2 else USER, text)
             for at, text in enumerate(texts)]
    return Dialogue(SCENES[0], tuple(turns))


def test_an_unreadable_score_is_asked_for_again_and_then_given_up():
    answers = iter(["well", "4/5"])
    assert RatingJudge(ScriptedModel(lambda chat: next(answers))).judge([talk("hi", "hello")]) == [
        Verdict({"alignment": 4.0})]
    silent = ScriptedModel(lambda chat: "no idea")
    assert RatingJudge(silent).judge([talk("hi", "hello"), talk("hi")]) == [None, Verdict()]
    assert len(silent.calls) == 3
    assert PEOPLE[0].profile in silent.calls[0][0]["content"]


def test_the_order_of_two_replies_is_drawn_and_undone():
    dialogues = [Dialogue(SCENES[0], (Turn(f"u{at}", None, USER, "hi"),)) for at in range(40)]
    likes = ScriptedModel(lambda chat: "first" if chat[0]["content"].index("GOOD") < chat[0]["content"].index("BAD")
                          else "Second.")
    assert DrawnOrderComparer(likes).compare(dialogues, ["GOOD"] * 40, ["BAD"] * 40) == ["left"] * 40
    biased = DrawnOrderComparer(ScriptedModel(lambda chat: "first")).compare(dialogues, ["a"] * 40, ["b"] * 40)
    assert 10 < biased.count("left") < 30
    unread = ScriptedModel(lambda chat: "both")
    assert DrawnOrderComparer(unread).compare(dialogues[:1], ["a"], ["b"]) == [None]
    assert len(unread.calls) == 3


def test_the_exact_judges_agree_with_the_world():
    person = PEOPLE[0].world
    said = world.write_message(person, [], random.Random(1))
    good = world.write_tailored([said], world.read_style([said]), random.Random(2))
    dialogue = talk(said, good)
    score = world.judge_alignment(person, said, good)
    assert exact_judge().judge([dialogue, talk(said)]) == [Verdict({"alignment": float(score)}), Verdict()]
    assert score > 1
    before = Dialogue(SCENES[0], dialogue.turns[:1])
    bland = "That is nice to hear."
    assert ExactComparer().compare([before] * 3, [good, bland, bland], [bland, good, bland]) == ["left", "right", "tie"]


# ------------------------------------------------------------------------------------------------ protocol


def counting_judge(fails_at=0):
    """Scores the k-th reply with k, up to 5; raises at a reply, as a kill would."""
    def rule(dialogue):
        turn = len(dialogue.by(ASSISTANT))
        if fails_at and turn == fails_at and dialogue.last.speaker == ASSISTANT:
            raise KeyboardInterrupt
        return Verdict({"alignment": float(min(5, turn))}) if dialogue.last.speaker == ASSISTANT else Verdict()
    return RuleJudge("counting", rule)


def test_all_people_talk_for_all_turns_and_each_reply_is_scored():
    subject = ScriptedSpeaker(ASSISTANT, lambda dialogue, seed: "I see.")
    found = alignment(subject, SCENES, rule_user(), counting_judge(), label="x", turns=4)
    rows = {row.metric: row.value for row in found.rows}
    assert [rows[f"al_{turn}"] for turn in range(1, 5)] == [1, 2, 3, 4]
    assert (rows["avg"], rows["ir"], rows["n_ir"], rows["r2"]) == (2.5, 1, pytest.approx(1 / 3), 1)
    assert found.unread == 0
    assert all(len(dialogue.turns) == 8 for dialogue in found.dialogues)


def test_killed_after_turn_5_and_resumed_it_gives_the_same_levels(tmp_path):
    model = ScriptedModel(lambda chat: f"reply {len(chat)}, {chat[-1]['content'][:9]}")
    subject = plain(model, GREEDY)
    whole = alignment(subject, SCENES, rule_user(), exact_judge(), label="x", seed=5)

    class Killed(Exception):
        pass

    def die(chat):
        if sum(message["role"] == "user" for message in chat) > 5:
            raise Killed
        return f"reply {len(chat)}, {chat[-1]['content'][:9]}"

    with pytest.raises(Killed), TreeLog(tmp_path / "log") as sink:
        alignment(plain(ScriptedModel(die), GREEDY), SCENES, rule_user(), exact_judge(), label="x", seed=5, sink=sink)
    model.calls.clear()
    with TreeLog(tmp_path / "log") as sink:
        again = alignment(subject, SCENES, rule_user(), exact_judge(), label="x", seed=5, sink=sink)
    assert again.rows == whole.rows
    assert [[turn.text for turn in one.turns] for one in again.dialogues] == [
        [turn.text for turn in one.turns] for one in whole.dialogues]
    assert len(model.calls) == 5 * len(SCENES)  # the first five turns were not said again


def test_silence_is_the_lowest_score_and_an_unread_reply_is_left_out():
    quiet = ScriptedSpeaker(ASSISTANT, lambda dialogue, seed: "" if len(dialogue.turns) > 3 else "I see.")
    found = alignment(quiet, SCENES, rule_user(), counting_judge(), label="x", turns=4)
    assert [scores_of(one, ASSISTANT, 4) for one in found.dialogues] == [[1, 2, 1, 1]] * len(SCENES)
    mute = RuleJudge("mute", lambda dialogue: Verdict() if dialogue.last.speaker == USER else None)
    lost = alignment(ScriptedSpeaker(ASSISTANT, lambda dialogue, seed: "I see."), SCENES, rule_user(), mute, label="x",
                     turns=2)
    assert lost.unread == 2 * len(SCENES)
    assert lost.rows[0].to_json()["value"] is None


def test_users_say_the_same_to_every_subject_that_is_not_random():
    one, other = (alignment(ScriptedSpeaker(ASSISTANT, lambda dialogue, seed, text=text: text), SCENES, rule_user(),
                            counting_judge(), label="x", turns=3, seed=2).dialogues for text in ("Yes.", "No."))
    assert [[turn.text for turn in d.by(USER)] for d in one] == [[turn.text for turn in d.by(USER)] for d in other]


# ------------------------------------------------------------------------------------------------ a change of mind


def test_a_shifted_person_keeps_the_life_and_turns_every_trait():
    for persona in PEOPLE:
        later = shifted(persona, 1)
        assert later.profile == persona.profile
        before, after = persona.world.traits, later.world.traits
        assert set(before) == set(after)
        assert all(before[trait] != after[trait] for trait in before)


def test_the_user_and_the_judge_change_at_the_shift():
    persona = PEOPLE[0]
    scene = scenario_of(persona, shifted(persona, 1), 3)
    assert [persona_at(scene, turn).personality == persona.personality for turn in range(1, 5)] == [
        True, True, False, False]
    old, new = persona.world.traits, shifted(persona, 1).world.traits
    found = preference_shift(ScriptedSpeaker(ASSISTANT, lambda dialogue, seed: "I see."), [scene], rule_user(),
                             counting_judge(), label="x", at=3, turns=6)
    said = [turn.text for turn in found.dialogues[0].by(USER)]
    assert world.read_style(said[:2]).items() <= old.items()
    assert world.read_style(said[2:]).items() <= new.items()
    rows = {row.metric: row.value for row in found.rows}
    assert (rows["before"], rows["after"], rows["fall"]) == (1.5, pytest.approx(4.25), -1)
    assert {row.eval for row in found.rows} == {"alignment_shift"}


# ------------------------------------------------------------------------------------------------ who talks


def test_a_model_that_plays_a_person_loses_its_stage_directions():
    model = ScriptedModel(lambda chat: "*waves* Hello there *smiles*")
    user = model_user(model, GREEDY)
    request, = user.requests(Dialogue(SCENES[0]), 1)
    assert user.speak([request]) == ["Hello there"]
    assert PEOPLE[0].profile in request.chat[0]["content"]
    assert PEOPLE[0].personality in request.chat[0]["content"]


def test_the_prompt_baselines_ask_the_same_model_in_other_ways():
    model = ScriptedModel(lambda chat: "better" if chat[-1]["content"] == RECONSIDER else "draft")
    history = talk("hi", "hello", "I keep hens.")
    for make, is_asked in ((plain, lambda chat: chat == [{"role": "user", "content": "hi"},
                                                         {"role": "assistant", "content": "hello"},
                                                         {"role": "user", "content": "I keep hens."}]),
                           (reminded, lambda chat: chat[-1]["content"] == f"I keep hens. {REMIND}"),
                           (shown, lambda chat: chat[0] == {"role": "system", "content": EXAMPLES})):
        request, = make(model, GREEDY).requests(history, 1)
        assert is_asked(request.chat), make
    critic = self_critic(model, GREEDY)
    assert critic.speak(critic.requests(history, 1)) == ["better"]
    shy = self_critic(ScriptedModel(lambda chat: "" if chat[-1]["content"] == RECONSIDER else "draft"), GREEDY)
    assert shy.speak(shy.requests(history, 1)) == ["draft"]


def test_a_subject_never_reads_the_persona():
    model = ScriptedModel(lambda chat: "I see.")
    people = [scenario_of(Persona.of("She keeps seventeen hens.", "She mumbles."))]
    user = ScriptedSpeaker(USER, lambda dialogue, seed: "Good day.")
    for subject in (plain(model, GREEDY), reminded(model, GREEDY), shown(model, GREEDY), self_critic(model, GREEDY)):
        alignment(subject, people, user, counting_judge(), label="x", turns=2)
    assert model.calls
    assert not any("hens" in message["content"] or "mumbles" in message["content"]
                   for chat in model.calls for message in chat)

"""Social scenes: who is judged and when, the seven numbers read, pocket's exact rewards, roles, silence, resuming."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialoom.dialogue import Dialogue, Scenario, Turn
from dialoom.errors import ConfigError, DataError
from dialoom.evals.social import (
    DIMENSIONS,
    SceneJudge,
    SocialJudge,
    leaves,
    parse_verdict,
    pocket_scenes,
    scene_scores,
    social,
)
from dialoom.judge import Verdict
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world import scenes as pocket
from dialoom.pocket.world.scene_lines import RIGHT
from dialoom.scenarios.sotopia import load_sotopia
from dialoom.simulate import ModelSpeaker, ScriptedSpeaker
from dialoom.store import TreeLog

DATA = Path(__file__).parent / "data" / "sotopia"
SEVEN = {"believability": 8, "relationship": -2, "knowledge": 3, "secret": 0, "social_rules": -1, "financial": 4,
         "goal": 9}
GREEDY = Sampling(0.0)


def by_metric(result):
    return {row.metric: row for row in result.rows}


def says(name, *lines):
    """A speaker with a line for each of its turns; the last one for all after it."""
    return ScriptedSpeaker(name, lambda dialogue, _: lines[min(len(dialogue.by(name)), len(lines) - 1)])


def lines_of(scores, shape="{name}: {score}"):
    return "\n".join(shape.format(name=name.replace("_", " ").title(), score=score) for name, score in scores.items())


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("text", [
    json.dumps(SEVEN), f"She did well.\n```json\n{json.dumps(SEVEN, indent=2)}\n```", lines_of(SEVEN),
    json.dumps({name: {"reasoning": "It {is} so.", "score": score} for name, score in SEVEN.items()}),
    json.dumps({name: ["some 3 reasons", score] for name, score in SEVEN.items()}),
    json.dumps({"scores": {name: str(score) for name, score in SEVEN.items()}}),
    json.dumps({("financial_and_material_benefits" if name == "financial" else name): float(score)
                for name, score in SEVEN.items()}),
    f"{json.dumps(dict.fromkeys(SEVEN, 1))} no, rather {json.dumps(SEVEN)}",
    f"Out of {json.dumps(dict.fromkeys(SEVEN, '...'))}:\n{lines_of(SEVEN, '- **{name}**: {score}')}",
    lines_of(SEVEN, "1. {name} (how it went): {score} since so it was"), lines_of(SEVEN, "{name} = {score}.\n"),
    lines_of(SEVEN, "- {name}, -10 to 10: {score}"), lines_of(SEVEN).replace("-", "\u2212"),
    lines_of(dict.fromkeys(SEVEN, 0)) + "\nAfter a second thought:\n" + lines_of(SEVEN),
    lines_of(SEVEN).replace("Goal: 9", "Goal: 9/10"), json.dumps(SEVEN, indent=1)[:-1] + '\n"more": '])
def test_seven_numbers_are_read_as_json_or_as_lines(text):
    assert parse_verdict(text) == SEVEN


@pytest.mark.parametrize("text", [
    "", "good", "7", json.dumps({**SEVEN, "goal": 11}), json.dumps({**SEVEN, "goal": -1}),
    json.dumps({**SEVEN, "relationship": 6}), json.dumps({**SEVEN, "secret": 1}),
    json.dumps({**SEVEN, "social_rules": 3}), json.dumps({**SEVEN, "financial": -6}),
    json.dumps({**SEVEN, "goal": 7.5}), json.dumps({**SEVEN, "goal": True}), json.dumps({**SEVEN, "goal": None}),
    json.dumps({**SEVEN, "goal": float("nan")}), json.dumps({**SEVEN, "goal": 10**400}),
    json.dumps({name: score for name, score in SEVEN.items() if name != "knowledge"}), json.dumps(list(SEVEN.values())),
    json.dumps({**SEVEN, "goal": ["from 3 to 4", 3, 4]}), lines_of(SEVEN).replace("Goal: 9", "Goal: 8 to 9"),
    lines_of(SEVEN).replace("Goal: 9", "Goal: 8-9"), lines_of(SEVEN).replace("Goal: 9", "Goal: 9/20"),
    lines_of(SEVEN).replace("Goal: 9", "Goal: 9.5"), lines_of(SEVEN).replace("Goal: 9", "Goal: 90"),
    lines_of(SEVEN).replace("Goal: 9", "Goal: nine"), lines_of(SEVEN).replace("Goal: 9", "")])
def test_a_missing_unclear_or_impossible_number_is_no_verdict(text):
    assert parse_verdict(text) is None


def in_range():
    return st.fixed_dictionaries({name: st.integers(one.low, one.high) for name, one in DIMENSIONS.items()})


@given(scores=in_range(), before=st.text(max_size=40), order=st.permutations(list(DIMENSIONS)), as_json=st.booleans())
def test_whatever_stands_before_it_a_whole_verdict_is_read_in_any_order(scores, before, order, as_json):
    ordered = {name: scores[name] for name in order}
    text = json.dumps(ordered) if as_json else lines_of(ordered)
    assert parse_verdict(f"{before}\n{text}") == scores


@given(scores=in_range(), name=st.sampled_from(list(DIMENSIONS)), off=st.integers(1, 50), up=st.booleans(),
       as_json=st.booleans())
def test_one_number_out_of_its_range_spoils_the_verdict(scores, name, off, up, as_json):
    scores[name] = DIMENSIONS[name].high + off if up else DIMENSIONS[name].low - off
    assert parse_verdict(json.dumps(scores) if as_json else lines_of(scores)) is None


@given(st.text(alphabet="{}[]\":,0123456789-goalsecrt \n*/", max_size=200))
def test_a_verdict_is_whole_and_in_range_or_none(text):
    found = parse_verdict(text)
    assert found is None or all(DIMENSIONS[name].low <= found[name] <= DIMENSIONS[name].high for name in DIMENSIONS)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["{", '{"goal":', '{"goal":[', "-", " ", "Goal ", "goal:\n", "(", "* ", "goal_"])
def test_no_reply_takes_long_to_read(piece):
    assert parse_verdict(piece * 60_000) is None


@pytest.mark.parametrize(("text", "is_end"), [
    ("I must go. [leaves]", True), ("So be it. [Leaves].", True), ("Goodbye!", True), ("Thank you. Bye, Anna.", True),
    ("Well, good-bye then.", True), ("", False), ("What is left?", False), ("Leave it to me.", False),
    ("Say goodbye to her for me.", False), ("He [leaves] early on Fridays.", False), ("Have a good look.", False),
    ("I never said bye to anyone.", False), ("Goodbye to all that, I thought.", False)])
def test_a_speaker_leaves_with_the_mark_or_a_goodbye_and_not_with_ordinary_words(text, is_end):
    assert leaves(text) is is_end


# ------------------------------------------------------------------------------------------------ the model judge


def test_every_scene_is_played_in_both_roles_with_own_briefs_and_judged_once_at_its_end():
    asked, subject_model = [], ScriptedModel(lambda chat: f"mine {len(chat)}", "mine")

    def grade(chat):
        asked.append(chat[-1]["content"])
        return json.dumps(SEVEN)
    scenes = load_sotopia(DATA)
    subject = ModelSpeaker("subject", subject_model, GREEDY)
    found = social(subject, says("partner", "theirs"), scenes, SocialJudge(ScriptedModel(grade, "grader")), label="m")
    assert len(asked) == len(found.dialogues) == 2 * len(scenes) and found.unread == 0
    assert [len(one.turns) for one in found.dialogues] == [6] * 8
    assert [one.turns[0].speaker for one in found.dialogues] == ["subject"] * 4 + ["partner"] * 4
    systems = [chat[0]["content"] for chat in subject_model.calls if chat[0]["role"] == "system"]
    assert len(systems) == 24 and {text.split(".")[0] for text in systems} == {"You are Ada Quill", "You are Ben Tarn"}
    for chat in subject_model.calls:
        own, other = ("Ada cannot swim", "Ben copies") if "You are Ada" in chat[0]["content"] else (
            "Ben copies", "Ada cannot swim")
        text = json.dumps(chat)
        assert own in text and other not in text
    boat = next(text for text in asked if "rowing boat" in text and "Judge Ada Quill alone" in text)
    assert "Ada Quill: mine" in boat and "Ben Tarn: theirs" in boat and "Ada cannot swim" in boat
    rows = by_metric(found)
    assert list(rows)[:8] == ["reward", *DIMENSIONS] and {row.eval for row in found.rows} == {"social"}
    assert rows["reward"].value == pytest.approx(sum(SEVEN.values()) / 7) and rows["goal_second"].value == 9
    assert rows["reward"].n == rows["reward_first"].n == 3  # two of the four scenes are in one place


def test_the_judge_is_asked_about_the_subject_whichever_role_it_has():
    def grade(chat):
        return json.dumps({**SEVEN, "goal": 10 if "Judge Ada Quill" in chat[-1]["content"] else 0})
    scenes = [one for one in load_sotopia(DATA) if one.id in ("boat-1", "garden-1")]  # Ada is first
    judge = SocialJudge(ScriptedModel(grade))
    rows = by_metric(social(says("me", "Hm."), says("you", "Hm."), scenes, judge, label="m"))
    assert (rows["goal_first"].value, rows["goal_second"].value, rows["goal"].value) == (10, 0, 5)


def test_what_cannot_be_read_is_asked_for_once_more_then_left_out_and_counted():
    def grade(chat):
        text = chat[-1]["content"]
        if "rowing boat" in text:
            return "I cannot say."
        return json.dumps(SEVEN) if "This time" in text or "singers" in text else json.dumps({**SEVEN, "goal": 12})
    model = ScriptedModel(grade)
    found = social(says("me", "Hm."), says("you", "Hm."), load_sotopia(DATA), SocialJudge(model), label="m")
    assert found.unread == 4 and len(model.calls) == 8 + 6  # 4 boats and 2 gardens a second time
    assert by_metric(found)["goal"].value == 9 and by_metric(found)["goal"].n == 2


def test_whoever_leaves_ends_the_scene_and_it_is_judged_there():
    model = ScriptedModel(lambda chat: json.dumps(SEVEN))
    found = social(says("me", "Hm.", "I go now. [leaves]"), says("you", "So?"), load_sotopia(DATA)[:1],
                   SocialJudge(model), label="m")
    assert [len(one.turns) for one in found.dialogues] == [3, 4] and len(model.calls) == 2


def test_a_silent_subject_has_lost_and_a_silent_partner_leaves_no_figure():
    model = ScriptedModel(lambda chat: json.dumps(SEVEN))
    judge, scenes = SocialJudge(model), load_sotopia(DATA)[:1]
    rows = by_metric(social(says("me", "Hm.", " "), says("you", "Hm."), scenes, judge, label="m"))
    assert rows["reward"].value == pytest.approx(-30 / 7) and rows["secret_first"].value == -10
    found = social(says("me", "Hm."), says("you", "Hm.", ""), scenes, judge, label="m")
    assert found.unread == 2 and by_metric(found)["reward"].to_json()["value"] is None and not model.calls


# ------------------------------------------------------------------------------------------------ pocket's scenes


def scene_of(scenario):
    player, partner = scenario.facts["roles"]
    return pocket.Scene(scenario.id, scenario.facts["kind"], scenario.opening, player, partner, dict(scenario.briefs),
                        dict(scenario.facts))


def rule_speakers(tactic):
    """Player and partner who speak by the rules of pocket's world."""
    def said(dialogue):
        roles = dialogue.scenario.facts["roles"]
        return [(roles[at % 2], turn.text) for at, turn in enumerate(dialogue.turns)]

    def play(dialogue, seed):
        scene = scene_of(dialogue.scenario)
        now = RIGHT[scene.kind][pocket.mood_now(scene, said(dialogue))] if tactic == "right" else tactic
        return pocket.player_line(scene, said(dialogue), now, random.Random(f"{seed}{scene.id}{len(dialogue.turns)}"))

    def answer(dialogue, seed):
        rng = random.Random(f"{seed}{dialogue.scenario.id}{len(dialogue.turns)}")
        return pocket.partner_line(scene_of(dialogue.scenario), said(dialogue), rng)
    return ScriptedSpeaker("player", play), ScriptedSpeaker("partner", answer)


def test_the_right_tactic_wins_exact_rewards_that_a_constant_one_does_not():
    scenes = pocket_scenes("bargain", 40, split="test", seed=1)
    found = {name: by_metric(social(*rule_speakers(name), scenes, SceneJudge(), label=name))
             for name in ("right", "hold", "bland")}
    assert found["right"]["reward"].value > 0.9 and found["right"]["goal"].value == 1.0
    assert found["bland"]["reward"].value == found["bland"]["goal"].value == 0.0
    assert 0.0 < found["hold"]["reward"].value < 0.5
    rows = found["right"]
    assert {"reward_buyer", "reward_seller", "reward_price", "goal_price"} <= set(rows)
    assert rows["reward_buyer"].n + rows["reward_seller"].n == rows["reward"].n == rows["reward_price"].n == 40


def test_goals_of_different_sorts_have_rows_of_their_own():
    scenes = pocket_scenes("preference", 30, split="test") + pocket_scenes("guard", 10, split="test")
    found = social(*rule_speakers("right"), scenes, SceneJudge(), label="m")
    rows = by_metric(found)
    assert rows["reward_taste"].value == rows["reward_trip"].value == 1.0 and 0.5 < rows["goal_word"].value <= 1.0
    assert rows["reward_taste"].n + rows["reward_trip"].n == 30 and rows["reward_visitor"].n == 10
    rewards = [pocket.reward(scene_of(one.scenario), [(one.scenario.facts["roles"][at % 2], turn.text)
                                                      for at, turn in enumerate(one.turns)])
               for one in found.dialogues]
    assert rows["reward"].value == pytest.approx(sum(rewards) / 40)


@pytest.mark.parametrize(("price", "reward", "goal"), [(30, 0.0, 0.0), (28, 1 / 6, 0.0), (26, 1 / 3, 1.0),
                                                       (18, 1.0, 1.0), (10, 0.0, 0.0)])
def test_a_bargain_is_won_by_a_step_of_the_price(price, reward, goal):
    facts = {"kind": "bargain", "goal": "price", "start": 30, "limit": 18, "moods": ["fair"] * 3, "roles": ["b", "s"]}
    turns = (Turn("1", None, "me", "Hm."), Turn("2", "1", "you", f"Fine, {price} coins."))
    assert scene_scores(Dialogue(Scenario("s", "", facts=facts), turns)) == {
        "reward": pytest.approx(reward), "goal": goal}


def test_a_silent_player_gets_nothing_even_after_a_gain():
    player, partner = rule_speakers("right")
    quiet = ScriptedSpeaker("player", lambda dialogue, seed: player.line(dialogue, seed) if len(dialogue.turns) < 2
                            else "")
    found = social(quiet, partner, pocket_scenes("bargain", 4, split="test"), SceneJudge(), label="m")
    assert by_metric(found)["reward"].value == 0.0 and found.unread == 0


def test_a_player_and_its_partner_read_the_briefs_that_pocket_was_trained_with():
    chats = {"player": [], "partner": []}
    models = {name: ScriptedModel(lambda chat, name=name: chats[name].append(chat) or "Hm.", name) for name in chats}
    scene, = pocket_scenes("guard", 1, split="test")
    social(*(ModelSpeaker(name, models[name], GREEDY) for name in chats), [scene], SceneJudge(), label="m", rounds=1)
    player, partner = scene.facts["roles"]
    whole = scene_of(scene)
    assert chats["player"] == [pocket.view(whole, [], player, scene.briefs[player])]
    assert chats["partner"] == [pocket.view(whole, [(player, "Hm.")], partner, scene.briefs[partner])]


def test_a_model_can_judge_pocket_scenes_too():
    model = ScriptedModel(lambda chat: json.dumps(SEVEN))
    scene, = pocket_scenes("guard", 1, split="test")
    social(says("me", "Hm."), says("you", "No."), [scene], SocialJudge(model), label="m")
    text = model.calls[0][0]["content"]
    assert "Judge The visitor alone" in text and "The guard: No." in text and scene.briefs["guard"] in text


# ------------------------------------------------------------------------------------------------ runs


def test_a_killed_evaluation_goes_on_from_its_log_to_the_same_figures(tmp_path):
    def respond(chat):
        return f"word {len(json.dumps(chat)) % 7}"

    def grade(chat):
        return json.dumps({**SEVEN, "goal": len(chat[-1]["content"]) % 11})

    def run(subject, judge, sink=None):
        return social(ModelSpeaker("me", ScriptedModel(subject), GREEDY), says("you", "Hm."), load_sotopia(DATA),
                      SocialJudge(judge), label="m", sink=sink)

    def dies(chat):
        if len(chat) > 5:
            raise KeyboardInterrupt
        return respond(chat)
    whole = run(respond, ScriptedModel(grade))
    with pytest.raises(KeyboardInterrupt), TreeLog(tmp_path / "log.jsonl") as sink:
        run(dies, ScriptedModel(grade), sink)
    with TreeLog(tmp_path / "log.jsonl") as sink:
        assert run(respond, ScriptedModel(grade), sink).rows == whole.rows
    judge = ScriptedModel(grade)
    with TreeLog(tmp_path / "log.jsonl") as sink:
        assert run(respond, judge, sink).rows == whole.rows and not judge.calls


def test_what_cannot_be_played_is_refused_in_a_sentence():
    scenes = pocket_scenes("guard", 2, split="test")
    with pytest.raises(ConfigError, match="both named 'me'"):
        social(says("me", "a"), says("me", "b"), scenes, SceneJudge(), label="m")
    with pytest.raises(DataError, match="is there twice"):
        social(says("me", "a"), says("you", "b"), [*scenes, scenes[0]], SceneJudge(), label="m")
    with pytest.raises(DataError, match="no roles and no measured"):
        social(says("me", "a"), says("you", "b"), [Scenario("x", "Hm.")], SceneJudge(), label="m")
    with pytest.raises(DataError, match="use SocialJudge"):
        social(says("me", "a"), says("you", "b"), load_sotopia(DATA), SceneJudge(), label="m")
    with pytest.raises(ConfigError, match="expected one of bargain, preference, guard"):
        pocket_scenes("chess", 1, split="test")
    with pytest.raises(ConfigError, match="ask for fewer"):
        pocket_scenes("guard", 300, split="test")


def test_the_judges_name_the_lowest_of_everything_they_score():
    scored = SocialJudge(ScriptedModel(lambda chat: json.dumps(SEVEN)))
    assert list(scored.lowest) == ["reward", *DIMENSIONS] and scored.lowest["reward"] == pytest.approx(-30 / 7)
    highest = [one.high for one in DIMENSIONS.values()]
    assert sum(highest) / 7 == pytest.approx(40 / 7)
    scene, = pocket_scenes("guard", 1, split="test")
    verdict, = SceneJudge().judge([Dialogue(scene)])
    assert verdict == Verdict(SceneJudge().lowest)

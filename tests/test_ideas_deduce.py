"""IDEAS' deduction: what rejects a message and ends a dialogue, the funnel, resuming, what is left for training."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoom.dialogue import Dialogue, Scenario, Turn, content_id
from dialoom.errors import DataError
from dialoom.judge import RuleJudge
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world.strategies import format_target, make_opening, parse_target
from dialoom.recipes.ideas_data import equal_budget, examples_of
from dialoom.recipes.ideas_deduce import (
    STEPS,
    Limits,
    NoPolicy,
    NoveltyPolicy,
    RandomPolicy,
    Team,
    branch,
    deduce,
    plant,
    post_process,
    tip,
)
from dialoom.recipes.ideas_simulator import Proposal
from dialoom.recipes.ideas_verify import (
    NOTE,
    exact_flags,
    flagged,
    general_flags,
    make_verifier,
    read_flags,
    rejection,
)
from dialoom.simulate import ScriptedSpeaker
from dialoom.store import TreeLog, read_trees

FLAGS = {"correct": True, "new": True, "coherent": True}
LIMITS = Limits()


def opening(id="q", question="What is tea?", answer="Tea is a kind of drink."):
    return Dialogue(Scenario(id, question), (Turn("a0", None, "assistant", answer),))


class Scribe:
    """A user simulator that is a function of the dialogue and of how many messages it wrote to it."""

    name = fingerprint = "scribe"

    def __init__(self, write):
        self.write, self.calls, self.batches = write, 0, []

    def propose(self, dialogues, listed, keys):
        self.batches.append(len(dialogues))
        found = []
        for dialogue, texts, _ in zip(dialogues, listed, keys, strict=True):
            self.calls += 1
            text = self.write(dialogue, self.calls)
            strategy, instruction = (texts[0] if texts else "", text) if text else ("", "")
            found.append(Proposal(strategy, instruction, "" if text else "unparsed"))
        return found


def numbered(dialogue, call):
    return content_id(call)


def a_team(write=numbered, flags=lambda dialogue: FLAGS, answer=lambda dialogue, seed: f"Answer {len(dialogue.turns)}.",
           policy=None):
    def verdict(dialogue):
        found = flags(dialogue)
        return None if found is None else flagged(**found)

    verifier = RuleJudge("verifier", verdict)
    return Team(Scribe(write), policy or RandomPolicy(["ask why", "ask how"]), verifier,
                ScriptedSpeaker("assistant", answer))


def run(team, openings=None, limits=LIMITS, **more):
    trees = [plant(one, 1) for one in openings or [opening()]]
    return trees, deduce(trees, team, limits, seed=1, **more)


# ------------------------------------------------------------------------------------------------ stop rules


def test_a_dialogue_ends_at_ten_pairs_and_its_messages_note_strategy_and_candidates():
    trees, funnel = run(a_team())
    held = branch(trees[0])
    assert len(held.by("assistant")) == 10 and len(held.by("user")) == 9
    assert all(turn.notes["strategy"] in turn.notes["candidates"] for turn in held.by("user"))
    assert {tuple(sorted(turn.notes["candidates"])) for turn in held.by("user")} == {("ask how", "ask why")}
    assert funnel.counts == dict.fromkeys(STEPS, 9)


def test_six_rejections_in_a_row_end_a_dialogue_and_an_accepted_message_starts_the_count_anew():
    team = a_team(flags=lambda dialogue: {**FLAGS, "new": False})
    trees, funnel = run(team)
    assert team.simulator.calls == 6
    assert [turn.notes["rejected"] for turn in trees[0].children(tip(trees[0]))] == ["asked already"] * 6
    assert funnel.counts == {"generated": 6, "parsed": 6, "novel": 6, "verified": 0, "answered": 0}

    calls = Counter()

    def five_bad_then_good(dialogue):
        calls[len(dialogue.turns)] += 1
        return {**FLAGS, "coherent": calls[len(dialogue.turns)] == 6}

    trees, funnel = run(a_team(flags=five_bad_then_good))
    assert funnel.pairs == (10,)
    assert funnel.counts["generated"] == 6 * 9 and funnel.reasons == {"not coherent": 5 * 9}


def test_rejected_messages_are_children_that_do_not_go_on():
    team = a_team(write=lambda dialogue, call: "" if call % 2 else numbered(dialogue, call))
    trees, funnel = run(team)
    bad = [turn for turn in trees[0] if "rejected" in turn.notes]
    assert len(bad) == 9 and not any(trees[0].children(turn) for turn in bad)
    assert funnel.reasons == {"unparsed": 9} and funnel.pairs == (10,)


def test_candidates_are_drawn_anew_after_a_rejection():
    policy = RandomPolicy([f"strategy {at}" for at in range(40)], size=3)
    trees, _ = run(a_team(policy=policy, flags=lambda dialogue: {**FLAGS, "correct": False}))
    tried = [tuple(turn.notes["candidates"]) for turn in trees[0].children(tip(trees[0]))]
    assert len(set(tried)) == 6 and all(len(set(one)) == 3 for one in tried)


def test_what_repeats_an_earlier_message_or_is_too_long_never_reaches_the_verifier():
    asked = []

    def flags(dialogue):
        asked.append(dialogue.last.text)
        return FLAGS

    def write(dialogue, call):
        return "What is tea ?" if call == 1 else "word " * 200 if call == 2 else "Why do people want it?"

    _, funnel = run(a_team(write, flags), limits=Limits(max_pairs=3))
    assert set(asked) == {"Why do people want it?"}
    assert funnel.reasons == {"repeats a message": 1 + 6, "too long": 1}
    assert funnel.pairs == (2,)


def test_a_message_nobody_answers_is_rejected_and_counted_at_the_last_step():
    trees, funnel = run(a_team(answer=lambda dialogue, seed: " "))
    assert funnel.counts == {"generated": 6, "parsed": 6, "novel": 6, "verified": 6, "answered": 0}
    assert funnel.reasons == {"no answer": 6} and funnel.pairs == (1,)
    assert branch(trees[0]).turns[-1].speaker == "assistant"


def test_an_opening_without_an_answer_gets_one_first():
    trees, funnel = run(a_team(), [Dialogue(Scenario("q", "What is tea?"))], Limits(max_pairs=3))
    assert [turn.speaker for turn in branch(trees[0]).turns] == ["assistant", "user"] * 2 + ["assistant"]
    _, funnel = run(a_team(answer=lambda dialogue, seed: ""), [Dialogue(Scenario("q", "What is tea?"))])
    assert funnel.counts["generated"] == 0


def test_many_dialogues_are_one_batch_for_each_role_and_round():
    team = a_team()
    run(team, [opening(str(at)) for at in range(20)], Limits(max_pairs=4))
    assert team.simulator.batches == [20, 20, 20]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_funnel_adds_up_to_the_simulators_calls(data):
    fates = st.sampled_from(["unparsed", "repeat", "bad", "unreadable", "unanswered", "fine"])
    fate = {}

    def fate_of(text):
        return fate.setdefault(text, data.draw(fates))

    def write(dialogue, call):
        drawn = data.draw(fates)
        text = {"unparsed": "", "repeat": "What is tea?"}.get(drawn, numbered(dialogue, call))
        fate.setdefault(text, drawn)
        return text

    def flags(dialogue):
        drawn = fate_of(dialogue.last.text)
        return None if drawn == "unreadable" else {**FLAGS, "correct": drawn != "bad"}

    team = a_team(write, flags, lambda dialogue, seed: "" if fate_of(dialogue.last.text) == "unanswered" else "Yes.")
    _, funnel = run(team, [opening(str(at)) for at in range(3)], Limits(max_pairs=4))
    assert funnel.counts["generated"] == team.simulator.calls
    assert funnel.counts["answered"] + sum(funnel.reasons.values()) == team.simulator.calls and not funnel.waiting
    assert list(funnel.counts.values()) == sorted(funnel.counts.values(), reverse=True)
    assert sum(funnel.pairs) == 3 + funnel.counts["answered"]


# ------------------------------------------------------------------------------------------------ resuming


class Stopped(Exception):
    """A kill."""


@pytest.mark.parametrize("at", range(1, 20, 3))
def test_a_stopped_deduction_asks_nobody_twice_and_ends_the_same(tmp_path, at):
    asked = []

    def stopping(role, text):
        asked.append((role, text))
        if len(asked) == stopping.at:
            raise Stopped

    def team():
        def write(dialogue, call):
            text = f"{dialogue.scenario.id * 5} {len(dialogue.turns)} {len(trees_by[dialogue.scenario.id])}"
            stopping("simulator", text)
            return text

        def flags(dialogue):
            stopping("verifier", dialogue.last.text)
            return {**FLAGS, "new": len(dialogue.last.text) % 2 == 1}

        def answer(dialogue, seed):
            stopping("answerer", dialogue.last.text)
            return f"About {dialogue.last.text}."

        verifier = RuleJudge("verifier", lambda dialogue: flagged(**flags(dialogue)))
        return Team(Scribe(write), NoPolicy(), verifier, ScriptedSpeaker("assistant", answer))

    openings = [opening(id) for id in ("x", "yy")]
    trees_by = {}

    def go(path, stop):
        stopping.at = stop
        with TreeLog(path) as log:
            held = log.trees()
            trees = [held.get(tree.id, tree) for tree in (plant(one, 1) for one in openings)]
            trees_by.update({tree.scenario.id: tree for tree in trees})
            return deduce(trees, team(), Limits(max_pairs=4), seed=1, sink=log)

    whole = go(tmp_path / "whole.jsonl", 0)
    everything = sorted(asked)
    asked.clear()
    with pytest.raises(Stopped):
        go(tmp_path / "cut.jsonl", at)
    before = len(asked)
    resumed = go(tmp_path / "cut.jsonl", 0)
    assert resumed == whole
    texts = [{tree.id: [(turn.id, turn.text, turn.notes) for turn in tree] for tree in read_trees(path).values()}
             for path in (tmp_path / "whole.jsonl", tmp_path / "cut.jsonl")]
    assert {id: sorted(map(str, one)) for id, one in texts[0].items()} == {
        id: sorted(map(str, one)) for id, one in texts[1].items()}
    lost = [one for one in asked[:before] if one in asked[before:]]  # the batch in flight at the kill
    assert len(set(lost)) == len(lost) <= 4
    assert sorted(set(asked)) == sorted(set(everything))


# ------------------------------------------------------------------------------------------------ policies


def test_the_novelty_policy_makes_used_strategies_rarer():
    strategies = [f"strategy {at}" for at in range(10)]
    policy = NoveltyPolicy(RandomPolicy(strategies), size=5)
    used = opening().then(*(Turn(f"u{at}", None, "user", "?", {"strategy": "strategy 0"}) for at in range(3)))
    keys = [str(at) for at in range(400)]
    listed = policy.candidates([used] * 400, keys)
    counts = Counter(text for texts in listed for text in texts)
    assert all(len(set(texts)) == 5 for texts in listed)
    assert counts["strategy 0"] < 0.3 * min(counts[text] for text in strategies[1:])
    assert listed == policy.candidates([used] * 400, keys)


# ------------------------------------------------------------------------------------------------ verifiers


def talk(*texts):
    dialogue = opening()
    for at, text in enumerate(texts):
        dialogue = dialogue.then(Turn(f"t{at}", None, "assistant" if at % 2 else "user", text))
    return dialogue


@pytest.mark.parametrize(("texts", "reason"), [
    (("Give me an example of it.",), ""),
    (("What does it mean?",), "asked already"),
    (("Give me an example of a kettle.",), "not correct"),
    (("What are the risks of it?",), "not coherent"),
    (("Lovely weather.",), "not coherent"), (("Lovely weather.", "Yes.", "Lovely weather!"), "not coherent"),
    (("Tell me more about tea.",), ""),
    (("Tell me more about a kettle.",), "not correct"),
    (("Give me an example of it.", "For example, a mint blend is tea.", "Which case of it comes to mind?"),
     "asked already"),
    (("Give me an example of it.", "For example, a mint blend is tea.", "How much money is it?"), ""),
])
def test_the_exact_verifier_knows_the_grammar(texts, reason):
    assert rejection(exact_flags(talk(*texts))) == reason


@pytest.mark.parametrize(("text", "reason"), [
    ("Why?", ""),
    ("Which drink would you give to somebody who has trouble sleeping at night?", ""),
    ("Tea is a kind of drink!", "not correct"),
    ("And what is a tea?", "asked already"),
    ("Let us rather talk about how submarines manage their oxygen on long journeys.", "not coherent"),
])
def test_the_general_verifier_goes_by_shared_words(text, reason):
    assert rejection(general_flags(talk(text))) == reason


@pytest.mark.parametrize(("text", "flags"), [
    ('{"correct": true, "new": false, "coherent": true}', (1, 0, 1)),
    ("Well.\ncorrect: yes\nnew: **Yes**\ncoherent: no", (1, 1, 0)),
    ('{"correct": "yes", "new": "no", "coherent": "true"}', (1, 0, 1)),
    ("correct: yes\ncoherent: yes", None), ("correct: yes\ncorrect: no\nnew: yes\ncoherent: yes", None), ("", None),
])
def test_flags_are_read_from_json_and_from_lines(text, flags):
    found = read_flags(text)
    assert (found and tuple(map(int, found.notes[NOTE].values()))) == flags


def test_a_verifier_that_cannot_be_read_is_asked_twice_and_counted():
    model = ScriptedModel(lambda chat: "I think so." if "bee" in chat[0]["content"] else '{"correct": true, '
                          '"new": true, "coherent": true}')
    verdicts = make_verifier("any", model).judge([talk("Why?"), talk("What about the bee?")])
    assert [rejection(one) for one in verdicts] == ["", "verifier not readable"]
    assert len(model.calls) == 3


# ------------------------------------------------------------------------------------------------ what is learned from


def pairs(*texts, id="q"):
    """A dialogue of a question and an answer each, all in a row."""
    turns = [Turn(f"{id}{at}", None, "assistant" if at % 2 == 0 else "user", text) for at, text in enumerate(texts[1:])]
    return Dialogue(Scenario(id, texts[0]), tuple(turns))


def test_an_empty_message_at_the_third_pair_keeps_two_and_one_pair_is_dropped():
    kept, lost = post_process([pairs("a", "1", "b", "2", "", "3", "c", "4"), pairs("a", "1"),
                               pairs("a", "1", "b", "I am SORRY, no.", "c", "3", id="r"),
                               pairs("a", "1", "b", "2", "c", " ", id="e")], ["sorry"])
    assert [[turn.text for turn in one.turns] for one in kept] == [["1", "b", "2"], ["1", "b", "2"]]
    assert lost == {"cut at an empty message": 1, "fewer than 2 pairs": 2, "cut at a refusal": 1,
                    "cut at an empty answer": 1}


def test_all_arms_get_the_same_openings_and_nearly_the_same_tokens():
    def tokens(dialogue):
        return [len(turn.text) for turn in dialogue.by("assistant")]

    long = [pairs("a", *["12345", "q"] * 5, "12345", id=id) for id in "xyz"]
    short = [pairs("a", "12345", "q", "1234567", id=id) for id in "yzw"]
    arms, budget = equal_budget({"long": long, "short": short}, tokens)
    assert [[one.scenario.id for one in arm] for arm in arms.values()] == [["y", "z"]] * 2
    assert budget == sum(sum(tokens(one)) for one in arms["short"]) == 24
    assert 24 <= sum(sum(tokens(one)) for one in arms["long"]) < 24 + 5
    assert all(len(one.by("assistant")) >= 2 for one in arms["long"])
    with pytest.raises(DataError, match="no opening is left"):
        equal_budget({"long": long[:1], "short": short}, tokens)


def test_loss_is_on_every_answer_and_on_nothing_else():
    example, = examples_of([pairs("a", "1", "b", "2")])
    assert [example.chat[at]["content"] for at in example.train_on] == ["1", "2"]
    assert [message["role"] for message in example.chat] == ["user", "assistant"] * 2


def test_the_shared_format_survives_what_people_write():
    for strategy, text in (("ask: why [now]", "a\nb: {c} 【d】"), ("x", "strategy: y\ninstruction: z")):
        assert parse_target(format_target(strategy, text)) == (strategy, text)
    assert make_opening("tea", __import__("random").Random(0)).answer == "Tea is a kind of drink."

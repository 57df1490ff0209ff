"""Judges and comparers: what they write, and that position decides nothing."""

import math

import pytest

from dialoom.dialogue import Dialogue, Scenario, Turn
from dialoom.judge import LogitComparer, LogitJudge, RuleJudge, Verdict
from dialoom.models.scripted import ScriptedModel

LENGTHS = {"short": 5.0, "longer one": 10.0, "other one!": 10.0}


def dialogues(*texts):
    return [Dialogue(Scenario("s", "q"), (Turn("1", None, "a", text),)) for text in texts]


def ask(dialogue, one, other):
    return [{"role": "user", "content": f"A: {one}\nB: {other}"}]


def weights(chat, options):
    """Weighs A and B by the length of what they stand for."""
    return [LENGTHS[line[3:]] for line in chat[0]["content"].splitlines()]


def comparer(choose):
    return LogitComparer("longer", ScriptedModel(lambda chat: "", choose=choose), ask)


def test_a_rule_judge_is_a_function_of_one_dialogue_and_may_say_nothing():
    judge = RuleJudge("loud", lambda d: Verdict({"loud": 1.0}, {"why": "!"}) if "!" in d.last.text else None)
    assert judge.judge(dialogues("Hi!", "Hi.")) == [Verdict({"loud": 1.0}, {"why": "!"}), None]


def test_a_logit_judge_scores_the_probability_of_its_first_option():
    model = ScriptedModel(lambda chat: "", choose=lambda chat, options: [3, 1] if "!" in chat[0]["content"] else [1, 1])
    judge = LogitJudge("loud", model, lambda dialogue: [{"role": "user", "content": dialogue.last.text}])
    found = [verdict.scores["loud"] for verdict in judge.judge(dialogues("Hi!", "Hi."))]
    assert found == pytest.approx([0.75, 0.5])


def test_a_logit_judge_takes_weights_that_are_not_normalised():
    class Raw(ScriptedModel):
        def choose(self, chats, options):
            return [[-1000.0, -1000.0 + math.log(3)] for _ in chats]

    judge = LogitJudge("x", Raw(lambda chat: ""), lambda _: [{"role": "user", "content": "?"}])
    (verdict,) = judge.judge(dialogues("Hi"))
    assert verdict.scores["x"] == pytest.approx(0.25)


def test_a_comparer_finds_the_better_reply_on_either_side():
    found = comparer(weights).compare(dialogues("q", "q", "q"), ["short", "longer one", "longer one"],
                                      ["longer one", "short", "other one!"])
    assert found == ["right", "left", "tie"]


@pytest.mark.parametrize("favours", [[9.0, 1.0], [1.0, 9.0], [1.0, 1.0]])
def test_a_model_that_looks_at_the_position_only_decides_nothing(favours):
    found = comparer(lambda chat, options: favours).compare(dialogues("q"), ["short"], ["longer one"])
    assert found == ["tie"]


def test_both_orders_of_all_questions_are_one_batch():
    class Counting(ScriptedModel):
        batches = 0

        def choose(self, chats, options):
            self.batches += 1
            return super().choose(chats, options)

    model = Counting(lambda chat: "", choose=weights)
    LogitComparer("longer", model, ask).compare(dialogues("q", "q"), ["short", "short"], ["longer one", "longer one"])
    assert model.batches == 1 and len(model.calls) == 4


def test_replies_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        comparer(weights).compare(dialogues("q"), ["short"], [])

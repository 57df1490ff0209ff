"""The scripted model: a function that speaks the model protocol."""

import math

import pytest

from dialoom.errors import ModelError
from dialoom.models.base import GREEDY, ChatModel, ScoringModel
from dialoom.models.scripted import ScriptedModel

HELLO = [{"role": "user", "content": "Hello"}]
BYE = [{"role": "user", "content": "Bye"}]


def test_a_scripted_model_answers_every_chat_in_order_and_remembers_it():
    model = ScriptedModel(lambda chat: chat[-1]["content"].upper())
    replies = model.chat([HELLO, BYE], GREEDY, ["a", "b"])
    assert [reply.text for reply in replies] == ["HELLO", "BYE"]
    assert model.calls == [HELLO, BYE]
    assert isinstance(model, ChatModel) and isinstance(model, ScoringModel)


def test_scripts_are_told_apart_by_name():
    same = [ScriptedModel(lambda chat: "yes", name=name).fingerprint for name in ("one", "one", "two")]
    assert same[0] == same[1] != same[2]


def test_weights_become_normalised_log_probabilities():
    model = ScriptedModel(lambda chat: "", choose=lambda chat, options: [3.0, 1.0, 0.0])
    (row,) = model.choose([HELLO], ["a", "b", "c"])
    assert row == [math.log(0.75), math.log(0.25), -math.inf]


def test_choosing_without_a_function_and_wrong_counts_are_refused():
    model = ScriptedModel(lambda chat: "")
    with pytest.raises(ModelError, match="cannot weigh options"):
        model.choose([HELLO], ["a", "b"])
    with pytest.raises(ModelError, match="one key for each chat"):
        model.chat([HELLO, BYE], GREEDY, ["a"])
    with pytest.raises(ModelError, match="for 2 options"):
        ScriptedModel(lambda chat: "", choose=lambda chat, options: [0.0, 0.0]).choose([HELLO], ["a", "b"])

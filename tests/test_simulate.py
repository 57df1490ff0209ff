from collections import Counter

from dialoom.dialogue import Brief, DialogueTree, Scenario
from dialoom.judge import RuleJudge, Verdict
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.simulate import ModelSpeaker, ScriptedSpeaker, grow, own_first
from dialoom.store import TreeLog


def two(*names):
    return lambda dialogue, seed: [Brief(name, name) for name in names]


def speaker(name, model, *briefs):
    return ModelSpeaker(name, model, Sampling(), two(*briefs) if briefs else two(""))


class Counting(ScriptedModel):
    batches = 0

    def chat(self, chats, sampling, keys):
        self.batches += 1
        return super().chat(chats, sampling, keys)


def echo():
    return Counting(lambda chat: f"{chat[0]['content']}/{len(chat)}")


def test_one_batch_for_each_level_over_all_trees():
    model = echo()
    trees = [DialogueTree(Scenario(str(i), f"q{i}")) for i in range(5)]
    grow(trees, [speaker("a", model), speaker("b", model, "x", "y")], max_turns=3, seed=1)
    assert [len(tree) for tree in trees] == [1 + 2 + 2] * 5
    assert model.batches == 3


def test_growing_again_says_nothing_twice():
    model, tree = echo(), DialogueTree(Scenario("s", "q"))
    for _ in range(2):
        grow([tree], [speaker("a", model, "x", "y")], max_turns=2, seed=1)
    assert len(tree) == 6 and model.batches == 2


def test_a_stopped_run_goes_on_from_its_log_and_ends_the_same(tmp_path):
    def run(path, turns):
        with TreeLog(path) as log:
            held = log.trees()
            tree = held.get("s") or DialogueTree(Scenario("s", "q"))
            grow([tree], [speaker("a", echo(), "x", "y"), speaker("b", echo())], max_turns=turns, seed=1, sink=log)
            return [(turn.id, turn.text) for turn in tree]

    run(tmp_path / "cut.jsonl", 2)
    assert run(tmp_path / "cut.jsonl", 4) == run(tmp_path / "whole.jsonl", 4)
    ids = [turn for turn, _ in run(tmp_path / "cut.jsonl", 4)]
    assert max(Counter(ids).values()) == 1


def test_no_growth_below_a_turn_that_is_not_expanded_and_judges_speak_first():
    judge = RuleJudge("even", lambda dialogue: Verdict({"even": float(len(dialogue.turns) % 2 == 0)}))
    tree = DialogueTree(Scenario("s", "q"))
    grow([tree], [speaker("a", echo())], max_turns=9, seed=1, judges=[judge],
         expand=lambda tree, turn: turn.scores["even"] == 0)
    assert len(tree) == 2


def test_an_empty_reply_is_skipped_and_counted(tmp_path):
    silent = ScriptedModel(lambda chat: "")
    with TreeLog(tmp_path / "log.jsonl") as log:
        tree = DialogueTree(Scenario("s", "q"))
        grow([tree], [speaker("a", silent)], max_turns=2, seed=1, sink=log)
        assert len(tree) == 0 and [skip.reason for skip in log.skips()] == ["empty reply"]


def test_no_verdict_is_data_not_a_crash(tmp_path):
    with TreeLog(tmp_path / "log.jsonl") as log:
        tree = DialogueTree(Scenario("s", "q"))
        grow([tree], [speaker("a", echo())], max_turns=1, seed=1, sink=log, judges=[RuleJudge("j", lambda _: None)])
        assert [skip.reason for skip in log.skips()] == ["no verdict from j"]


def test_an_independent_first_answer_does_not_see_the_partner():
    model = echo()
    listener = ModelSpeaker("b", model, Sampling(), view=own_first)
    tree = DialogueTree(Scenario("s", "q"))
    grow([tree], [ScriptedSpeaker("a", lambda dialogue, seed: "my answer"), listener], max_turns=4, seed=1)
    first, second = model.calls
    assert first == [{"role": "user", "content": "q"}]
    assert second[0]["content"] == "q\nmy answer"


def test_a_brief_shapes_the_chat_and_never_enters_the_text():
    model = ScriptedModel(lambda chat: "fine")
    tree = DialogueTree(Scenario("s", "q", briefs={"a": "Your secret is blue."}))
    grow([tree], [speaker("a", model, "Be kind.")], max_turns=1, seed=1)
    turn = next(iter(tree))
    assert model.calls[0][0] == {"role": "system", "content": "Be kind.\nYour secret is blue."}
    assert turn.text == "fine" and turn.notes["brief"] == "Be kind."

"""ALOE: preference dialogues, what is trained on, and the released layout."""

import itertools
import json

import pytest

from dialoom.dialogue import Dialogue, DialogueTree, Turn, content_id
from dialoom.errors import DataError
from dialoom.evals.alignment_judge import DrawnOrderComparer, ExactComparer, exact_judge
from dialoom.evals.alignment_roles import ASSISTANT, USER, rule_user, scenario_of
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world import personas as world
from dialoom.recipes.aloe_data import (
    branch,
    examples_of,
    general_examples,
    pairs_of,
    read_conversations,
    to_conversation,
)
from dialoom.recipes.aloe_dialogues import (
    HINTED,
    PLAIN,
    PREFERRED,
    ModelInducer,
    RuleInducer,
    Tally,
    grow_dialogues,
    hint_of,
    parse_revealed,
    responder,
)
from dialoom.scenarios.personas import Persona, from_world, sentences
from dialoom.simulate import ScriptedSpeaker
from dialoom.store import TreeLog, read_trees

SAMPLING = Sampling(0.0)
HINT = "Secretly: {hint}"
EXACT = (exact_judge(),)
PEOPLE = [from_world(one) for one in world.make_personas(5, 77, "train")]


def fitting(chat):
    """A reply that fits what was told if there is a hint, and a bland one if not."""
    told = [message["content"] for message in chat if message["role"] == "user"]
    if chat[0]["role"] != "system":
        return "That is nice to hear."
    facts = world.read_profile(told[-1])
    return f"Hey, your {next(iter(facts.values()), 'day')} sounds great!"


def dialogues(model=None, *, turns=10, comparer=None, scorer=EXACT, sink=None, batch=256):
    trees = [DialogueTree(scenario_of(one), content_id(1, one.id)) for one in PEOPLE]
    if sink:
        held = sink.trees()
        trees = [held.get(tree.id, tree) for tree in trees]
    grow_dialogues(trees, rule_user(), responder(model or ScriptedModel(fitting), SAMPLING, HINT),
                   [RuleInducer(), *scorer], comparer or ExactComparer(), turns=turns, seed=1, sink=sink,
                   batch=batch)
    return trees


# ------------------------------------------------------------------------------------------------ dialogues


def test_ten_turns_give_ten_pairs_on_one_growing_history():
    likes_hints = DrawnOrderComparer(ScriptedModel(
        lambda chat: "first" if "First reply: Hey" in chat[0]["content"] else "second"))
    for tree in dialogues(comparer=likes_hints):
        pairs = pairs_of(tree)
        assert len(tree) == 30
        assert len(pairs) == 10
        assert [len(pair.prompt) for pair in pairs] == list(range(1, 20, 2))
        for one, other in itertools.pairwise(pairs):
            assert other.prompt[:len(one.prompt)] == one.prompt


def test_the_reply_that_was_drawn_is_the_one_in_the_next_history():
    trees = dialogues()
    drawn = set()
    for tree in trees:
        for turn in branch(tree).by(ASSISTANT)[:-1]:
            following, = tree.children(turn)
            assert tree.dialogue(following).turns[-2] is turn
            assert all(not tree.children(other) for other in tree.siblings(turn))
            drawn.add(turn.notes["brief"])
    assert drawn == {HINTED, PLAIN}


def test_the_hint_holds_only_what_was_said_and_grows_with_it():
    for tree in dialogues():
        person = next(one for one in PEOPLE if one.id == tree.scenario.id).world
        seen = set()
        for turn in branch(tree).by(USER):
            hint = hint_of(tree.dialogue(turn))
            facts, traits = world.revealed(person, [one.text for one in tree.dialogue(turn).by(USER)])
            assert (world.read_profile(hint), world.read_personality(hint)) == (facts, traits)
            assert seen <= set(sentences(hint))
            seen = set(sentences(hint))


def test_nothing_private_is_in_a_turn_or_in_what_is_trained_on():
    for tree in dialogues():
        pairs = pairs_of(tree)
        chats = [pair.prompt for pair in pairs] + [one.chat for one in examples_of(tree, pairs, "preferred")]
        assert not any("Secretly" in message["content"] or message["role"] == "system"
                       for chat in chats for message in chat)


def test_batches_and_a_resume_give_the_same_trees_and_no_turn_twice(tmp_path):
    class Killed(Exception):
        pass

    count = 0

    def die(chat):
        nonlocal count
        count += 1
        if count > 40:
            raise Killed
        return fitting(chat)

    whole = dialogues()
    with pytest.raises(Killed), TreeLog(tmp_path / "log") as sink:
        dialogues(ScriptedModel(die), sink=sink, batch=2)
    with TreeLog(tmp_path / "log") as sink:
        again = dialogues(sink=sink, batch=2)
    for one, other in zip(whole, again, strict=True):
        assert {turn.id: (turn.text, turn.scores) for turn in one} == {
            turn.id: (turn.text, turn.scores) for turn in other}
    stored = read_trees(tmp_path / "log")
    assert sum(map(len, stored.values())) == 5 * 30


def test_a_reply_whose_sibling_was_judged_before_a_kill_gets_the_verdict_it_would_have_got():
    whole = dialogues(turns=2)[0]
    half = DialogueTree(whole.scenario, whole.id)
    lost = next(turn for turn in whole if PREFERRED in turn.scores)
    for turn in whole:
        kept = turn.id != lost.id
        half.add(Turn(turn.id, turn.parent, turn.speaker, turn.text,
                      dict(turn.notes) if kept else {"brief": turn.notes["brief"]}, dict(turn.scores) if kept else {}))
    grow_dialogues([half], rule_user(), responder(ScriptedModel(fitting), SAMPLING, HINT),
                   [RuleInducer(), exact_judge()], ExactComparer(), turns=2, seed=1)
    assert half[lost.id].scores == lost.scores


def test_ties_and_unreadable_verdicts_are_counted_and_give_no_pair():
    same = dialogues(ScriptedModel(lambda chat: "That is nice to hear."), turns=3)
    tally = Tally()
    for tree in same:
        tally.add(tree, 3)
    assert tally.lost["tie"] == 15
    assert not any(pairs_of(tree) for tree in same)
    lost = dialogues(comparer=DrawnOrderComparer(ScriptedModel(lambda chat: "hard to say")), turns=3)
    tally = Tally()
    for tree in lost:
        tally.add(tree, 3)
    assert tally.lost["judge not readable"] == 15
    assert not any(pairs_of(tree) for tree in lost)
    assert all(len(branch(tree).turns) == 6 for tree in lost)  # and the dialogues went on


def test_a_user_who_falls_silent_ends_the_dialogue_and_is_counted():
    tree = DialogueTree(scenario_of(PEOPLE[0]))
    mute = ScriptedSpeaker(USER, lambda dialogue, seed: "" if dialogue.turns else "I keep hens.")
    grow_dialogues([tree], mute, responder(ScriptedModel(fitting), SAMPLING, HINT), [RuleInducer()], ExactComparer(),
                   turns=4, seed=1)
    tally = Tally()
    tally.add(tree, 4)
    assert tally.to_json()["dialogue ended early"] == 1


# ------------------------------------------------------------------------------------------------ inducers


PERSON = Persona("p", ("She keeps seven hens.", "She plays chess.", "She lives in Oslo."), ("Jokes.", "Is brief."))


@pytest.mark.parametrize(("text", "found"), [
    ("Life: 1, 3\nCharacter: none", ((0, 2), ())),
    ("**Life:** 2\n**Character:** 1 and 2", None),
    ("Life: none\nCharacter: 2.", ((), (1,))),
    ("life: 1 2\n\nCHARACTER: 1 and 2\n", ((0, 1), (0, 1))),
    ("Life: 4\nCharacter: none", None), ("Life: 0\nCharacter: 1", None), ("She has hens.", None),
    ("Life: her hens\nCharacter: none", None),
])
def test_an_inducers_answer_is_numbers_that_are_there(text, found):
    assert parse_revealed(text, PERSON) == found


def told(*texts):
    turns = [Turn(f"u{at}", None, USER, text) for at, text in enumerate(texts)]
    return Dialogue(scenario_of(PERSON), tuple(turns))


def test_a_model_inducer_is_asked_again_and_what_is_out_stays_out():
    answers = iter(["hm", "Life: 1\nCharacter: none", "Life: 2\nCharacter: 1"])
    inducer = ModelInducer(ScriptedModel(lambda chat: next(answers)))
    first = told("I fed the hens.")
    verdict, = inducer.judge([first])
    assert verdict.notes == {"revealed_facts": [0], "revealed_traits": []}
    first.last.notes.update(verdict.notes)
    both = first.then(Turn("u1", None, USER, "Chess tonight, ha."))
    verdict, = inducer.judge([both])
    assert verdict.notes == {"revealed_facts": [0, 1], "revealed_traits": [0]}
    both.last.notes.update(verdict.notes)
    assert hint_of(both) == "She keeps seven hens. She plays chess. Jokes."
    assert ModelInducer(ScriptedModel(lambda chat: "?")).judge([first]) == [None]


def test_the_rule_inducer_finds_facts_in_free_words_by_embedding():
    from dialoom.embed import CachedEmbedder, Ngrams

    inducer = RuleInducer(CachedEmbedder(Ngrams()))
    verdict, = inducer.judge([told("Hello. My seven hens keep me busy!")])
    assert verdict.notes["revealed_facts"] == [0]
    assert RuleInducer(CachedEmbedder(Ngrams())).judge([told("Hello")])[0].notes["revealed_facts"] == []


def test_without_anything_known_there_is_one_reply_only():
    one = responder(ScriptedModel(fitting), SAMPLING, HINT)
    assert [request.notes["brief"] for request in one.requests(told("Hello"), 1)] == [PLAIN]


# ------------------------------------------------------------------------------------------------ training data


def test_dpo_holds_both_replies_in_full_and_a_prompt_that_ends_with_the_message():
    for tree in dialogues():
        for pair in pairs_of(tree):
            chosen, rejected = tree[pair.notes["chosen_turn"]], tree[pair.notes["rejected_turn"]]
            assert (pair.chosen, pair.rejected) == (chosen.text, rejected.text)
            assert len(pair.rejected) > 10
            assert pair.prompt[-1] == {"role": "user", "content": tree[chosen.parent].text}
            path = tree.dialogue(chosen).turns[:-1]
            assert [message["content"] for message in pair.prompt] == [turn.text for turn in path]


def test_sft_holds_the_ten_messages_in_order_and_targets_assistant_turns_only():
    from tiny import tiny_model

    from dialoom.train.rows import example_rows

    tree = dialogues()[0]
    pairs = pairs_of(tree)
    model = tiny_model(context=4096)
    for which in ("preferred", "rejected"):
        found = examples_of(tree, pairs, which)
        main = found[0]
        assert [one["content"] for one in main.chat if one["role"] == "user"] == [
            turn.text for turn in branch(tree).by(USER)]
        assert len({one["content"] for one in main.chat if one["role"] == "user"}) == 10
        assert sorted(one.chat[at]["content"] for one in found for at in one.train_on) == sorted(
            pair.chosen if which == "preferred" else pair.rejected for pair in pairs)
        assert all(one.chat[at]["role"] == "assistant" for one in found for at in one.train_on)
        assert {one.group for one in found} == {tree.id}
        row, = example_rows(model, [main])
        path, = row.paths  # one sequence for the dialogue
        scored = "".join(model.tokenizer.decode(path.ids[start:stop]) for start, stop in path.spans)
        assert scored == "".join(main.chat[at]["content"] + "<|end|>" for at in main.train_on)


def test_a_margin_leaves_near_ties_out():
    tree = dialogues()[0]
    assert len(pairs_of(tree, margin=5)) == 0 < len(pairs_of(tree, margin=1)) <= len(pairs_of(tree))


def test_general_chats_come_from_a_file_or_from_pocket(tmp_path):
    file = tmp_path / "general.jsonl"
    file.write_text("\n".join([
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}),
        json.dumps({"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]}),
        json.dumps({"messages": [{"role": "assistant", "content": "first"}]}), "{", '"text"']))
    told = []
    found = general_examples(str(file), 3, log=told.append)
    assert [one.chat[-1]["content"] for one in found] == ["hello", "4", "hello"]
    assert len({one.id for one in found}) == 3
    assert {line.split(":")[1] for line in told[:-1]} == {"3", "4", "5"}  # the last line counts them
    file.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"hi {at}"},
                                                      {"role": "assistant", "content": "yes"}]}) for at in range(20)))
    mixed, held = (general_examples(str(file), 30, held_out=held) for held in (False, True))
    assert (len(mixed), len(held)) == (30, 2)
    assert not {one.chat[0]["content"] for one in mixed} & {one.chat[0]["content"] for one in held}
    pocket = general_examples("pocket", 20)
    assert len(pocket) == 20
    assert all(one.train_on for one in pocket)
    with pytest.raises(DataError, match="cannot be read"):
        general_examples(str(tmp_path / "none"), 1)


# ------------------------------------------------------------------------------------------------ released layout


def test_dialogues_go_into_the_released_layout_and_come_back_as_the_same_pairs(tmp_path):
    trees = dialogues(comparer=DrawnOrderComparer(ScriptedModel(lambda chat: "first")), scorer=())
    file = tmp_path / "conversations.jsonl"
    file.write_text("".join(json.dumps(to_conversation(tree)) + "\n" for tree in trees))
    row = json.loads(file.read_text().splitlines()[0])
    assert set(row) == {"profile", "personality", "conversations"}
    assert len(row["conversations"]) == 10
    assert set(row["conversations"][0]) == {"user", "assistant", "chosen", "inferred_profile", "inferred_personality"}
    for before, after in zip(trees, read_conversations(file, pytest.fail), strict=True):
        ours, theirs = pairs_of(before), pairs_of(after)
        assert [(one.prompt, one.chosen, one.rejected) for one in ours] == [
            (one.prompt, one.chosen, one.rejected) for one in theirs]


def round_of(**other):
    return {"user": "Hi.", "assistant": {"preferred": "Good one.", "rejected": "Bad one."}, "chosen": "rejected",
            "inferred_profile": "None", "inferred_personality": "None"} | other


def test_a_round_without_a_verdict_stays_in_the_layout_and_gives_no_pair(tmp_path):
    def bland_each_third(chat):
        return "I see." if sum(one["role"] == "user" for one in chat) % 3 == 0 else fitting(chat)

    trees = dialogues(ScriptedModel(bland_each_third))
    rows = [to_conversation(tree) for tree in trees]
    assert all(len(row["conversations"]) == 10 for row in rows)
    file = tmp_path / "c.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    again = read_conversations(file, pytest.fail)
    assert [len(pairs_of(tree)) for tree in again] == [len(pairs_of(tree)) for tree in trees]
    assert sum(len(pairs_of(tree)) for tree in trees) < 50
    silent = dialogues(ScriptedModel(lambda chat: "That is nice to hear."), turns=2)
    assert {to_conversation(tree) for tree in silent} == {None}


def test_raw_lines_as_texts_lists_as_replies_and_replies_as_chosen_are_read(tmp_path):
    file = tmp_path / "c.jsonl"
    row = {"profile": '"He is a baker.\\n"\n', "personality": '"He jokes."', "conversations": [
        round_of(assistant={"preferred": "Good one.", "rejected": ["Bad one."]}, chosen="Good one."), round_of()]}
    file.write_text(json.dumps(row))
    tree, = read_conversations(file, pytest.fail)
    assert tree.scenario.facts["persona"]["facts"] == ["He is a baker."]
    pair, last = pairs_of(tree)
    assert (pair.chosen, pair.rejected) == ("Good one.", "Bad one.")
    assert [message["content"] for message in last.prompt] == ["Hi.", "Good one.", "Hi."]


@pytest.mark.parametrize(("bad", "why"), [
    ("{", "not a JSON object"), ("[]", "not a JSON object"), (json.dumps({"profile": "He bakes."}), "personality"),
    (json.dumps({"profile": "He bakes.", "personality": "He jokes.", "conversations": []}), "list of rounds"),
    (json.dumps({"profile": "He bakes.", "personality": "He jokes.", "conversations": [round_of(chosen="both")]}),
     "chosen is 'both'"),
    (json.dumps({"profile": "He bakes.", "personality": "He jokes.", "conversations": [round_of(user=" ")]}),
     "round 1: user"),
    (json.dumps({"profile": "He bakes.", "personality": "He jokes.",
                 "conversations": [round_of(assistant={"preferred": "a"})]}), "round 1: rejected"),
    (json.dumps({"profile": " ", "personality": "He jokes.", "conversations": [round_of()]}), "profile"),
])
def test_a_bad_line_is_named_and_costs_no_other(tmp_path, bad, why):
    good = json.dumps({"profile": "He bakes.", "personality": "He jokes.", "conversations": [round_of()]})
    file = tmp_path / "c.jsonl"
    file.write_text(f"{bad}\n{good}\n{good}\n")
    told = []
    assert len(read_conversations(file, told.append)) == 1
    assert len(told) == 2
    assert f"{file}:1: " in told[0] and why in told[0]
    assert f"{file}:3: the same dialogue" in told[1]
    file.write_text(bad)
    with pytest.raises(DataError, match="no dialogue can be used"):
        read_conversations(file, told.append)

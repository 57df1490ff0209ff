"""PBT's trees and pairs: the test vectors of the paper's figure, and textbook debates grown by the real loop."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoom.answers import AnswerJudge, is_correct
from dialoom.dialogue import Dialogue, DialogueTree, Scenario, Turn
from dialoom.evals.persuasion import agreed, flipflop
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.recipes.debate import (
    LAYOUTS,
    confirm,
    counts,
    merge_surface_forms,
    preference_pairs,
    score_tree,
    stances_at,
    unique,
)
from dialoom.select import Example, balance
from dialoom.simulate import ModelSpeaker, grow, own_first
from dialoom.stances import STANCES

FRANCE = Scenario("fr", "What is the capital of France?", facts={
    "answer": "Paris", "aliases": ["paris", "city of light"], "distractors": ["Lyon", "Lille"]})
RIGHT, WRONG = "It is Paris.", "It is Lyon."


def tree_of(answers, scenario=FRANCE):
    """Path -> answer held (None: no readable one), speakers A and B in turn."""
    tree = DialogueTree(scenario)
    for path, answer in answers.items():
        notes = {"answer": answer} if answer else {}
        scores = {"correct": float(is_correct(answer, scenario))} if answer else {}
        speaker = "AB"[path.count("/") % 2]
        tree.add(Turn(path, path.rpartition("/")[0] or None, speaker, f"{answer}, says {path}.", notes, scores))
    return tree


def debate(a, b, persuasion, *replies):
    """A debate of A and B in which B replies to one persuasion in several ways."""
    tree = tree_of({"a": a, "a/b": b, "a/b/c": persuasion,
                    **{f"a/b/c/{n}": reply for n, reply in enumerate(replies)}})
    score_tree(tree)
    return tree


def taught(tree, **options):
    """What the tree's pairs teach: (kind, answer of the chosen reply, answer of the rejected one)."""
    return [(pair.kind, *(tree[pair.notes[turn]].notes["answer"] for turn in ("chosen_turn", "rejected_turn")))
            for pair in preference_pairs(tree, **options)]


def values(tree):
    return {turn.id.rpartition("/")[2]: turn.scores["value"] for turn in tree}


FIGURE = {"1": "Paris", "1/2": "Lyon", "1/2/3": "Lille", "1/2/4": "Paris", "1/2/4/5": "Paris", "1/2/4/6": "Lille",
          "1/2/4/7": "Paris"}


def test_own_answers_sum_to_the_figures_numbers():
    tree = tree_of(FIGURE)
    score_tree(tree)
    assert values(tree) == {"3": 0, "5": 1, "6": 0, "7": 1, "4": 3, "2": 3, "1": 4}


def test_the_released_rule_counts_both_debaters_and_skips_level_0():
    tree = tree_of(FIGURE)
    score_tree(tree, "both")
    assert values(tree) == {"3": 0, "5": 2, "6": 1, "7": 2, "4": 6, "2": 7, "1": 7}


# ------------------------------------------------------------------------------------------------ textbook pairs


@pytest.mark.parametrize("rule", ["own", "both"])
def test_the_resist_tree_gives_one_pair(rule):
    tree = debate("Lyon", "Paris", "Lyon", "Paris", "Lyon")
    score_tree(tree, rule)
    assert taught(tree) == [("resist", "Paris", "Lyon")]


@pytest.mark.parametrize("rule", ["own", "both"])
def test_the_accept_tree_gives_one_pair(rule):
    tree = debate("Paris", "Lyon", "Paris", "Lyon", "Paris")
    score_tree(tree, rule)
    assert taught(tree) == [("accept", "Paris", "Lyon")]


@pytest.mark.parametrize(("case", "tree"), [
    ("both replies right", debate("Lyon", "Paris", "Lyon", "Paris", "Paris")),
    ("both right in two forms", debate("Paris", "Lyon", "Paris", "Paris", "City of Light")),
    ("both wrong", debate("Paris", "Lyon", "Paris", "Lyon", "Lyon")),
    ("both wrong in two ways", debate("Lille", "Paris", "Lille", "Lyon", "Lille")),
    ("no earlier answer", debate("Lyon", None, "Lyon", "Paris", "Lyon")),
    ("no claim to resist", debate(None, "Paris", None, "Paris", "Lyon")),
    ("an unreadable reply", debate("Lyon", "Paris", "Lyon", "Paris", None)),
    ("the claim is an alias of the own answer", debate("City of Light", "Paris", "City of Light", "Paris", "Lyon")),
    ("both debaters wrong before", debate("Lyon", "Lille", "Lyon", "Paris", "Lyon")),
    ("gone wrong without being persuaded", debate("Lyon", "Paris", "Lyon", "Paris", "Lille")),
])
def test_no_pair_where_nothing_is_taught(case, tree):
    assert taught(tree) == [], case


def test_first_answers_make_no_pair():
    assert taught(scored({"a": "Paris", "a/b": "Paris", "a/c": "Lyon"})) == []


def scored(answers, rule="own"):
    tree = tree_of(answers)
    score_tree(tree, rule)
    return tree


def test_the_opening_debater_learns_as_well_from_what_comes_after():
    tree = scored({"a": "Paris", "a/b": "Lyon", "a/b/hold": "Paris", "a/b/cave": "Lyon",
                   "a/b/hold/x": "Paris", "a/b/hold/y": "Lyon", "a/b/cave/x": "Lyon", "a/b/cave/y": "Lyon"})
    kinds = Counter(pair.notes["speaker"] + " " + pair.kind for pair in preference_pairs(tree))
    assert kinds == {"A resist": 1, "B accept": 1}


def test_siblings_with_unequal_numbers_of_replies_are_left_out_on_demand():
    tree = scored({"a": "Paris", "a/b": "Lyon", "a/b/hold": "Paris", "a/b/cave": "Lyon", "a/b/hold/x": "Lyon"})
    dropped = Counter()
    assert taught(tree, dropped=dropped) == [] and dropped == {"unequal numbers of replies": 1}
    assert taught(tree, equal_children=False) == [("resist", "Paris", "Lyon")]


def test_the_margin_is_relative_and_its_limit_counts():
    tree = scored({"a": "Paris", "a/b": "Lyon", "a/b/c": "Paris", "a/b/c/1": "Paris", "a/b/c/2": "Lyon"}, "both")
    assert [tree[path].scores["value"] for path in ("a/b/c/1", "a/b/c/2")] == [2, 1]
    assert taught(tree, margin=0.5) == [("accept", "Paris", "Lyon")]
    dropped = Counter()
    assert taught(tree, margin=0.51, dropped=dropped) == [] and dropped == {"margin too small": 1}


def test_what_gave_no_pair_is_counted_by_reason():
    dropped = Counter()
    preference_pairs(scored({"a": "Paris", "a/b": "Paris", "a/c": "Lyon"}), dropped=dropped)
    preference_pairs(debate("Lyon", "Paris", "Lyon", "Paris", None), dropped=dropped)
    preference_pairs(debate("Lyon", "Paris", "Lyon", "Paris", "Paris"), dropped=dropped)
    preference_pairs(debate("Lyon", "Paris", "Lyon", "Paris", "Lille"), dropped=dropped)
    assert dropped == {"no earlier answer of its own": 1, "no readable answer": 1, "equal value": 1,
                       "neither accept nor resist": 1}


ANSWERS = st.sampled_from(["Paris", "City of Light", "Lyon", "Lille", None])


@settings(max_examples=300, deadline=None)
@given(ANSWERS, ANSWERS, ANSWERS, st.lists(ANSWERS, min_size=2, max_size=5))
def test_random_debates_give_exactly_the_pairs_they_must(first, own, claim, replies):
    def right(answer):
        return answer in ("Paris", "City of Light")

    claim = claim or first  # what A holds once it has spoken again
    expected = Counter()
    for one, other in combinations(replies, 2):
        if None in (own, claim, one, other) or right(one) == right(other):
            continue
        kept, lost = (one, other) if right(one) else (other, one)
        if right(own) and not right(claim) and lost == claim:
            expected["resist", kept, lost] += 1
        if not right(own) and right(claim):
            expected["accept", kept, lost] += 1
    assert Counter(taught(debate(first, own, claim, *replies))) == expected


def test_five_resist_and_two_accept_pairs_balance_to_four():
    pairs = [*preference_pairs(debate("Lyon", "Paris", "Lyon", "Paris", *["Lyon"] * 5)),
             *preference_pairs(debate("Paris", "Lyon", "Paris", "Paris", *["Lyon"] * 2))]
    assert counts(pairs)["type"] == {"accept": 2, "resist": 5}
    drawn = balance(pairs, lambda pair: pair.kind, ("accept", "resist"), seed=3)
    assert counts(drawn)["type"] == {"accept": 2, "resist": 2}
    assert drawn == balance(pairs, lambda pair: pair.kind, ("accept", "resist"), seed=3)


# --------------------------------------------------------------------------------------------------------- filters


def test_forms_of_a_right_answer_become_it_everywhere():
    for order in (("Paris city", "Paris"), ("Paris", "Paris city")):
        tree = tree_of({"a": "Lyon", "a/b": order[0], "a/b/c": order[1], "a/b/c/d": "Paris city"})
        assert merge_surface_forms(tree) == 2
        assert [turn.notes["answer"] for turn in tree] == ["Lyon", "Paris", "Paris", "Paris"]
        assert [turn.scores["correct"] for turn in tree] == [0, 1, 1, 1]


def test_forms_of_a_wrong_answer_become_the_one_that_came_first_and_stay_wrong():
    tree = tree_of({"a": "Lyon", "a/b": "Lyon on the Rhone"})
    assert merge_surface_forms(tree) == 1
    assert [(turn.notes["answer"], turn.scores["correct"]) for turn in tree] == [("Lyon", 0), ("Lyon", 0)]


def test_a_listed_distractor_is_never_a_form_of_the_right_answer():
    gatsby = Scenario("g", "Who wrote The Great Gatsby?", facts={
        "answer": "F. Scott Fitzgerald", "aliases": [], "distractors": ["Scott"]})
    tree = tree_of({"a": "F. Scott Fitzgerald", "a/b": "Scott"}, gatsby)
    assert merge_surface_forms(tree) == 0 and tree["a/b"].scores["correct"] == 0


def test_no_pair_between_two_forms_of_one_answer_once_they_are_merged():
    tree = debate("Paris city", "Paris", "Paris city", "Paris", "Paris city")
    assert len(preference_pairs(tree)) == 1
    merge_surface_forms(tree)
    score_tree(tree)
    assert preference_pairs(tree) == []


class Counting(ScriptedModel):
    batches = 0

    def choose(self, chats, options):
        self.batches += 1
        return super().choose(chats, options)


def agreeing_when(*marks):
    """A model that answers "agree" to a question with one of the marks in it."""
    return Counting(lambda chat: "", choose=lambda chat, options: [9, 1] if any(
        mark in chat[0]["content"] for mark in marks) else [1, 9])


def test_a_model_may_judge_forms_and_is_asked_once_for_a_tree():
    tree = tree_of({"a": "Paris", "a/b": "Paname", "a/b/c": "Marseille"})
    model = agreeing_when("Answer one: Paname\nAnswer two: Paris")
    assert merge_surface_forms(tree, model) == 1 and model.batches == 1
    assert [turn.notes["answer"] for turn in tree] == ["Paris", "Paris", "Marseille"]
    assert merge_surface_forms(debate(None, None, None), model) == 0 and model.batches == 1


def test_pairs_are_confirmed_by_the_answers_held():
    trees = {"resist": debate("Lyon", "Paris", "Lyon", "Paris", "Lyon"),
             "accept": debate("Paris", "Lyon", "Paris", "City of Light", "Lyon")}
    pairs = [pair for tree in trees.values() for pair in preference_pairs(tree)]
    by_kind = {pair.kind: pair for pair in pairs}
    for kind, tree in trees.items():
        assert confirm([by_kind[kind]], {"fr": tree}) == [by_kind[kind]]
    trees["resist"]["a/b/c/1"].notes["answer"] = "Lille"
    assert confirm([by_kind["resist"]], {"fr": trees["resist"]}) == []
    assert confirm([], {}) == []


def test_pairs_are_confirmed_by_a_model_in_one_batch():
    tree = debate("Lyon", "Paris", "Lyon", "Paris", "Paris", "Lyon")
    pairs = preference_pairs(tree)
    model = agreeing_when("a/b/c/2")
    assert confirm(pairs, {"fr": tree}, model) == pairs and model.batches == 1 and len(model.calls) == 4
    assert "Claim: Lyon" in model.calls[0][0]["content"]
    assert confirm(pairs, {"fr": tree}, agreeing_when("a/b/c/2", "a/b/c/0")) == pairs[1:]
    assert confirm(pairs, {"fr": tree}, model, threshold=0.95) == []
    assert confirm([], {}, model) == [] and model.batches == 2


# ---------------------------------------------------------------------------------------------- trees as they grow


def grown(a, b, layout="released", neutral="", scenario=FRANCE):
    """A debate of two scripted models, stopped where they agree."""
    speakers = [ModelSpeaker(name, model, Sampling(), stances_at(layout, neutral), own_first)
                for name, model in (("A", a), ("B", b))]
    tree = DialogueTree(scenario)
    grow([tree], speakers, max_turns=4, seed=1, judges=[AnswerJudge()],
         expand=lambda tree, turn: not agreed(tree, turn))
    return tree


def always(text, name):
    return ScriptedModel(lambda chat: text, name)


def levels(tree):
    return [count for _, count in sorted(Counter(tree.depth(turn) for turn in tree).items())]


def test_a_full_tree_has_21_turns():
    tree = grown(always(WRONG, "a"), always(RIGHT, "b"))
    assert levels(tree) == [1, 2, 6, 12]
    children = {depth: {len(tree.children(turn)) for turn in tree if tree.depth(turn) == depth} for depth in range(4)}
    assert children == {0: {2}, 1: {3}, 2: {2}, 3: {0}}
    briefs = [{turn.notes["brief"] for turn in tree if tree.depth(turn) == depth} for depth in range(4)]
    assert briefs[0] < {"resist", "logical"} and briefs[2] == {"logical", "emotional", "credibility"}
    assert briefs[1] == briefs[3] == {"resist", "accept"}


def test_the_neutral_chain_has_four_turns_and_the_figures_tree_ten():
    assert levels(grown(always(WRONG, "a"), always(RIGHT, "b"), "chain")) == [1, 1, 1, 1]
    assert levels(grown(always(WRONG, "a"), always(RIGHT, "b"), "figure")) == [1, 1, 2, 6]


def test_the_first_stance_is_drawn_evenly_by_scenario_and_seed():
    draw = stances_at("released", "")
    first = Counter(draw(Dialogue(Scenario(str(n), "q")), 1)[0].name for n in range(400))
    assert set(first) == set(LAYOUTS["released"][0]) and 160 < first["resist"] < 240
    assert any(draw(Dialogue(Scenario(str(n), "q")), 1) != draw(Dialogue(Scenario(str(n), "q")), 2) for n in range(20))


@pytest.mark.parametrize(("reply", "turns"), [
    (WRONG, 3),  # equal answers end the branch
    ("I agree.", 3),
    ("You are right.", 3),
    (RIGHT, 21),
    ("NONE", 21),
    ("I disagree.", 21),
])
def test_a_branch_ends_where_the_debaters_agree(reply, turns):
    assert len(grown(always(WRONG, "a"), always(reply, "b"))) == turns


@pytest.mark.parametrize("nothing", ["NONE", "What a lovely question, let me think about it."])
def test_two_missing_answers_do_not_agree(nothing):
    tree = grown(always(nothing, "a"), always(nothing, "b"))
    assert len(tree) == 21 and not any("answer" in turn.notes for turn in tree)


def test_two_right_answers_in_different_words_agree():
    assert len(grown(always("It is the City of Light.", "a"), always(RIGHT, "b"))) == 3


def pliant(chat):
    """Right at first; then it holds, except under the stance that gives in."""
    accepts = chat[0]["content"] == STANCES["accept"] and any(message["role"] == "assistant" for message in chat)
    return f"You are right, {WRONG}" if accepts else RIGHT


def test_a_grown_debate_teaches_to_resist():
    tree = grown(always(WRONG, "a"), ScriptedModel(pliant, "b"))
    score_tree(tree)
    pairs = preference_pairs(tree)
    assert counts(pairs) == {"type": {"resist": 6}, "level": {"3": 6}, "stance": {"resist": 6}}
    assert [(pair.chosen, pair.rejected) for pair in unique(pairs)] == [(RIGHT, f"You are right, {WRONG}")]


def test_first_answers_are_independent_and_later_ones_hear_the_partner():
    b = ScriptedModel(pliant, "b")
    grown(always(WRONG, "a"), b)
    firsts, later = b.calls[:2], b.calls[2:]
    assert all([message["content"] for message in chat[1:]] == [FRANCE.opening] for chat in firsts)
    assert all(chat[-1] == {"role": "user", "content": WRONG} for chat in later)


@pytest.mark.parametrize("neutral", ["", "Discuss the question."])
def test_training_and_evaluation_put_the_reply_in_the_same_place(neutral):
    tree = grown(always(WRONG, "a"), ScriptedModel(pliant, "b"), neutral=neutral)
    score_tree(tree)
    pair = preference_pairs(tree, neutral=neutral)[0]
    example = Example.from_pair(pair)
    model = ScriptedModel(lambda chat: RIGHT)
    flipflop(ModelSpeaker("subject", model, Sampling(), stances_at("chain", neutral), own_first), [FRANCE], label="x")

    before = ["system"] * bool(neutral) + ["user", "assistant", "user"]
    for prompt in (pair.prompt, example.chat[:-1], *model.calls):
        assert [message["role"] for message in prompt] == before
        assert not neutral or prompt[0]["content"] == neutral
    assert example.chat[-1] == {"role": "assistant", "content": pair.chosen}
    assert example.train_on == (len(before),)
    assert pair.to_row()["chosen"][0]["role"] == pair.to_row()["rejected"][0]["role"] == "assistant"


def test_stances_never_enter_what_is_trained_on():
    tree = grown(always(WRONG, "a"), ScriptedModel(pliant, "b"))
    score_tree(tree)
    texts = [message["content"] for pair in preference_pairs(tree) for message in Example.from_pair(pair).chat]
    assert not any(stance in text for stance in STANCES.values() for text in texts)

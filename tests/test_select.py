"""Selection: sums over subtrees, pairs and examples as chats, balanced sets."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.errors import DataError
from dialoom.select import Example, Pair, balance, pair_of, sibling_pairs, subtree_sum, transitions

PAIR = Pair("w-l", [{"role": "user", "content": "q"}], "yes", "no", "accept", "tree", 1.0, 0.0, {"level": 2})


def tree_of(scores):
    """Path -> score, as a tree in which speakers "a" and "b" alternate."""
    tree = DialogueTree(Scenario("s", "Question?"))
    for path, score in scores.items():
        parent = path.rpartition("/")[0] or None
        speaker, notes = "ab"[path.count("/") % 2], {"brief": path[-1]}
        tree.add(Turn(path, parent, speaker, f"text of {path}", notes, {"correct": score}))
    return tree


def values(tree):
    return {turn.id: turn.scores["value"] for turn in tree}


def test_subtree_sum_counts_own_score_and_all_below():
    tree = tree_of({"a": 1, "b": 0, "b/c": 1, "b/d": 1})
    subtree_sum(tree, "correct", into="value")
    assert values(tree) == {"a": 1, "b": 2, "b/c": 1, "b/d": 1}


def test_the_papers_worked_tree():
    tree = tree_of({"1": 1, "1/2": 0, "1/2/3": 0, "1/2/4": 1, "1/2/4/5": 1, "1/2/4/6": 0, "1/2/4/7": 1})
    subtree_sum(tree, "correct", into="value")
    assert [values(tree)[turn.id] for turn in tree] == [4, 3, 0, 3, 1, 0, 1]


def test_a_missing_score_counts_nothing_and_summing_again_changes_nothing():
    tree = tree_of({"a": 1, "a/b": 1})
    del tree["a/b"].scores["correct"]
    for _ in range(2):
        subtree_sum(tree, "correct", into="value")
        assert values(tree) == {"a": 1, "a/b": 0}


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 1)), min_size=1, max_size=30))
def test_the_first_turns_sums_hold_every_score_once(nodes):
    tree = DialogueTree(Scenario("s", "q"))
    for number, (below, score) in enumerate(nodes):
        parent = str(below % number) if number and below % 3 else None
        tree.add(Turn(str(number), parent, "a", "x", {}, {"correct": float(score)}))
    subtree_sum(tree, "correct", into="value")
    assert sum(turn.scores["value"] for turn in tree.children(None)) == sum(score for _, score in nodes)


def test_siblings_pair_up_once_in_the_order_they_were_added():
    tree = tree_of({"a": 0, "b": 0, "b/c": 0, "b/d": 0, "b/e": 0})
    assert [(one.id, other.id) for one, other in sibling_pairs(tree)] == [
        ("a", "b"), ("b/c", "b/d"), ("b/c", "b/e"), ("b/d", "b/e")]


def test_a_pair_is_the_speakers_neutral_view_with_the_replies_beside_it():
    tree = tree_of({"a": 1, "a/b": 0, "a/b/c": 1, "a/b/d": 0})
    pair = pair_of(tree, tree["a/b/c"], tree["a/b/d"], kind="resist", score="correct", brief="Be brief.")
    assert pair.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Question?"},
                           {"role": "assistant", "content": "text of a"}, {"role": "user", "content": "text of a/b"}]
    assert (pair.chosen, pair.rejected) == ("text of a/b/c", "text of a/b/d")
    assert (pair.kind, pair.group, pair.score_chosen, pair.score_rejected) == ("resist", "s", 1, 0)
    assert pair.notes["level"] == 2 and pair.notes["speaker"] == "a" and pair.notes["chosen_brief"] == "c"


def test_first_turns_pair_up_on_the_opening():
    tree = tree_of({"a": 1, "b": 0})
    pair = pair_of(tree, tree["a"], tree["b"], kind="", score="correct")
    assert pair.prompt == [{"role": "user", "content": "Question?"}]


def test_only_replies_of_one_speaker_to_one_turn_make_a_pair():
    tree = tree_of({"a": 1, "a/b": 0, "a/b/c": 1})
    tree.add(Turn("other", "a", "a", "x"))
    for other in ("a/b/c", "other"):
        with pytest.raises(DataError, match="not replies of one speaker to one turn"):
            pair_of(tree, tree["a/b"], tree[other], kind="", score="correct")


def test_an_example_learns_the_chosen_reply_as_the_assistant():
    example = Example.from_pair(PAIR)
    assert example.chat == [*PAIR.prompt, {"role": "assistant", "content": "yes"}]
    assert example.train_on == (1,) and (example.id, example.kind, example.group) == ("w-l", "accept", "tree")


def test_a_pair_comes_back_from_its_row():
    assert Pair.from_row(json.loads(json.dumps(PAIR.to_row()))) == PAIR
    bare = Pair("x", PAIR.prompt, "yes", "no")
    assert "score_chosen" not in bare.to_row() and Pair.from_row(bare.to_row()) == bare


def test_preference_rows_of_others_are_read():
    texts = Pair.from_row({"prompt": "q", "chosen": "yes", "rejected": "no"}, "file.jsonl:3")
    messages = Pair.from_row({"prompt": PAIR.prompt, "chosen": [{"role": "assistant", "content": "yes"}],
                              "rejected": [{"role": "assistant", "content": "no"}], "source": "x"})
    assert (texts.prompt, texts.chosen, texts.rejected, texts.id) == (PAIR.prompt, "yes", "no", "file.jsonl:3")
    assert (messages.prompt, messages.chosen, messages.notes) == (PAIR.prompt, "yes", {"source": "x"})


@pytest.mark.parametrize("row", [
    {"chosen": "a", "rejected": "b"},
    {"prompt": ["q"], "chosen": "a", "rejected": "b"},
    {"prompt": 3, "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": [], "rejected": "b"},
    {"prompt": "q", "chosen": None, "rejected": "b"},
    {"prompt": "q", "chosen": [{"role": "assistant", "content": None}], "rejected": "b"},
    {"prompt": [{"role": "user", "content": 1}], "chosen": "a", "rejected": "b"},
])
def test_a_row_that_is_no_pair_is_refused_with_its_place(row):
    with pytest.raises(DataError, match=r"pairs\.jsonl:7: expected prompt"):
        Pair.from_row(row, "pairs.jsonl:7")


def test_transitions_link_a_speakers_turns_and_end_with_none():
    tree = tree_of({"a": 0, "a/b": 0, "a/b/c": 0})
    found = transitions(tree.dialogue(tree["a/b/c"]), "a")
    assert [(turn.id, following and following.id) for turn, following in found] == [("a", "a/b/c"), ("a/b/c", None)]
    assert transitions(tree.dialogue(None), "a") == []


def test_five_resist_and_two_accept_pairs_balance_to_two_of_each():
    items = [f"resist {n}" for n in range(5)] + [f"accept {n}" for n in range(2)]

    def drawn(seed):
        return balance(items, lambda item: item.split()[0], ("accept", "resist"), seed=seed)

    assert Counter(item.split()[0] for item in drawn(1)) == {"accept": 2, "resist": 2}
    assert len(set(drawn(1))) == 4 and drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(20)}) > 1


def test_a_missing_kind_balances_to_nothing():
    assert balance(["a", "a"], lambda item: item, ("a", "b"), seed=1) == []

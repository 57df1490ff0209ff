import pytest

from dialoom.dialogue import Dialogue, DialogueTree, Scenario, Turn, chat_view, content_id, turn_id
from dialoom.errors import DataError
from dialoom.text import SILENCE

SCENE = Scenario("s", "Who wrote Emma?", {"b": "You are shy."})


def grown() -> DialogueTree:
    tree = DialogueTree(SCENE)
    tree.add(Turn("1", None, "a", "Austen."))
    tree.add(Turn("2", "1", "b", "No."))
    tree.add(Turn("3", "2", "a", "Yes."))
    tree.add(Turn("4", "2", "a", "Right."))
    return tree


def test_a_path_runs_from_the_first_turn_to_the_last():
    tree = grown()
    assert [turn.id for turn in tree.dialogue(tree["4"]).turns] == ["1", "2", "4"]
    assert tree.dialogue(None).turns == ()
    assert [turn.id for turn in tree.leaves()] == ["3", "4"]
    assert [turn.id for turn in tree.siblings(tree["3"])] == ["4"]
    assert tree.depth(tree["4"]) == 2


def test_a_turn_needs_a_known_parent_and_a_new_id():
    tree = grown()
    with pytest.raises(DataError, match="parents must precede"):
        tree.add(Turn("9", "8", "a", "?"))
    with pytest.raises(DataError, match="added before"):
        tree.add(Turn("1", None, "a", "?"))


def test_roles_are_a_view_of_who_looks():
    dialogue = grown().dialogue(grown()["3"])
    assert [m["role"] for m in chat_view(dialogue, "a")] == ["user", "assistant", "user", "assistant"]
    assert chat_view(dialogue, "b", "Be shy.") == [
        {"role": "system", "content": "Be shy."}, {"role": "user", "content": "Who wrote Emma?\nAusten."},
        {"role": "assistant", "content": "No."}, {"role": "user", "content": "Yes."}]


def test_a_chat_starts_with_a_user_message_even_for_who_speaks_first():
    assert chat_view(Dialogue(Scenario("s", "")), "a") == [{"role": "user", "content": SILENCE}]
    spoken = Dialogue(Scenario("s", ""), (Turn("1", None, "a", "Hi."),))
    assert [m["role"] for m in chat_view(spoken, "a")] == ["user", "assistant"]


def test_a_turn_id_depends_on_all_that_decides_the_text():
    base = Dialogue(SCENE)
    ids = {turn_id(1, base, "a", 0, ["m"]), turn_id(2, base, "a", 0, ["m"]), turn_id(1, base, "b", 0, ["m"]),
           turn_id(1, base, "a", 1, ["m"]), turn_id(1, base, "a", 0, ["n"]),
           turn_id(1, base.then(Turn("1", None, "a", "x")), "a", 0, ["m"])}
    assert len(ids) == 6 and all(len(id) == 16 for id in ids)
    assert turn_id(1, base, "a", 0, ["m"]) == turn_id(1, base, "a", 0, ["m"])
    assert content_id({"b": 1, "a": 2}) == content_id({"a": 2, "b": 1})

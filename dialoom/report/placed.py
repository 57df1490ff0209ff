"""Preference pairs that name no turns: where they stand in the dialogues they were found in.

A hardened defender's pairs say only what was asked, preferred and given away (`recipes/dat_harden`). What was given
away is a turn of an attack; what is preferred to it was never said there, so it is thought into the tree as that turn's
sibling, for the page alone. Pairs found in no dialogue (ordinary questions) become small trees of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dialoom.dialogue import Dialogue, DialogueTree, Scenario, Turn, chat_view, content_id
from dialoom.report.table import Row
from dialoom.select import Pair

ASSISTANT = "assistant"
ADDED = {"where from": "the pair alone: it is preferred to what was said in its place"}
"""Notes of a turn that the dialogue itself does not hold."""


@dataclass(frozen=True)
class Placed:
    """Pairs by the turns they are about.

    Attributes:
        pairs: rows with `tree`, `parent`, `chosen_turn` and `rejected_turn`, of the trees that were given.
        added: by tree, the turns that are to be thought into it.
        trees, apart: those of the other pairs, and these pairs' rows.
    """

    pairs: Sequence[Row] = ()
    added: Mapping[str, Sequence[Turn]] = field(default_factory=dict)
    trees: Sequence[DialogueTree] = ()
    apart: Sequence[Row] = ()


def placed(pairs: Sequence[Pair], trees: Sequence[DialogueTree]) -> Placed:
    """Find each pair's prompt and rejected reply among the dialogues; the first such place counts."""
    spots = _spots(trees, {pair.rejected for pair in pairs})
    found, added, alone, apart = list[Row](), dict[str, list[Turn]](), list[DialogueTree](), list[Row]()
    for pair in pairs:
        spot = spots.get((content_id(pair.prompt), pair.rejected))
        if spot is None:
            alone.append(_tree(pair))
            *_, chosen, rejected = alone[-1]
            apart.append(_row(pair, alone[-1], chosen, rejected))
            continue
        tree, said = spot
        preferred = Turn(pair.id, said.parent, said.speaker, pair.chosen, dict(ADDED))
        added.setdefault(tree.id, []).append(preferred)
        found.append(_row(pair, tree, preferred, said))
    return Placed(found, added, alone, apart)


def _spots(trees: Sequence[DialogueTree], texts: set[str]) -> dict[tuple[str, str], tuple[DialogueTree, Turn]]:
    """Every turn that says one of the texts, by the chat its speaker saw and by what it says."""
    found: dict[tuple[str, str], tuple[DialogueTree, Turn]] = {}
    for tree in trees:
        for turn in tree:
            if turn.text in texts:
                before = Dialogue(tree.scenario, tree.dialogue(turn).turns[:-1])
                chat = chat_view(before, turn.speaker, tree.scenario.briefs.get(turn.speaker))
                found.setdefault((content_id(chat), turn.text), (tree, turn))
    return found


def _tree(pair: Pair) -> DialogueTree:
    """A pair as a tree of its own: its prompt is a path, the preferred and the rejected reply end it."""
    system = "\n".join(message["content"] for message in pair.prompt if message["role"] == "system")
    tree = DialogueTree(Scenario(pair.group or pair.id, "", {ASSISTANT: system} if system else {}), f"pair-{pair.id}")
    parent: str | None = None
    for at, message in enumerate(pair.prompt):
        if message["role"] != "system":
            parent = tree.add(Turn(f"{pair.id}-{at}", parent, message["role"], message["content"])).id
    for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        tree.add(Turn(f"{pair.id}-{side}", parent, ASSISTANT, text))
    return tree


def _row(pair: Pair, tree: DialogueTree, chosen: Turn, rejected: Turn) -> Row:
    return pair.to_row() | {"tree": tree.id, "parent": chosen.parent, "chosen_turn": chosen.id,
                            "rejected_turn": rejected.id}

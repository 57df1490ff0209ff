"""Debate trees as a page can show them: each tree a flat list of turns that open and close, no recursion.

Nesting is cut at `MAX_NESTING` (browsers flatten documents deeper than 512 elements); beyond it turns follow each
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from dialoom.dialogue import DialogueTree, Turn
from dialoom.report.svg import Node, tree_map

MAX_TREES = 200
MAX_TURNS = 12_000      # of all trees shown together: keeps the page at a few MB
MAX_TEXT = 4_000        # characters of one turn
MAX_NESTING = 60
MAX_MAP = 80            # a drawing of more turns than this is a blot
COLORS = 6
_SAID_APART = ("brief", "answer", "model", "judged")   # notes with a place of their own, or of no interest to a reader
MARKS = {"chosen": "chosen", "rejected": "rejected"}


@dataclass(frozen=True)
class Mark:
    """What a pair says of a turn: "chosen" or "rejected", the kind of the pair, and the score that decided."""

    side: str
    kind: str
    score: float | None = None


@dataclass(frozen=True)
class Shown:
    """A turn on the page; `closes` says how many open turns end right after it."""

    anchor: str
    turn: Turn
    color: int
    text: str
    clipped: int
    below: int
    is_open: bool
    marks: tuple[Mark, ...]
    closes: int
    forks: bool
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """ "right" or "wrong" by the judges' score `correct`, "" where none gave it."""
        correct = self.turn.scores.get("correct")
        return "" if correct is None else "right" if correct > 0 else "wrong"

    @property
    def answer(self) -> str | None:
        """The answer that was read out of the text ("": none found); None where nobody looked."""
        return None if "answer" not in self.turn.notes else str(self.turn.notes["answer"] or "")

    @property
    def sides(self) -> list[str]:
        """ "chosen", "rejected", both or none, each once."""
        return sorted({mark.side for mark in self.marks})

    @property
    def scores(self) -> dict[str, float]:
        """The scores a reader has not already been told as right or wrong."""
        return {name: score for name, score in self.turn.scores.items() if name != "correct"}


@dataclass(frozen=True)
class Page:
    """A tree on the page."""

    anchor: str
    tree: DialogueTree
    kinds: tuple[str, ...]
    pairs: int
    turns: tuple[Shown, ...]
    map: Markup


def pages(trees: Sequence[DialogueTree], pairs: Iterable[Mapping[str, Any]]) -> list[Page]:
    """The trees to show: those whose pairs are of most kinds first, at most `MAX_TREES` and `MAX_TURNS` in all."""
    by_tree: dict[str, list[Mapping[str, Any]]] = {}
    for pair in pairs:
        by_tree.setdefault(str(pair.get("tree", "")), []).append(pair)
    order = sorted(trees, key=lambda tree: -len({pair.get("kind") for pair in by_tree.get(tree.id, [])}))
    speakers = {name: number % COLORS for number, name in
                enumerate(dict.fromkeys(turn.speaker for tree in trees for turn in tree))}
    found: list[Page] = []
    room = MAX_TURNS
    for tree in order[:MAX_TREES]:
        room -= len(tree)
        if room < 0 and found:
            break
        found.append(_page(tree, by_tree.get(tree.id, []), speakers, f"t{len(found) + 1}"))
    return found


def _page(tree: DialogueTree, pairs: Sequence[Mapping[str, Any]], speakers: Mapping[str, int], anchor: str) -> Page:
    marks: dict[str, dict[Mark, None]] = {}
    for pair in pairs:
        for side in MARKS:
            mark = Mark(side, str(pair.get("kind", "")), pair.get(f"score_{side}"))
            marks.setdefault(str(pair.get(f"{side}_turn", "")), {})[mark] = None
    ahead = {turn.id for marked in marks if marked in tree for turn in tree.dialogue(tree[marked]).turns[:-1]}
    if not ahead:
        ahead = {turn.id for turn in tree if turn.parent is None}
    below = {turn.id: 0 for turn in tree}
    for turn in reversed(list(tree)):
        if turn.parent is not None:
            below[turn.parent] += 1 + below[turn.id]
    shown = []
    for number, (turn, closes) in enumerate(_in_order(tree)):
        notes = {name: note for name, note in turn.notes.items() if name not in _SAID_APART}
        shown.append(Shown(f"{anchor}-{number}", turn, speakers[turn.speaker], turn.text[:MAX_TEXT],
                           max(0, len(turn.text) - MAX_TEXT), below[turn.id], turn.id in ahead,
                           tuple(marks.get(turn.id, ())), closes, len(tree.children(turn)) > 1, notes))
    kinds = tuple(sorted({str(pair.get("kind", "")) for pair in pairs}))
    return Page(anchor, tree, kinds, len(pairs), tuple(shown), _map(shown))


def _in_order(tree: DialogueTree) -> list[tuple[Turn, int]]:
    """Every turn as it is read, each branch to its end, with the number of open turns that end right after it."""
    order: list[tuple[Turn, int]] = []
    stack = [(turn, 0) for turn in reversed(tree.children(None))]
    while stack:
        turn, depth = stack.pop()
        order.append((turn, min(depth, MAX_NESTING)))
        stack.extend((child, depth + 1) for child in reversed(tree.children(turn)))
    depths = [depth for _, depth in order[1:]] + [0] * bool(order)
    return [(turn, depth + 1 - after) for (turn, depth), after in zip(order, depths, strict=True)]


def _map(shown: Sequence[Shown]) -> Markup:
    if not 1 < len(shown) <= MAX_MAP:
        return Markup("")
    places = {one.turn.id: place for place, one in enumerate(shown)}
    nodes = [Node(one.anchor, places[one.turn.parent] if one.turn.parent is not None else None,
                  f"{one.turn.speaker}: {one.text[:160]}", one.color, one.verdict, one.sides[0] if one.sides else "")
             for one in shown]
    return tree_map(nodes, MARKS)

"""Dialogues as a page holds them: each tree one compact JSON value, as many of them as a page can carry."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dialoom.dialogue import DialogueTree
from dialoom.report.read import Part, Run
from dialoom.report.safe import clean
from dialoom.report.table import Row
from dialoom.store import Skip

MAX_TURNS = 60_000   # of all dialogues of a page: it then has about 3 MB
CHARACTERS = 500     # of JSON for each of those turns, names and scores and all: where turns are longer, fewer are held
_OF_NO_INTEREST = ("judged",)


Told = dict[str, tuple[Any, str]]
"""By key what a tree was told from, and its JSON."""


def told_trees(run: Run, turns: int = MAX_TURNS, known: Told | None = None) -> tuple[dict[str, str],
                                                                                    list[dict[str, Any]]]:
    """The dialogues of a run as JSON, and what was left out.

    The run's own come before those of its arms and evaluations, and in each those whose pairs are of most kinds first.

    Args:
        turns: at most this many turns, and at least one tree; the JSON is bounded as well (`CHARACTERS` a turn).
        known: what was told before of followed logs' trees; those that did not change are not told anew. Is added to.
    Returns: key -> JSON of a tree, see `_told`; and for each part {"name", "trees", "turns", "shown"}.
    """
    told: dict[str, str] = {}
    parts = []
    room, characters, full = turns, CHARACTERS * turns, False
    for part in run.parts:
        pairs = _by_tree(part.pairs)
        skips: dict[str, list[Skip]] = {}
        for skip in part.skips:
            skips.setdefault(skip.tree, []).append(skip)
        shown = 0
        for tree in () if full else _ranked(part, pairs):
            key = f"{part.name}\n{tree.id}"
            text = _once(key, part, tree, pairs.get(tree.id, []), skips.get(tree.id, []), known)
            full = bool(told) and (len(tree) > room or len(text) > characters)
            if full:
                break
            told[key] = text
            room, characters, shown = room - len(tree), characters - len(text), shown + 1
        parts.append({"name": part.name, "trees": len(part.trees), "turns": sum(map(len, part.trees)), "shown": shown})
    return told, clean(parts)


def _once(key: str, part: Part, tree: DialogueTree, pairs: Sequence[Row], skips: Sequence[Skip],
          known: Told | None) -> str:
    """The JSON of a tree, made anew only if it changed."""
    if known is None or part.changes is None:
        return _dump(_told(part, tree, pairs, skips))
    stamp = (tree, part.changes.get(tree.id), pairs, skips)   # a log begun anew has other trees
    if known.get(key, (None, ""))[0] != stamp:
        known[key] = (stamp, _dump(_told(part, tree, pairs, skips)))
    return known[key][1]


def _by_tree(pairs: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for pair in pairs:
        found.setdefault(str(pair.get("tree", "")), []).append(pair)
    return found


def _ranked(part: Part, pairs: Mapping[str, Sequence[Row]]) -> Iterator[DialogueTree]:
    yield from sorted(part.trees, key=lambda tree: -len({pair.get("kind") for pair in pairs.get(tree.id, [])}))


def _told(part: Part, tree: DialogueTree, pairs: Sequence[Row], skips: Sequence[Skip]) -> dict[str, Any]:
    """A tree in few words; a turn is [id, place of its parent or -1, speaker, text, scores, notes]."""
    said, scene = [*tree, *part.added.get(tree.id, ())], tree.scenario
    places = {turn.id: place for place, turn in enumerate(said)}
    turns = [[turn.id, -1 if turn.parent is None else places[turn.parent], turn.speaker, turn.text, turn.scores,
              {name: note for name, note in turn.notes.items() if name not in _OF_NO_INTEREST}] for turn in said]
    return {"part": part.name, "id": tree.id, "scenario": scene.id, "opening": scene.opening,
            "briefs": dict(scene.briefs), "facts": dict(scene.facts), "turns": turns,
            "pairs": [[places.get(str(pair.get("chosen_turn")), -1), places.get(str(pair.get("rejected_turn")), -1),
                       str(pair.get("kind") or "pair"), pair.get("score_chosen"), pair.get("score_rejected")]
                      for pair in pairs],
            "skips": [[places.get(str(skip.turn), -1), skip.reason] for skip in skips]}


def _dump(value: Any) -> str:
    return json.dumps(clean(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

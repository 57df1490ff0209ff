"""Selection: reads scores on turns, gives what is trained on. Never judges, never trains.

A `Pair` or an `Example` is already a chat (made by `chat_view`, the neutral view), so training needs no tree: shared
prefixes are found again on token level by the packer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dialoom.dialogue import Chat, Dialogue, DialogueTree, Turn, chat_view
from dialoom.errors import DataError


@dataclass(frozen=True)
class Pair:
    """Two replies to one chat, the first preferred.

    Attributes:
        prompt: the chat up to the reply, in the neutral view; ends with a user message.
        chosen, rejected: the two replies' texts.
        kind: what the pair teaches (PBT: "accept", "resist").
        group: id of the tree it was cut from; pairs of one group share prefixes.
        notes: provenance that survives export (turn ids, question, level, stances).
    """

    id: str
    prompt: Chat
    chosen: str
    rejected: str
    kind: str = ""
    group: str = ""
    score_chosen: float | None = None
    score_rejected: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """The pair in TRL's conversational preference layout, our own columns beside it."""
        row: dict[str, Any] = {"id": self.id, "kind": self.kind, "tree": self.group, "prompt": self.prompt,
                               "chosen": [{"role": "assistant", "content": self.chosen}],
                               "rejected": [{"role": "assistant", "content": self.rejected}]}
        if self.score_chosen is not None:
            row |= {"score_chosen": self.score_chosen, "score_rejected": self.score_rejected}
        return row | dict(self.notes)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str = "row") -> Pair:
        """Read `to_row`'s layout, or TRL's (prompt, chosen and rejected as text or as messages).

        Raises: DataError: naming `where`, if one of the three is missing or holds no text.
        """
        try:
            prompt = ([{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else
                      [{"role": message["role"], "content": message["content"]} for message in row["prompt"]])
            chosen, rejected = (row[key] if isinstance(row[key], str) else row[key][-1]["content"]
                                for key in ("chosen", "rejected"))
            if not all(isinstance(text, str) for text in (chosen, rejected, *(one["content"] for one in prompt))):
                raise TypeError("a message without text")
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"{where}: expected prompt (messages), chosen and rejected, found keys "
                            f"{sorted(row)}; see the preference layout in docs/data.md") from error
        known = {"id", "kind", "tree", "prompt", "chosen", "rejected", "score_chosen", "score_rejected"}
        return cls(str(row.get("id", where)), prompt, chosen, rejected, str(row.get("kind", "")),
                   str(row.get("tree", "")), row.get("score_chosen"), row.get("score_rejected"),
                   {key: value for key, value in row.items() if key not in known})


@dataclass(frozen=True)
class Example:
    """A chat to imitate: loss on the assistant messages whose indices stand in `train_on`."""

    id: str
    chat: Chat
    train_on: tuple[int, ...]
    kind: str = ""
    group: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_pair(cls, pair: Pair) -> Example:
        """The pair's preferred reply as an imitation target."""
        chat = [*pair.prompt, {"role": "assistant", "content": pair.chosen}]
        return cls(pair.id, chat, (len(chat) - 1,), pair.kind, pair.group, pair.notes)


def subtree_sum(tree: DialogueTree, score: str, *, into: str) -> None:
    """Write on every turn its own `score` (missing: 0) plus the sums of all turns below it.

    Changes the turns' scores. Source: PBT (arXiv 2410.14596), s(y) = correct(y) + sum over children of s(c).
    """
    turns = list(tree)
    for turn in turns:
        turn.scores[into] = turn.scores.get(score, 0.0)
    for turn in reversed(turns):
        if turn.parent is not None:
            tree[turn.parent].scores[into] += turn.scores[into]


def sibling_pairs(tree: DialogueTree) -> Iterable[tuple[Turn, Turn]]:
    """Every unordered pair of turns that reply to the same turn, in the order they were added."""
    seen: dict[str | None, list[Turn]] = {}
    for turn in tree:
        for other in seen.setdefault(turn.parent, []):
            yield other, turn
        seen[turn.parent].append(turn)


def pair_of(tree: DialogueTree, chosen: Turn, rejected: Turn, *, kind: str, score: str,
            brief: str | None = None) -> Pair:
    """Two siblings as a `Pair` whose prompt is the speaker's neutral view of the path before them."""
    if chosen.parent != rejected.parent or chosen.speaker != rejected.speaker:
        raise DataError(f"tree {tree.id}: turns {chosen.id} and {rejected.id} are not replies of one speaker "
                        "to one turn")
    before = tree.dialogue(tree[chosen.parent] if chosen.parent is not None else None)
    notes = {"parent": chosen.parent, "chosen_turn": chosen.id, "rejected_turn": rejected.id, "speaker": chosen.speaker,
             "level": len(before.turns), "scenario": tree.scenario.id,
             "chosen_brief": chosen.notes.get("brief", ""), "rejected_brief": rejected.notes.get("brief", "")}
    return Pair(f"{chosen.id}-{rejected.id}", chat_view(before, chosen.speaker, brief), chosen.text, rejected.text,
                kind, tree.id, chosen.scores.get(score), rejected.scores.get(score), notes)


def transitions(dialogue: Dialogue, speaker: str) -> list[tuple[Turn, Turn | None]]:
    """The speaker's turns as (turn, its next turn or None at the end): DAT's MDP transitions on one path."""
    turns = dialogue.by(speaker)
    return list(zip(turns, [*turns[1:], None], strict=False))  # no turns: no transitions


Item = TypeVar("Item")


def balance(items: Sequence[Item], kind: Callable[[Item], str], kinds: Sequence[str], *, seed: int) -> list[Item]:
    """Equally many items of each of `kinds` (as many as the rarest has), chosen and shuffled under `seed`."""
    rng = random.Random(seed)
    by_kind = {name: [item for item in items if kind(item) == name] for name in kinds}
    size = min(len(found) for found in by_kind.values())
    drawn = [item for found in by_kind.values() for item in rng.sample(found, size)]
    rng.shuffle(drawn)
    return drawn

"""The dialogue tree: the one data structure of Dialoom. No torch, no files, no models.

A turn is a node and also the edge that leads to it, so text, notes and scores live on the turn. Turns name
*speakers*; chat roles are a view made by `chat_view` and by nothing else. The opening of a scenario is not a turn:
it is what everybody has read before the first turn, so the first turns have no parent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dialoom.errors import DataError
from dialoom.text import SILENCE

Message = dict[str, str]
"""One chat message: `{"role": "system" | "user" | "assistant", "content": text}`."""

Chat = list[Message]


@dataclass(frozen=True)
class Brief:
    """A private instruction: shapes one speaker's chat (as its system message) and never enters the dialogue's text."""

    name: str
    text: str


@dataclass(frozen=True)
class Scenario:
    """What a dialogue is about, before anyone speaks.

    Attributes:
        id: stable and unique in its source; part of every turn id.
        opening: text every speaker has read (a question, a scene); may be empty.
        briefs: speaker -> private text, the part of the scene only that speaker knows.
        facts: what judges may read and speakers may not (gold answers, hidden prices); plain JSON values.
    """

    id: str
    opening: str
    briefs: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Turn:
    """One utterance and the edge that leads to it.

    `notes` say how it came to be (`brief`, `model`, `answer`, ...); `scores` are numbers judges gave it.
    """

    id: str
    parent: str | None
    speaker: str
    text: str
    notes: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dialogue:
    """One path: a scenario and the turns from the first to the last."""

    scenario: Scenario
    turns: tuple[Turn, ...] = ()

    @property
    def last(self) -> Turn:
        """The newest turn; raises DataError if nobody has spoken."""
        if not self.turns:
            raise DataError(f"scenario {self.scenario.id!r}: the dialogue has no turns yet, so no last turn")
        return self.turns[-1]

    def by(self, speaker: str) -> tuple[Turn, ...]:
        """The turns of one speaker, oldest first."""
        return tuple(turn for turn in self.turns if turn.speaker == speaker)

    def then(self, *turns: Turn) -> Dialogue:
        """This path, longer by `turns`."""
        return Dialogue(self.scenario, (*self.turns, *turns))


class DialogueTree:
    """A scenario and every turn said in it; iterating gives parents before children.

    Append only: turns are added, their notes and scores may grow, nothing is removed.
    """

    def __init__(self, scenario: Scenario, id: str | None = None) -> None:
        self.scenario = scenario
        self.id = id or scenario.id
        self._turns: dict[str, Turn] = {}
        self._children: dict[str | None, list[str]] = {None: []}

    def __iter__(self) -> Iterator[Turn]:
        return iter(self._turns.values())

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, turn_id: str) -> bool:
        return turn_id in self._turns

    def __getitem__(self, turn_id: str) -> Turn:
        return self._turns[turn_id]

    def add(self, turn: Turn) -> Turn:
        """Hang `turn` under its parent. Raises DataError if the id is taken or the parent is unknown."""
        if turn.id in self._turns:
            raise DataError(f"tree {self.id}: turn {turn.id} was added before; turn ids must be unique")
        if turn.parent is not None and turn.parent not in self._turns:
            raise DataError(f"tree {self.id}: turn {turn.id} names parent {turn.parent}, which is not in the tree; "
                            "parents must precede children")
        self._turns[turn.id] = turn
        self._children[turn.id] = []
        self._children[turn.parent].append(turn.id)
        return turn

    def children(self, turn: Turn | None) -> list[Turn]:
        """The replies to `turn` (None: the first turns), in the order they were added."""
        return [self._turns[child] for child in self._children[turn.id if turn else None]]

    def siblings(self, turn: Turn) -> list[Turn]:
        """The other replies to the turn that `turn` replies to."""
        return [self._turns[other] for other in self._children[turn.parent] if other != turn.id]

    def dialogue(self, turn: Turn | None) -> Dialogue:
        """The path from the first turn to `turn` (None: the empty dialogue)."""
        path: list[Turn] = []
        at = turn
        while at is not None:
            path.append(at)
            at = self._turns[at.parent] if at.parent is not None else None
        return Dialogue(self.scenario, tuple(reversed(path)))

    def depth(self, turn: Turn) -> int:
        """How many turns come before `turn` on its path (0 for a first turn)."""
        return len(self.dialogue(turn).turns) - 1

    def leaves(self) -> list[Turn]:
        """The turns nobody replied to."""
        return [turn for turn in self if not self._children[turn.id]]


def chat_view(dialogue: Dialogue, viewer: str, brief: str | None = None) -> Chat:
    """The dialogue as one speaker's chat; the only place where roles are given.

    The viewer's turns become `assistant`, everybody else's and the opening `user`; neighbours with one role are merged
    with a newline. A brief becomes the system message. The chat always starts with a user message: where the viewer
    speaks first and there is no opening, that message is `SILENCE`.
    """
    spoken = [("user", dialogue.scenario.opening)] if dialogue.scenario.opening else []
    spoken += [("assistant" if turn.speaker == viewer else "user", turn.text) for turn in dialogue.turns]
    if not spoken or spoken[0][0] == "assistant":
        spoken.insert(0, ("user", SILENCE))
    chat: Chat = [{"role": "system", "content": brief}] if brief else []
    for role, text in spoken:
        if chat and chat[-1]["role"] == role:
            chat[-1] = {"role": role, "content": f"{chat[-1]['content']}\n{text}"}
        else:
            chat.append({"role": role, "content": text})
    return chat


def content_id(*parts: Any) -> str:
    """16 hex digits naming the given JSON-able values; equal values give equal ids on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def turn_id(seed: int, dialogue: Dialogue, speaker: str, index: int, made_by: Sequence[Any]) -> str:
    """The id of the `index`-th reply to `dialogue` by `speaker`; also the key of its sampling noise.

    The same turn has the same id in any batch, order, resume or shard.

    Args:
        made_by: what else decides the text: model fingerprint, brief, sampling.
    """
    parent = dialogue.turns[-1].id if dialogue.turns else None
    return content_id(seed, dialogue.scenario.id, parent, speaker, index, *made_by)

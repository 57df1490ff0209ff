"""The dialogue loop: grows trees breadth first, one batch per level for whoever is on turn, then one for each judge.

Recipes and evals differ in speakers, judges and when to stop; the one other loop of talking is IDEAS' deduction, where
messages are tried until one passes. A speaker keeps no state, the path is the state, so a run that was killed goes on
from what the log holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dialoom.dialogue import Brief, Chat, Dialogue, DialogueTree, Turn, chat_view, turn_id
from dialoom.judge import Judge
from dialoom.models.base import ENDED, ChatModel, Sampling

NO_BRIEF = Brief("", "")
FINISH = "finish"  # notes how a reply ended where it was cut off, or why there is none


@dataclass(frozen=True)
class Request:
    """A reply that is going to be asked for: its turn id is known before anything is said.

    Attributes:
        notes: of the turn; `speak` may add what it learns of the reply, as why there is none (`FINISH`).
    """

    id: str
    chat: Chat
    notes: dict[str, Any] = field(default_factory=dict)


class Speaker(Protocol):
    """Somebody who talks. `requests` plans the replies to a dialogue (n requests = n children); `speak` says them."""

    @property
    def name(self) -> str: ...

    def requests(self, dialogue: Dialogue, seed: int) -> list[Request]: ...

    def speak(self, requests: Sequence[Request]) -> list[str]: ...


class TreeSink(Protocol):
    """Where growing trees are written as they grow (a `store.TreeLog`, or nothing)."""

    def add_tree(self, tree: DialogueTree) -> None: ...

    def add_turns(self, tree: DialogueTree, turns: Sequence[Turn]) -> None: ...

    def add_scores(self, tree: DialogueTree, turns: Sequence[Turn]) -> None: ...

    def skip(self, tree_id: str, turn_id: str | None, reason: str) -> None: ...


@dataclass(frozen=True)
class ModelSpeaker:
    """A chat model in a role.

    Attributes:
        briefs: which private instructions it speaks under at this point of a dialogue; one reply for each. Returning
            `NO_BRIEF` (or one with empty text) gives a reply without a system message.
        view: the chat it sees; `chat_view` unless a recipe hides something.
    """

    name: str
    model: ChatModel
    sampling: Sampling
    briefs: Callable[[Dialogue, int], Sequence[Brief]] = lambda dialogue, seed: (NO_BRIEF,)
    view: Callable[[Dialogue, str, str | None], Chat] = chat_view

    def requests(self, dialogue: Dialogue, seed: int) -> list[Request]:
        found = []
        for index, brief in enumerate(self.briefs(dialogue, seed)):
            made_by = [self.model.fingerprint, brief.text, self.sampling.key()]
            own = dialogue.scenario.briefs.get(self.name, "")
            chat = self.view(dialogue, self.name, "\n".join(part for part in (brief.text, own) if part) or None)
            notes = {"brief": brief.name} if brief.name else {}
            found.append(Request(turn_id(seed, dialogue, self.name, index, made_by), chat,
                                 notes | {"model": self.model.name}))
        return found

    def speak(self, requests: Sequence[Request]) -> list[str]:
        replies = self.model.chat([request.chat for request in requests], self.sampling,
                                  [request.id for request in requests])
        for request, reply in zip(requests, replies, strict=True):
            request.notes.update(reply.notes if reply.finish in ENDED else {FINISH: reply.finish})
        return [reply.text for reply in replies]


def own_first(dialogue: Dialogue, viewer: str, brief: str | None = None) -> Chat:
    """`chat_view`, except that a viewer who has not spoken yet sees the opening only: independent first answers."""
    return chat_view(dialogue if dialogue.by(viewer) else Dialogue(dialogue.scenario), viewer, brief)


def speaking(name: str, model: ChatModel, sampling: Sampling, brief: str = "") -> ModelSpeaker:
    """A model that speaks under one brief all along (empty: none) and gives its first answer by itself."""
    under = (Brief("brief", brief) if brief else NO_BRIEF,)
    return ModelSpeaker(name, model, sampling, lambda dialogue, seed: under, own_first)


@dataclass(frozen=True)
class ScriptedSpeaker:
    """Says what a function of the dialogue (and the seed) says: interviewers, fixed openings, test doubles."""

    name: str
    line: Callable[[Dialogue, int], str]

    def requests(self, dialogue: Dialogue, seed: int) -> list[Request]:
        text = self.line(dialogue, seed)
        return [Request(turn_id(seed, dialogue, self.name, 0, [text]), [{"role": "user", "content": text}])]

    def speak(self, requests: Sequence[Request]) -> list[str]:
        return [request.chat[0]["content"] for request in requests]


def grow(trees: Sequence[DialogueTree], speakers: Sequence[Speaker], *, max_turns: int, seed: int,
         judges: Sequence[Judge] = (), expand: Callable[[DialogueTree, Turn], bool] = lambda tree, turn: True,
         sink: TreeSink | None = None, batch: int = 1024,
         log: Callable[[str, int, int], None] = lambda label, done, total: None) -> None:
    """Let `speakers` take turns on every tree until `max_turns`, breadth first. Changes the trees.

    Turns a tree already holds are kept and not said again, so calling it twice, or after a kill, changes nothing more.

    Args:
        speakers: who speaks at depth d is `speakers[d % len(speakers)]`.
        expand: whether the dialogue goes on below a turn; asked after the judges have spoken.
        sink: written after each batch, turns first, then their scores.
        batch: at most this many replies are in flight between two writes.
        log: called as (label, done, total) while a level is said.
    """
    for tree in trees:
        if sink:
            sink.add_tree(tree)
    frontier: list[tuple[DialogueTree, Turn | None]] = [(tree, None) for tree in trees]
    for depth in range(max_turns):
        speaker = speakers[depth % len(speakers)]
        places = [(tree, turn) for tree, turn in frontier if turn is None or expand(tree, turn)]
        planned = [(tree, turn, request) for tree, turn in places
                   for request in speaker.requests(tree.dialogue(turn), seed)]
        missing = [(tree, turn, request) for tree, turn, request in planned if request.id not in tree]
        size = math.ceil(len(missing) / max(1, math.ceil(len(missing) / batch))) or 1
        for start in range(0, len(missing), size):
            log(f"turn {depth + 1}/{max_turns}, {speaker.name}", start, len(missing))
            _say(missing[start:start + size], speaker, sink)
        said = [(tree, tree[request.id]) for tree, _, request in planned if request.id in tree]
        _judge(said, judges, sink)
        frontier = [*said]


def _say(batch: Sequence[tuple[DialogueTree, Turn | None, Request]], speaker: Speaker, sink: TreeSink | None) -> None:
    texts = speaker.speak([request for _, _, request in batch])
    said: dict[str, tuple[DialogueTree, list[Turn]]] = {}
    for (tree, parent, request), text in zip(batch, texts, strict=True):
        if not text.strip():
            if sink:
                why = str(request.notes.get(FINISH, ""))
                sink.skip(tree.id, request.id, why if why and why not in ENDED else "empty reply")
            continue
        turn = tree.add(Turn(request.id, parent.id if parent else None, speaker.name, text, dict(request.notes)))
        said.setdefault(tree.id, (tree, []))[1].append(turn)
    if sink:
        for tree, turns in said.values():
            sink.add_turns(tree, turns)


def _judge(frontier: Sequence[tuple[DialogueTree, Turn]], judges: Sequence[Judge], sink: TreeSink | None) -> None:
    for judge in judges:
        todo = [(tree, turn) for tree, turn in frontier if judge.name not in turn.notes.get("judged", ())]
        verdicts = judge.judge([tree.dialogue(turn) for tree, turn in todo])
        changed: dict[str, tuple[DialogueTree, list[Turn]]] = {}
        for (tree, turn), verdict in zip(todo, verdicts, strict=True):
            turn.notes["judged"] = [*turn.notes.get("judged", ()), judge.name]
            if verdict is None:
                if sink:
                    sink.skip(tree.id, turn.id, f"no verdict from {judge.name}")
            else:
                turn.scores.update(verdict.scores)
                turn.notes.update(verdict.notes)
            changed.setdefault(tree.id, (tree, []))[1].append(turn)
        if sink:
            for tree, turns in changed.values():
                sink.add_scores(tree, turns)

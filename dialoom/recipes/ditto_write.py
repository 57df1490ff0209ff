"""Who writes in DITTO, and where it is written down: every text is a turn of a dialogue tree, children of one task.

A task is a `Demonstration`'s scenario. Policies under training, trained ones and prompted base models all write through
`Writer`, so that the same text has the same id in any batch or resume.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dialoom.dialogue import Chat, Dialogue, DialogueTree, Turn, chat_view, content_id, turn_id
from dialoom.models.base import GREEDY, ChatModel, Sampling
from dialoom.pocket.world import styles
from dialoom.scenarios.demonstrations import WRITER, Demonstration
from dialoom.simulate import FINISH, Request, TreeSink, grow

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel
    from dialoom.train.pack import TokenPath

FEW_SHOT = "Below is what I wrote on other occasions.\n\n{shown}\n\nNow do this one for me, in my own voice. {task}"
SHOWN = "I was asked: {task}\nMy text:\n{text}"
LOOK = "Read what I wrote:\n\n{shown}\n\nGive a ghostwriter short instructions so that new texts read like mine."
SELF_PROMPT = "{task}\n\nFollow these instructions: {instructions}"


def plain(chat: Chat) -> Chat:
    """The task as it is."""
    return chat


@dataclass(frozen=True)
class Writer:
    """A method that writes: a speaker whose view of a task is its prompt, as the method words it.

    Attributes:
        name: of the method, which speaks in the tree.
        copies: texts for each task.
        wording: the task's chat as this method asks it.
        made_by: fingerprint of the model, taken once.
    """

    name: str
    model: ChatModel
    sampling: Sampling
    copies: int = 1
    wording: Callable[[Chat], Chat] = plain
    made_by: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def requests(self, dialogue: Dialogue, seed: int) -> list[Request]:
        """One request for each copy."""
        chat = self.wording(task_chat(dialogue))
        made = [self.made_by or self.model.fingerprint, chat, self.sampling.key()]
        return [Request(turn_id(seed, dialogue, self.name, at, made), chat, dict(self.notes))
                for at in range(self.copies)]

    def speak(self, requests: Sequence[Request]) -> list[str]:
        """The texts; a request notes where its text was cut at the length limit, or why there is none."""
        replies = self.model.chat([request.chat for request in requests], self.sampling,
                                  [request.id for request in requests])
        for request, reply in zip(requests, replies, strict=True):
            if reply.finish != "stop":
                request.notes[FINISH] = reply.finish
        return [reply.text for reply in replies]


def task_chat(dialogue: Dialogue) -> Chat:
    """The chat before the writer's turn: what is trained on, and what every method starts from."""
    return chat_view(dialogue, WRITER, dialogue.scenario.briefs.get(WRITER))


def place(tree: DialogueTree) -> Turn | None:
    """The turn a text in this tree replies to: the last of those said before; None where the task is the opening."""
    turn: Turn | None = None
    for _ in before(tree):
        turn = tree.children(turn)[0]
    return turn


def before(tree: DialogueTree) -> Sequence[Sequence[str]]:
    """What was said between the tree's opening and the writer's turn: (role, text) in turn."""
    found: Sequence[Sequence[str]] = tree.scenario.facts.get("before", ())
    return found


@dataclass(frozen=True)
class Before:
    """Says what was said before a task's last message; the same turns whatever the seed."""

    name: str

    def requests(self, dialogue: Dialogue, seed: int) -> list[Request]:
        """The line that is due."""
        text = str(dialogue.scenario.facts["before"][len(dialogue.turns)][1])
        return [Request(turn_id(0, dialogue, self.name, 0, [text]), [{"role": "user", "content": text}])]

    def speak(self, requests: Sequence[Request]) -> list[str]:
        """The lines themselves."""
        return [request.chat[0]["content"] for request in requests]


def history(length: int) -> list[Before]:
    """Speakers of `length` turns between the opening and the writer's turn, the writer's own first."""
    return [Before("user" if at % 2 else WRITER) for at in range(length)]


def write(trees: Sequence[DialogueTree], writer: Writer, *, seed: int, sink: TreeSink | None = None,
          ) -> list[list[Turn]]:
    """Let the writer write on every tree's task (changes the trees); its turns, tree by tree.

    What a tree holds already is not written again. Empty texts are skipped, so a list may be short.
    """
    by_length: dict[int, list[DialogueTree]] = {}
    for tree in trees:
        by_length.setdefault(len(before(tree)), []).append(tree)
    for length, same in by_length.items():
        grow(same, [*history(length), writer], max_turns=length + 1, seed=seed, sink=sink)
    return [[tree[request.id] for request in writer.requests(tree.dialogue(place(tree)), seed) if request.id in tree]
            for tree in trees]


def add_demonstration(tree: DialogueTree, demo: Demonstration, sink: TreeSink | None = None) -> Turn:
    """The author's own text as a child of its task; the tree is logged if it was not."""
    if sink:
        sink.add_tree(tree)
    grow([tree], history(len(before(tree))), max_turns=len(before(tree)), seed=0, sink=sink)
    parent, name = place(tree), content_id(tree.id, demo.author, demo.output)
    if name not in tree:
        notes = {"demonstration": demo.where}
        turn = tree.add(Turn(name, parent.id if parent else None, demo.author, demo.output, notes))
        if sink:
            sink.add_turns(tree, [turn])
    return tree[name]


# ------------------------------------------------------------------------------------------------ wordings


def few_shot(demos: Sequence[Demonstration]) -> Callable[[Chat], Chat]:
    """The task after the author's demonstrations; not in the words of pocket's own training."""
    shown = "\n\n".join(SHOWN.format(task=demo.chat[-1]["content"], text=demo.output) for demo in demos)
    return lambda chat: reworded(chat, FEW_SHOT.format(shown=shown, task=chat[-1]["content"]))


def self_prompt(model: ChatModel, demos: Sequence[Demonstration], limit: int, key: str) -> Callable[[Chat], Chat]:
    """The task with instructions the model itself (greedily) drew from the demonstrations.

    It stands in for the paper's user study, where people wrote their own prompts.
    """
    instructions = model.chat([looking(demos)], Sampling(**{**GREEDY.key(), "max_new_tokens": limit}), [key])[0].text
    return lambda chat: reworded(chat, SELF_PROMPT.format(task=chat[-1]["content"], instructions=instructions))


def looking(demos: Sequence[Demonstration]) -> Chat:
    """The question for instructions that would make texts like these."""
    return [{"role": "user", "content": LOOK.format(shown="\n\n".join(demo.output for demo in demos))}]


def briefed(author: str, seed: int) -> Callable[[Chat], Chat]:
    """The task under pocket's own training brief for a pocket author's style: the ceiling."""
    brief = styles.style_brief(styles.AUTHORS[author], random.Random(f"brief/{author}/{seed}"))
    return lambda chat: [{"role": "system", "content": brief}, *chat]


def reworded(chat: Chat, text: str) -> Chat:
    """The chat with another last message."""
    return [*chat[:-1], {"role": "user", "content": text}]


# ------------------------------------------------------------------------------------------------ tokens


def reply_path(model: LocalModel, chat: Chat, text: str, *, ended: bool = True, whole: bool = False) -> TokenPath:
    """A text after its task as tokens, scored on the text and its end token.

    Args:
        ended: False: the text was cut at the length limit, so it gets no end token and none is learned from it.
        whole: score the prompt's tokens as well (but the first, which nothing precedes).
    """
    from dialoom.train.pack import TokenPath

    ids, start = model.reply_ids(chat, text)
    if not ended and len(ids) - start > 1:
        ids = ids[:-1]
    return TokenPath.of(ids, (1 if whole else start, len(ids)))

"""IDEAS' user simulator: first it names a strategy of a list, then it writes the user's next message by it.

Here are the chats it reads, what it is trained on and how its replies are read; training itself is `train.sft`, the
format of a target is pocket's (`format_target`, `parse_target`) and the only one. The surprising choice: a simulator is
a speaker like any other, who reads the opening and all answers as `user` and its own messages as `assistant`; those
whose strategy is known it reads as the targets they were.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dialoom.dialogue import Chat, Dialogue, chat_view, content_id
from dialoom.errors import ConfigError, DataError
from dialoom.evals.alignment_roles import USER
from dialoom.models.base import ChatModel, Sampling
from dialoom.models.local import LocalModel
from dialoom.pocket.world.strategies import format_target, parse_target, strategy_list
from dialoom.pocket.world.strategy_tables import BRIEFS
from dialoom.recipes.ideas_strategies import Record, Strategies, folded
from dialoom.select import Example

STRATEGY = "strategy"  # note of a user's turn: what it was written by
UNPARSED, OFF_LIST, CUT = "unparsed", "off_list", "cut"  # why a proposal is not fine
NO_ANSWER = "no answer before it"  # why a record teaches nothing
LINES = Sampling(max_new_tokens=60)  # a strategy and a question in pocket's words take 30 tokens at most
SLOT = "{strategies}"

POCKET_CHOOSE, POCKET_CONTINUE = BRIEFS["choose"][0], BRIEFS["curious"][0]
CHOOSE = ("In this conversation you write the messages of the person who asks; what you read as the other side's "
          "messages are the assistant's answers, and the very first one begins with the person's opening question.\n"
          "A strategy is a short phrase for what a message is after, whatever its subject. Before each message pick "
          "one strategy of the list below: one that follows from the latest answer and opens something new. Then "
          "write the message it leads to, as this person would, and nothing that an answer has settled already.\n"
          "Write exactly two parts. The first line is `strategy: ` and the strategy, word for word as listed. After "
          "it comes `instruction: ` and the message.\n\nStrategies:\n{strategies}")
CONTINUE = ("In this conversation you write the messages of the person who asks; what you read as the other side's "
            "messages are the assistant's answers, and the very first one begins with the person's opening question.\n"
            "Write the person's next message and nothing else.")

Labels = Mapping[tuple[str, str], str]
View = Callable[[Dialogue, str, str | None], Chat]


@dataclass(frozen=True)
class Proposal:
    """What a simulator said next.

    Attributes:
        strategy: as the list spells it; as the simulator does where it is not listed; "" where there is none.
        instruction: the user's next message; the whole reply where it could not be read.
        reason: "" if all is well. "unparsed": not in the target's format, or empty. "off_list": the strategy is none of
            those listed, so the message may be good and what is said of it is not; the caller decides, `deduce`
            rejects it. "cut": the reply ended at the length limit, so the message is not whole.
        dropped: how many of the oldest pairs the simulator could not read, because the chat was too long.
    """

    strategy: str
    instruction: str
    reason: str = ""
    dropped: int = 0


# ------------------------------------------------------------------------------------------------ the chat


def simulator_view(dialogue: Dialogue, viewer: str, brief: str | None = None) -> Chat:
    """`chat_view`, except that the viewer's turns whose strategy is noted stand as targets: strategy, instruction."""
    def as_target(text: str, strategy: str | None) -> str:
        return format_target(strategy, text) if strategy else text
    turns = (replace(turn, text=as_target(turn.text, turn.notes.get(STRATEGY))) if turn.speaker == viewer else turn
             for turn in dialogue.turns)
    return chat_view(Dialogue(dialogue.scenario, tuple(turns)), viewer, brief)


def without_oldest(dialogue: Dialogue, pairs: int) -> Dialogue:
    """The dialogue as if it had begun `pairs` of the user's messages later: that message is its opening.

    Raises: DataError: if the user has not said as many.
    """
    said = [at for at, turn in enumerate(dialogue.turns) if turn.speaker == USER]
    if not 0 <= pairs <= len(said):
        raise DataError(f"scenario {dialogue.scenario.id!r}: cannot drop {pairs} pairs, the user's messages are "
                        f"{len(said)}")
    if not pairs:
        return dialogue
    at = said[pairs - 1]
    return Dialogue(replace(dialogue.scenario, opening=dialogue.turns[at].text), dialogue.turns[at + 1:])


def _filled(brief: str, listed: Sequence[str]) -> str:
    return brief.replace(SLOT, strategy_list(listed))


def _check(brief: str) -> None:
    if SLOT not in brief:
        raise ConfigError(f"the simulator's brief {brief!r:.60} has no place for the candidates; write {SLOT} where "
                          "they are to stand")


def _length(model: LocalModel, chat: Chat) -> int:
    """Tokens of a chat, its last message as the reply if it is the assistant's."""
    if chat[-1]["role"] == "assistant":
        return len(model.template.with_reply(chat[:-1], chat[-1]["content"])[0])
    return len(model.template.prompt(chat))


def _fitting(model: ChatModel, dialogue: Dialogue, brief: str, view: View, room: int) -> tuple[Chat, int]:
    """The chat without as many of the oldest pairs as it takes to leave `room` tokens, and how many these are.

    At least the last answer stays; whether even that is too long is the model's affair, as is an endpoint's context.
    """
    chat = view(dialogue, USER, brief)
    if not isinstance(model, LocalModel):
        return chat, 0
    dropped = 0
    while _length(model, chat) + room > model.context and dropped < len(dialogue.by(USER)):
        dropped += 1
        chat = view(without_oldest(dialogue, dropped), USER, brief)
    return chat, dropped


# ------------------------------------------------------------------------------------------------ what it says


@dataclass(frozen=True)
class Simulator:
    """Chooses a strategy, then writes the user's next message.

    Attributes:
        brief: with `{strategies}` where the candidates stand; the one the model was trained with.
    """

    model: ChatModel
    sampling: Sampling = LINES
    brief: str = CHOOSE

    def __post_init__(self) -> None:
        """Raises ConfigError if the brief has no place for the candidates."""
        _check(self.brief)

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides a proposal but the dialogue, the list and the key."""
        return content_id("simulator", self.model.fingerprint, self.sampling.key(), self.brief)

    def propose(self, dialogues: Sequence[Dialogue], listed: Sequence[Sequence[str]],
                keys: Sequence[str]) -> list[Proposal]:
        """The user's next message in each dialogue: one batch.

        For several candidates give a dialogue as often, with other keys; what they have in common is read once.

        Args:
            dialogues: an answer last. Their user turns may carry the note `strategy`.
            listed: for each dialogue the strategies to choose from.
            keys: one each; they seed the sampling noise.
        """
        fitted = [_fitting(self.model, dialogue, _filled(self.brief, some), simulator_view,
                           self.sampling.max_new_tokens)
                  for dialogue, some in zip(dialogues, listed, strict=True)]
        replies = self.model.chat([chat for chat, _ in fitted], self.sampling, keys)
        return [replace(read_proposal(reply.text, some, cut=reply.finish == "length"), dropped=dropped)
                for reply, some, (_, dropped) in zip(replies, listed, fitted, strict=True)]


def read_proposal(text: str, listed: Sequence[str], *, cut: bool = False) -> Proposal:
    """What a choose-then-write reply says; case and white space of the strategy aside.

    Args:
        cut: the reply ended at the length limit.
    """
    parsed = parse_target(text)
    if parsed is None:
        return Proposal("", text.strip(), CUT if cut else UNPARSED)
    strategy, instruction = parsed
    spelling = {folded(one): one for one in listed}
    known = spelling.get(folded(strategy))
    return Proposal(known or strategy, instruction, CUT if cut else "" if known else OFF_LIST)


@dataclass(frozen=True)
class PlainSimulator:
    """Writes the user's next message and knows no strategies: the baseline."""

    model: ChatModel
    sampling: Sampling = LINES
    brief: str = CONTINUE

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides a proposal but the dialogue and the key."""
        return content_id("plain simulator", self.model.fingerprint, self.sampling.key(), self.brief)

    def propose(self, dialogues: Sequence[Dialogue], listed: Sequence[Sequence[str]],
                keys: Sequence[str]) -> list[Proposal]:
        """As `Simulator.propose`; `listed` is not read, no proposal has a strategy."""
        fitted = [_fitting(self.model, dialogue, self.brief, chat_view, self.sampling.max_new_tokens)
                  for dialogue in dialogues]
        replies = self.model.chat([chat for chat, _ in fitted], self.sampling, keys)
        return [Proposal("", reply.text.strip(), CUT if reply.finish == "length" else "" if reply.text.strip()
                         else UNPARSED, dropped)
                for reply, (_, dropped) in zip(replies, fitted, strict=True)]


# ------------------------------------------------------------------------------------------------ what it learns


def candidates(gold: str, strategies: Sequence[str], size: int, rng: random.Random) -> list[str]:
    """`size` of the strategies (or all) in random order, `gold` among them; `strategies` stay as they are.

    Raises: DataError: if `gold` is none of them, or there is no room for it.
    """
    if gold not in strategies or size < 1:
        raise DataError(f"{size} candidates of {len(strategies)} strategies cannot hold {gold!r:.80}; it must be one "
                        "of them, and one candidate the least")
    others = [text for text in strategies if text != gold]
    drawn = [gold, *rng.sample(others, min(size - 1, len(others)))]
    return rng.sample(drawn, len(drawn))


def labels_of(dialogues: Sequence[Dialogue], records: Sequence[Record],
              strategies: Strategies) -> tuple[dict[tuple[str, str], str], Counter[str]]:
    """The high-level strategy of each turn that a record names, by ids of dialogue and turn.

    Returns: these, and how many records were left out by reason.
    """
    known = {(dialogue.scenario.id, turn.id) for dialogue in dialogues for turn in dialogue.by(USER)}
    found, left_out = dict[tuple[str, str], str](), Counter[str]()
    for record in records:
        place, high = (record.dialogue, record.turn), strategies.find(record.strategy)
        if place not in known:
            left_out["no such turn"] += 1
        elif high is None:
            left_out["strategy belongs to no high-level one"] += 1
        else:
            found[place] = high
    return found, left_out


def target_examples(dialogues: Sequence[Dialogue], records: Sequence[Record], strategies: Strategies, *,
                    size: int = 50, seed: int = 0, brief: str = CHOOSE,
                    model: ChatModel | None = None) -> tuple[list[Example], Counter[str]]:
    """What the simulator learns: one example for each record, loss on its turn only.

    The turn is written as strategy and instruction, the strategy the high-level one; candidates are drawn by seed and
    record, the true one among them. Earlier turns of the user are written likewise where their strategy is known.

    Args:
        size: candidates of an example, or as many as there are.
        model: whose context an example must fit; None or an endpoint: nothing is left out for its length.
    Returns: the examples in the order of the dialogues, and how many records were left out by reason.
    Source: IDEAS (arXiv 2404.11095); the mapping from low to high is missing in its code.
    """
    _check(brief)
    labels, left_out = labels_of(dialogues, records, strategies)

    def briefed(dialogue: Dialogue) -> str:
        turn = dialogue.last
        rng = random.Random(f"candidates:{seed}:{dialogue.scenario.id}:{turn.id}")
        return _filled(brief, candidates(turn.notes[STRATEGY], strategies.high, size, rng))

    return _examples(dialogues, labels, simulator_view, briefed, model, left_out)


def plain_examples(dialogues: Sequence[Dialogue], records: Sequence[Record], strategies: Strategies, *,
                   brief: str = CONTINUE, model: ChatModel | None = None) -> tuple[list[Example], Counter[str]]:
    """What the plain simulator learns: the very turns of `target_examples`, as they are and without candidates."""
    labels, left_out = labels_of(dialogues, records, strategies)
    return _examples(dialogues, labels, chat_view, lambda dialogue: brief, model, left_out)


def _examples(dialogues: Sequence[Dialogue], labels: Labels, view: View, briefed: Callable[[Dialogue], str],
              model: ChatModel | None, left_out: Counter[str]) -> tuple[list[Example], Counter[str]]:
    found = []
    for dialogue in dialogues:
        noted = _noted(dialogue, labels)
        for at, turn in enumerate(noted.turns):
            if turn.speaker != USER or STRATEGY not in turn.notes:
                continue
            upto = Dialogue(noted.scenario, noted.turns[:at + 1])
            chat = view(upto, USER, briefed(upto))
            if at == 0 or noted.turns[at - 1].speaker == USER:
                left_out[NO_ANSWER] += 1
            elif isinstance(model, LocalModel) and _length(model, chat) > model.context:
                left_out["too long"] += 1
            else:
                name = dialogue.scenario.id
                found.append(Example(content_id(name, turn.id, chat), chat, (len(chat) - 1,), "simulator", name,
                                     {"turn": turn.id, STRATEGY: turn.notes[STRATEGY]}))
    return found, left_out


def _noted(dialogue: Dialogue, labels: Labels) -> Dialogue:
    """The dialogue with the strategies of `labels`, and no others, as notes of its turns."""
    turns = []
    for turn in dialogue.turns:
        notes = {name: value for name, value in turn.notes.items() if name != STRATEGY}
        label = labels.get((dialogue.scenario.id, turn.id))
        turns.append(replace(turn, notes=notes | ({STRATEGY: label} if label else {})))
    return Dialogue(dialogue.scenario, tuple(turns))

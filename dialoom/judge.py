"""Judges write on turns; they never select and never train. Rules and models look alike from outside.

A verdict is about the last turn of a dialogue. No verdict (None) is data, not a crash: the turn is skipped by selection
and counted in the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from dialoom.dialogue import Chat, Dialogue, content_id
from dialoom.models.base import ChatModel, Sampling, ScoringModel

Preference = Literal["left", "right", "tie"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a dialogue's last turn: numbers for `turn.scores`, the rest for `turn.notes`."""

    scores: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """Judges the last turn of each dialogue."""

    @property
    def name(self) -> str: ...

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]: ...


class Comparer(Protocol):
    """Says which of two replies to the same dialogue is better; asks both orders, so position cannot decide."""

    @property
    def name(self) -> str: ...

    def compare(self, dialogues: Sequence[Dialogue], left: Sequence[str],
                right: Sequence[str]) -> list[Preference | None]: ...


@dataclass(frozen=True)
class RuleJudge:
    """A judge that is a plain function of one dialogue."""

    name: str
    rule: Callable[[Dialogue], Verdict | None]

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        return [self.rule(dialogue) for dialogue in dialogues]


@dataclass(frozen=True)
class LogitJudge:
    """Asks a model a closed question and reads the answer's probability from its logits; nothing to parse.

    Scores `name` with the probability, in (0, 1), of `options[0]` among `options`.
    """

    name: str
    model: ScoringModel
    question: Callable[[Dialogue], Chat]
    options: tuple[str, ...] = ("yes", "no")

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        weights = self.model.choose([self.question(dialogue) for dialogue in dialogues], list(self.options))
        return [None if row is None else Verdict({self.name: _probability(row)}) for row in weights]


@dataclass(frozen=True)
class LogitComparer:
    """Asks a model A or B in both orders; a tie where the orders disagree, None where one of them could not be read."""

    name: str
    model: ScoringModel
    question: Callable[[Dialogue, str, str], Chat]

    def compare(self, dialogues: Sequence[Dialogue], left: Sequence[str],
                right: Sequence[str]) -> list[Preference | None]:
        asked = [self.question(*triple) for triple in zip(dialogues, left, right, strict=True)]
        swapped = [self.question(*triple) for triple in zip(dialogues, right, left, strict=True)]
        weights = self.model.choose([*asked, *swapped], ["A", "B"])
        firsts = [None if row is None else row[0] > row[1] for row in weights]
        return [None if one is None or other is None else "tie" if one == other else "left" if one else "right"
                for one, other in zip(firsts[:len(asked)], firsts[len(asked):], strict=True)]


def _probability(logprobs: Sequence[float]) -> float:
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return weights[0] / sum(weights)


def ask_until_read(model: ChatModel, chats: Sequence[Chat], ids: Sequence[str], read: Callable[[str], _T | None], *,
                   sampling: Sampling, reminder: str = "", tries: int = 2) -> list[_T | None]:
    """What `read` makes of a model's replies; those it makes None of are asked for again, up to `tries` times in all.

    Args:
        ids: one for each chat, the same in any batch.
        reminder: put below the last message from the second try on.
    """
    found: list[_T | None] = [None] * len(chats)
    for attempt in range(tries):
        open_ = [at for at, value in enumerate(found) if value is None]
        if not open_:
            break
        asked = [_reminded(chats[at], reminder) if attempt else chats[at] for at in open_]
        replies = model.chat(asked, sampling, [content_id(ids[at], attempt) for at in open_])
        for at, reply in zip(open_, replies, strict=True):
            found[at] = read(reply.text)
    return found


def _reminded(chat: Chat, reminder: str) -> Chat:
    return [*chat[:-1], {"role": chat[-1]["role"], "content": chat[-1]["content"] + reminder}]

"""A model that is a plain Python function: for tests, demonstrations and rule-driven partners. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dialoom.dialogue import Chat, content_id
from dialoom.errors import ModelError
from dialoom.models.base import Completion, Sampling


class ScriptedModel:
    """Answers every chat with `respond(chat)`; the sampling settings change nothing.

    Attributes:
        name: also what its fingerprint is made of, so two scripts of one run need two names.
        calls: every chat it was asked to continue or to weigh, in order.
    """

    def __init__(self, respond: Callable[[Chat], str], name: str = "scripted", *,
                 choose: Callable[[Chat, Sequence[str]], Sequence[float]] | None = None) -> None:
        """`choose` gives one weight >= 0 for each option; they need not sum to 1."""
        self.name = name
        self.calls: list[Chat] = []
        self._respond = respond
        self._choose = choose

    @property
    def fingerprint(self) -> str:
        return content_id("scripted", self.name)

    def chat(self, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str]) -> list[Completion]:
        if len(chats) != len(keys):
            raise ModelError(f"{self.name}: {len(chats)} chats came with {len(keys)} keys; give one key for each chat")
        self.calls.extend(chats)
        return [Completion(self._respond(chat)) for chat in chats]

    def choose(self, chats: Sequence[Chat], options: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of the options from the weights of the `choose` function; ModelError without one."""
        if self._choose is None:
            raise ModelError(f"{self.name} cannot weigh options; make it with ScriptedModel(respond, choose=...)")
        self.calls.extend(chats)
        return [_normalised(self._choose(chat, options), len(options), self.name) for chat in chats]


def _normalised(weights: Sequence[float], count: int, name: str) -> list[float]:
    total = sum(weights)
    if len(weights) != count or total <= 0 or min(weights) < 0:
        raise ModelError(f"{name}: choose gave the weights {list(weights)} for {count} options; "
                         "give one number >= 0 for each, not all zero")
    return [math.log(weight / total) if weight > 0 else -math.inf for weight in weights]

"""What a model can be asked to do, as protocols, each one capability more. No torch.

Every call takes a list and keeps its order. A completion's randomness comes from its own key and token step, so the
same request gives the same text in any batch, order or resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from dialoom.dialogue import Chat


@dataclass(frozen=True)
class Sampling:
    """How text is drawn.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: in (0, 1]; 1 keeps every token.
        top_k: 0 keeps every token.
        max_new_tokens: length limit of one reply.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 80

    def key(self) -> dict[str, Any]:
        """The values as JSON, for ids and cache keys."""
        return asdict(self)


GREEDY = Sampling(temperature=0.0)
ENDED = ("stop", "length")  # the `finish` of replies that were said


@dataclass(frozen=True)
class Completion:
    """One reply. `finish` is "stop" (the model ended it) or "length" (cut at the limit).

    Where a server refused a chat or gave nothing to use, `text` is empty and `finish` says why, as "endpoint: ...".
    `tokens` are the sampled ids where the model shows them: the record of what was said, the text being a view.
    `notes` go onto the turn that is made of it: the action of a planner.
    """

    text: str
    finish: str = "stop"
    tokens: tuple[int, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)


@runtime_checkable
class ChatModel(Protocol):
    """Anything that continues chats."""

    @property
    def name(self) -> str:
        """As the user wrote it (`pocket`, `hf:...`, `openai:...`)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the weights, adapter or template change; part of every turn id."""
        ...

    def chat(self, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str]) -> list[Completion]:
        """Continue each chat with one assistant message; `keys` (one each) seed the sampling noise."""
        ...


@runtime_checkable
class ScoringModel(ChatModel, Protocol):
    """A chat model that can weigh given answers: logit judges (yes/no, A/B)."""

    def choose(self, chats: Sequence[Chat], options: Sequence[str]) -> Sequence[list[float] | None]:
        """Log-probability (nats, normalised over `options`) that each chat's reply begins with each option.

        None for a chat of which a server gave nothing to read; models whose weights are here weigh every chat.
        """
        ...

"""One pre-training text of the pocket model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A chat as one of its speakers sees it.

    Attributes:
        job: which part of the world it practises (the card reports loss by job).
        messages: an optional system brief, then user and assistant messages in turn, the last one assistant.
        train_on: indices of the assistant messages that carry loss; None means all of them.
    """

    job: str
    messages: list[dict[str, str]]
    train_on: tuple[int, ...] | None = None

    def targets(self) -> tuple[int, ...]:
        """The indices of the messages that carry loss."""
        if self.train_on is not None:
            return self.train_on
        return tuple(i for i, message in enumerate(self.messages) if message["role"] == "assistant")

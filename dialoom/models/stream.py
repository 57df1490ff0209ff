"""One reply, piece by piece as it is drawn; the same text as `chat` gives for the same key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dialoom.dialogue import Chat
from dialoom.models.base import ChatModel, Completion, Sampling

Hear = Callable[[str], None]
UNFINISHED = "\ufffd"  # a character whose last bytes are still to come


def stream(model: ChatModel, chat: Chat, sampling: Sampling, key: str, hear: Hear) -> Completion:
    """Continue the chat and tell the pieces of the reply.

    A model that has a `stream` of its own is asked by it; one that draws here is listened to; any other is heard once,
    when it is done.

    Args:
        hear: called with each new piece; all pieces together are the reply's text, but for space at its end.
    """
    own = getattr(model, "stream", None)
    if own is not None:
        found: Completion = own(chat, sampling, key, hear)
        return found
    local = getattr(model, "model", model)  # a steered model draws by the one below it
    engine, tokenizer = getattr(local, "engine", None), getattr(local, "tokenizer", None)
    if engine is None or tokenizer is None:
        whole = model.chat([chat], sampling, [key])[0]
        hear(whole.text)
        return whole
    pieces = Pieces(tokenizer, hear)
    with _listening(engine, lambda _, token: pieces.add(token)):
        return model.chat([chat], sampling, [key])[0]


class Pieces:
    """Turns tokens into pieces of text; a piece is told once its characters are whole."""

    def __init__(self, tokenizer: Any, hear: Hear) -> None:
        self._tokenizer, self._hear = tokenizer, hear
        self._ids: list[int] = []
        self._told = ""

    def add(self, token: int) -> None:
        """One more token was drawn."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True).lstrip()
        if text.endswith(UNFINISHED) or not text.startswith(self._told):
            return
        fresh, self._told = text[len(self._told):], text
        if fresh:
            self._hear(fresh)


@contextmanager
def _listening(engine: Any, heard: Callable[[int, int], None]) -> Iterator[None]:
    engine.heard = heard
    try:
        yield
    finally:
        engine.heard = None

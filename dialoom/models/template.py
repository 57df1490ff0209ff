"""A tokenizer's chat template, checked: what a chat is in token ids. No torch.

A template that cannot be used is refused here; one without a system role gets the system text in front of the first
user message; one that rewrites history (thinking blocks) still gives right ids for a reply, and says so in `stable`.
Surprising choice: special tokens written out in a message are broken up, so that no text can open or close a turn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from dialoom.dialogue import Chat, Message
from dialoom.errors import ModelError

MARK = "Zebra"  # a word no template contains: found again in the rendered text
# Thinking is off: a turn is what is said. The date is the one Llama 3.1's template falls back to: prompts do not drift.
RENDERING = {"enable_thinking": False, "date_string": "26 Jul 2024"}

SAMPLES: tuple[tuple[str, ...], ...] = (
    ("Which city is the capital of Peru?", "Lima.", "Are you sure?", "Yes, I am sure.", "Good."),
    ("Hello!\nSay one word", "Word", "And now two", "Two words", "Done?", "Done.", "Fine"),
)
"""User and assistant texts in turn, on which prefix stability is checked."""


class ChatTemplate:
    """The chat template of one tokenizer: chats in, token ids out.

    Attributes:
        end: id of the token that ends an assistant turn.
        has_system: whether the template has a system role of its own.
        stable: whether the ids of a prompt and its reply are a prefix of the next turn's prompt.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Raises ModelError if the tokenizer has no template or its template cannot render a plain chat."""
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(f"{name}: the tokenizer has no chat template, so a chat cannot be written for it; "
                             "use an instruction-tuned model, or set tokenizer.chat_template and save it")
        self.tokenizer = tokenizer
        self.name = name
        added = tokenizer.added_tokens_decoder
        specials = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        self._specials = sorted((token for token in specials if len(token) > 1), key=len, reverse=True)
        self._said_folded = False
        self.has_system = supports_system(tokenizer)
        self.end = self._find_end(set(added) | set(tokenizer.all_special_ids))
        self.stable = self._is_stable()

    def _find_end(self, marks: set[int]) -> int:
        text = self._render([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": MARK}], False)
        tail = self.encode(text.rpartition(MARK)[2])
        end = next((token for token in tail if token in marks), self.tokenizer.eos_token_id)
        if end is None:
            raise ModelError(f"{self.name}: neither the chat template nor the tokenizer names a token that ends a "
                             "turn; set tokenizer.eos_token")
        return int(end)

    def _is_stable(self) -> bool:
        for system in ("Be brief.", ""):
            for texts in SAMPLES:
                chat: Chat = [{"role": "system", "content": system}] if system else []
                before: list[int] = []
                for user, assistant in zip(texts[::2], (*texts[1::2], ""), strict=True):
                    chat = [*chat, {"role": "user", "content": user}]
                    prompt = self._ids(self._foldable(chat), True)
                    if prompt[:len(before)] != before:
                        return False
                    if not assistant:
                        break
                    before = self._whole(chat, assistant)
                    if before[:len(prompt)] != prompt:
                        return False
                    chat = [*chat, {"role": "assistant", "content": assistant}]
        return True

    def encode(self, text: str) -> list[int]:
        """Token ids of text as it stands, without adding special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def defused(self, text: str) -> str:
        """`text` with every special token in it broken by a space after its first character."""
        for token in self._specials:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _render(self, chat: Chat, generation: bool) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation,
                                                          **RENDERING))
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(message["role"] for message in chat)
            raise ModelError(f"{self.name}: its chat template refuses the roles [{roles}]: {error}") from error

    def _ids(self, chat: Chat, generation: bool) -> list[int]:
        return self.encode(self._render(chat, generation))

    def _foldable(self, chat: Chat) -> Chat:
        """The chat as this template takes it: special tokens broken, the system text folded in where need be."""
        chat = [{**message, "content": self.defused(message["content"])} for message in chat]
        if self.has_system or not chat or chat[0]["role"] != "system":
            return chat
        if len(chat) < 2 or chat[1]["role"] != "user":
            raise ModelError(f"{self.name}: its chat template has no system role, and the chat has no user message "
                             "after the system text to put it into")
        first: Message = {"role": "user", "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}
        return [first, *chat[2:]]

    def _whole(self, chat: Chat, reply: str) -> list[int]:
        """Ids of the chat and a reply, up to and with the token that ends it, as the template writes them."""
        said: Message = {"role": "assistant", "content": self.defused(reply)}
        ids = self._ids([*self._foldable(chat), said], False)
        for at in range(len(ids) - 1, -1, -1):
            if ids[at] == self.end:
                return ids[:at + 1]
        return [*ids, self.end]

    def prompt(self, chat: Chat) -> list[int]:
        """Ids of the chat, ready for an assistant reply to follow."""
        if not self.has_system and not self._said_folded and chat and chat[0]["role"] == "system":
            self._said_folded = True
            warnings.warn(f"{self.name}: its chat template has no system role; the system text is put in front of "
                          "the first user message", stacklevel=2)
        return self._ids(self._foldable(chat), True)

    def with_reply(self, chat: Chat, reply: str, prompt: Sequence[int] | None = None) -> tuple[list[int], int]:
        """Ids of the chat, the reply and its end token, and the index of the reply's first id.

        The ids always begin with `prompt(chat)`: where the template writes a finished reply otherwise than it asks
        for one (thinking blocks, merges at the border), the reply's own tokens and the end token follow the prompt.
        """
        start = list(prompt) if prompt is not None else self.prompt(chat)
        whole = self._whole(chat, reply)
        if whole[:len(start)] == start and len(whole) > len(start):
            return whole, len(start)
        return [*start, *self.encode(self.defused(reply)), self.end], len(start)


def supports_system(tokenizer: Any) -> bool:
    """Whether the chat template writes a system message (False: it refuses or swallows it)."""
    chat = [{"role": "system", "content": MARK}, {"role": "user", "content": "Hello"}]
    try:
        return MARK in tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **RENDERING)
    except Exception:  # noqa: BLE001 - templates refuse roles with whatever error they like
        return False


def is_prefix_stable(tokenizer: Any) -> bool:
    """Whether every turn's tokens are a prefix of the next turn's, checked on sample chats."""
    return ChatTemplate(tokenizer, "tokenizer").stable


def fit(template: ChatTemplate, chat: Chat, limit: int) -> tuple[list[int], bool]:
    """The prompt ids of as much of `chat` as fits into `limit` tokens, and whether something had to go.

    Whole messages go first, oldest first, from the left; the system message stays and the chat still starts with a
    user message. If the newest message alone is too long, the beginning of its text goes.

    Raises: ModelError: if the system message leaves no room.
    """
    ids = template.prompt(chat)
    if len(ids) <= limit:
        return ids, False
    system = chat[:1] if chat and chat[0]["role"] == "system" else []
    rest = chat[len(system):]
    for at in range(1, len(rest)):
        if rest[at]["role"] == "user":
            ids = template.prompt([*system, *rest[at:]])
            if len(ids) <= limit:
                return ids, True
            last = at
    last = max((at for at, message in enumerate(rest) if message["role"] == "user"), default=0)
    text, tail = template.encode(template.defused(rest[last]["content"])), rest[last + 1:]
    keep = len(text) - (len(ids) - limit)
    while keep > 0:
        shorter = template.tokenizer.decode(text[-keep:], skip_special_tokens=True)
        ids = template.prompt([*system, {"role": "user", "content": shorter}, *tail])
        if len(ids) <= limit:
            return ids, True
        keep -= len(ids) - limit
    raise ModelError(f"{template.name}: the system message alone fills the {limit} tokens there are for a prompt; "
                     "shorten it, or ask for fewer new tokens")

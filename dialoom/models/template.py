"""A tokenizer's chat template, checked: what a chat is in token ids. No torch.

A template that cannot be used is refused here. One without a system role gets the system text in front of the first
user message; one that wants user and assistant in turn gets them so. One that rewrites history (thinking blocks) still
gives right ids for a reply, and says so in `stable`. Thinking that a prompt would open is closed: a turn is what is
said. Surprising choice: special tokens and role marks written out in a message are broken up, so that no text can open
or close a turn.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from dialoom.dialogue import Chat, Message
from dialoom.errors import ModelError
from dialoom.text import SILENCE

MARK = "Zebra"  # a word no template contains: found again in the rendered text
# Thinking is off: a turn is what is said. The date is the one Llama 3.1's template falls back to: prompts do not drift.
RENDERING = {"enable_thinking": False, "date_string": "26 Jul 2024"}

THINKING, THOUGHT = "<think>", "</think>"
ROLE_MARKS = re.compile(r"<\|[^\s<>|]{1,40}\|>|</?[a-z]+_of_turn>|<</?[A-Z]+>>|\[/?[A-Z_]{2,}\]")  # often plain text

SAMPLES: tuple[tuple[str, ...], ...] = (
    ("Which city is the capital of Peru?", "Lima.", "Are you sure?", "Yes, I am sure.", "Good."),
    ("Hello!\nSay one word", "Word", "And now two", "Two words", "Done?", "Done.", "Fine"),
)
"""User and assistant texts in turn, on which prefix stability is checked."""


_SAMPLE: Chat = [{"role": role, "content": MARK} for role in ("system", "user", "assistant", "user")]


class ChatTemplate:
    """The chat template of one tokenizer: chats in, token ids out.

    Attributes:
        end: id of the token that ends an assistant turn.
        has_system: whether the template has a system role of its own.
        strict: whether it takes user and assistant only in turn, the user first.
        stable: whether the ids of a prompt and its reply are a prefix of the next turn's prompt.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Raises ModelError if the tokenizer has no template, or one that cannot render a plain chat."""
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(f"{name}: the tokenizer has no chat template, so a chat cannot be written for it; "
                             "use an instruction-tuned model, or set tokenizer.chat_template and save it")
        self.tokenizer = tokenizer
        self.name = name
        added = tokenizer.added_tokens_decoder
        specials = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        self._told: set[str] = set()
        self._specials: list[str] = []
        self._opens, self._leads = "", ""
        self.has_system = supports_system(tokenizer)
        self.strict = not takes_any_order(tokenizer)
        self._find_border()
        specials |= set(ROLE_MARKS.findall(self._render(self._foldable(_SAMPLE), True)))
        self._specials = sorted((token for token in specials if len(token) > 1), key=len, reverse=True)
        self.end = self._find_end(set(added) | set(tokenizer.all_special_ids))
        self._thoughts = [token for token, text in added.items() if text.content in (THINKING, THOUGHT)]
        self.stable = self._is_stable()

    def _find_border(self) -> None:
        """What stands between a prompt and a reply: what the template leaves out of its prompts, and a blank."""
        asked: Chat = [{"role": "user", "content": "Hello"}]
        prompt, whole = self._render(asked, True), self._render([*asked, {"role": "assistant", "content": MARK}], False)
        if "hello" not in prompt.casefold() or MARK.casefold() not in whole.casefold():  # how, is a matter of audits
            raise ModelError(f"{self.name}: its chat template does not write what is said ({whole!r:.80}); set another "
                             "tokenizer.chat_template and save it")
        before = whole.rpartition(MARK)[0]
        between = before.removeprefix(prompt) if before.startswith(prompt) else ""
        self._opens = between.rstrip()  # a template that asks for no reply: its role mark
        self._leads = between[len(self._opens):]
        if prompt.rfind(THINKING) > prompt.rfind(THOUGHT):
            self._opens, self._leads = f"\n{THOUGHT}\n\n", ""

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
            text = str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation,
                                                          **RENDERING))
            return text + self._opens if generation else text
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(message["role"] for message in chat)
            raise ModelError(f"{self.name}: its chat template refuses the roles [{roles}]: {error}") from error

    def _ids(self, chat: Chat, generation: bool) -> list[int]:
        return self.encode(self._render(chat, generation))

    def _foldable(self, chat: Chat) -> Chat:
        """The chat as this template takes it: role marks broken, roles folded where need be."""
        chat = [{**message, "content": self.defused(message["content"])} for message in chat]
        if not self.has_system:
            chat = self._without_system(chat)
        return self._in_turn(chat) if self.strict else chat

    def _without_system(self, chat: Chat) -> Chat:
        """System texts in front of the user message that follows them, or as one of their own."""
        found: Chat = []
        waiting = ""
        for message in chat:
            if message["role"] == "system":
                waiting = f"{waiting}\n\n{message['content']}".strip()
            elif waiting and message["role"] == "user":
                found.append({"role": "user", "content": f"{waiting}\n\n{message['content']}"})
                waiting = ""
            else:
                found += [{"role": "user", "content": waiting}] if waiting else []
                found.append(message)
                waiting = ""
        return [*found, *([{"role": "user", "content": waiting}] if waiting else [])]

    def _in_turn(self, chat: Chat) -> Chat:
        """User and assistant in turn, the user first and last: neighbours merged, `SILENCE` where one is missing."""
        found, rest = (chat[:1], chat[1:]) if chat and chat[0]["role"] == "system" else ([], chat)
        size = len(found)
        for message in rest:
            role = "assistant" if message["role"] == "assistant" else "user"  # a later system message is the user's
            if len(found) == size and role == "assistant":
                found = [*found, {"role": "user", "content": SILENCE}]
            if len(found) > size and found[-1]["role"] == role:
                found[-1] = {"role": role, "content": f"{found[-1]['content']}\n{message['content']}"}
            else:
                found = [*found, {"role": role, "content": message["content"]}]
        return found if found[size:] and found[-1]["role"] == "user" else [*found, {"role": "user", "content": SILENCE}]

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
        if not self.has_system and any(message["role"] == "system" for message in chat):
            self._tell("its chat template has no system role; the system text is put in front of the first user "
                       "message")
        if self.strict and [one["role"] for one in chat if one["role"] != "system"] != [
                one["role"] for one in self._foldable(chat) if one["role"] != "system"]:
            self._tell("its chat template takes user and assistant only in turn; neighbours of one role are merged, "
                       f"and a user message that is missing reads {SILENCE!r}")
        return self._ids(self._foldable(chat), True)

    def _tell(self, what: str) -> None:
        """Warn, once."""
        if what not in self._told:
            self._told.add(what)
            warnings.warn(f"{self.name}: {what}", stacklevel=4)

    def with_reply(self, chat: Chat, reply: str, prompt: Sequence[int] | None = None) -> tuple[list[int], int]:
        """Ids of the chat, the reply and its end token, and the index of the reply's first id.

        The ids always begin with `prompt(chat)`: where the template writes a finished reply otherwise than it asks
        for one (thinking blocks, merges at the border), the reply's own tokens and the end token follow the prompt.
        """
        start = list(prompt) if prompt is not None else self.prompt(chat)
        whole = self._whole(chat, reply)
        if whole[:len(start)] == start and len(whole) > len(start):
            return whole, len(start)
        return [*start, *self.encode(self._leads + self.defused(reply)), self.end], len(start)

    def spoken(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids of a sampled reply without the thinking in it; none of one that ends while it thinks."""
        marks = [at for at, token in enumerate(ids) if token in self._thoughts]
        if not marks:
            return ids
        return ids[marks[-1] + 1:] if self.tokenizer.decode([ids[marks[-1]]]).strip() == THOUGHT else ids[:marks[-1]]


def supports_system(tokenizer: Any) -> bool:
    """Whether the chat template writes a system message (False: it refuses or swallows it)."""
    chat = [{"role": "system", "content": MARK}, {"role": "user", "content": "Hello"}]
    try:
        return MARK in tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **RENDERING)
    except Exception:  # noqa: BLE001 - templates refuse roles with whatever error they like
        return False


def takes_any_order(tokenizer: Any) -> bool:
    """Whether the template writes chats in which one role speaks twice, or the assistant first."""
    for roles in (("assistant", "user"), ("user", "user", "assistant", "user"),
                  ("user", "assistant", "assistant", "user")):
        chat = [{"role": role, "content": f"{MARK}{at}"} for at, role in enumerate(roles)]
        try:
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **RENDERING)
        except Exception:  # noqa: BLE001 - templates refuse roles with whatever error they like
            return False
        if not all(message["content"] in text for message in chat):
            return False
    return True


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

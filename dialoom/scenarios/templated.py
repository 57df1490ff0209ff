"""Chats that were written out by some model's chat template, read back into messages.

Released preference data often holds its prompts so: they fit the one model they were made for. Shapes that are known:
headers with a role (Llama 3), `<|im_start|>role` (ChatML, Qwen), `<|role|>` (OLMo, Zephyr, Phi), turns (Gemma),
`[INST]` with `<<SYS>>` (Llama 2, Mistral), and `USER: ... ASSISTANT: ...` (Vicuna). Anything else is one user message.
"""

from __future__ import annotations

import re

from dialoom.dialogue import Chat, Message
from dialoom.errors import DataError

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "model": "assistant",
         "gpt": "assistant"}

_OPEN = re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>|<\|im_start\|>(\w+)[ \t]*\n?"
                   r"|<start_of_turn>(\w+)[ \t]*\n?|<\|(system|user|assistant)\|>")
_END = re.compile(r"<\|(?:eot_id|im_end|end|endoftext|end_of_text|begin_of_text|startoftext)\|>|<end_of_turn>"
                  r"|<eos>|<bos>|</?s>")
_INSTRUCTED = re.compile(r"\[INST\](.*?)\[/INST\]", re.DOTALL)
_BRIEF = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>\s*", re.DOTALL)
_SPOKEN = re.compile(r"(?:^|(?<=[\s>]))(USER|ASSISTANT):")


def unended(text: str) -> str:
    """A text without marks of beginning and end, and without white space around it."""
    return _END.sub("", text).strip()


def messages_of(text: str) -> Chat:
    """The messages of a chat that a template wrote out; what asks for the next reply at its end is left out.

    Raises: DataError: if a role in it is none of `ROLES`.
    """
    for read in (_by_marks, _by_instructions, _by_names):
        if found := read(text):
            while found and found[-1]["role"] == "assistant" and not found[-1]["content"]:
                found.pop()
            return found
    return [{"role": "user", "content": unended(text)}]


def _by_marks(text: str) -> Chat:
    opened = list(_OPEN.finditer(text))
    ends = [*(mark.start() for mark in opened[1:]), len(text)][:len(opened)]
    return [_message(next(filter(None, mark.groups())), text[mark.end():end])
            for mark, end in zip(opened, ends, strict=True)]


def _by_instructions(text: str) -> Chat:
    found: Chat = []
    asked = list(_INSTRUCTED.finditer(text))
    ends = [*(one.start() for one in asked[1:]), len(text)][:len(asked)]
    for one, end in zip(asked, ends, strict=True):
        said = one[1]
        if not found and (brief := _BRIEF.match(said)):
            found.append(_message("system", brief[1]))
            said = said[brief.end():]
        found.append(_message("user", said))
        if reply := unended(text[one.end():end]):
            found.append(_message("assistant", reply))
    return found


def _by_names(text: str) -> Chat:
    said = list(_SPOKEN.finditer(text))
    if not said or not any(one[1] == "ASSISTANT" for one in said):
        return []
    ends = [one.start() for one in said[1:]] + [len(text)]
    brief = unended(text[:said[0].start()])
    return [*([_message("system", brief)] if brief else []),
            *(_message(one[1], text[one.end():end]) for one, end in zip(said, ends, strict=True))]


def _message(name: str, text: str) -> Message:
    role = ROLES.get(name.lower())
    if role not in ("system", "user", "assistant"):
        raise DataError(f"a templated chat with the role {name!r:.40}; expected {', '.join(ROLES)}")
    return {"role": role, "content": unended(text)}

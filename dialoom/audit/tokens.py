"""A model's tokenizer, template and context without its weights, and whose words each token of a row is.

`Reader` gives what training asks of a model when it makes rows (`TrainableModel`), so an audit's rows are made by the
trainer's own code, also of a model whose weights would not fit here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialoom.dialogue import Chat
from dialoom.errors import ModelError
from dialoom.files import read_json
from dialoom.models.load import POCKETS, WEIGHTS, check_spec, is_folder
from dialoom.models.pretrained import one_line, read_tokenizer
from dialoom.models.template import ChatTemplate, fit

TRAINED, MARK = "trained", "mark"
ROLES = ("system", "user", "assistant")


class Reader:
    """Tokenizer, chat template and context of a model; no weights.

    Attributes:
        module: has the model's `config` and nothing else.
        context: longest row in tokens.
    """

    def __init__(self, tokenizer: Any, config: Any, name: str) -> None:
        """Raises ModelError if the tokenizer has no usable chat template."""
        self.name = self.fingerprint = name
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, name)
        self.module = _Config(config)
        self.context = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    def reply_ids(self, chat: Chat, reply: str) -> tuple[list[int], int]:
        """As `LocalModel.reply_ids`: ids of chat, reply and end token, and where the reply starts."""
        ids, start = self.template.with_reply(chat, reply)
        if len(ids) <= self.context:
            return ids, start
        room = len(ids) - start
        if room >= self.context:
            raise ModelError(f"{self.name}: a reply of {room} tokens leaves no room for a prompt in a context of "
                             f"{self.context}; shorten it")
        prompt, _ = fit(self.template, chat, self.context - room)
        return [*prompt, *ids[start:]], len(prompt)

    def add_lora(self, *arguments: Any, **options: Any) -> None:
        """Raises ModelError: there are no weights."""
        raise ModelError(f"{self.name}: was opened without its weights, so it cannot be trained; use load_model")


@dataclass(frozen=True)
class _Config:
    config: Any


def load_reader(spec: str) -> Reader:
    """The reader of a local model, as `load_model` names it.

    Raises: ModelError: if there is no such model, it stands behind an endpoint, or it has no usable chat template.
    """
    check_spec(spec)
    kind, _, rest = spec.partition(":")
    if kind == "openai":
        raise ModelError(f"{spec}: an endpoint does not tell its tokens; name the model's files as hf:<name or path>")
    if spec in POCKETS:
        return _read(str(WEIGHTS / spec), str(WEIGHTS / spec), spec)
    if kind == "hf":
        base = rest if is_folder(rest) else rest.partition("+")[0]
        return _read(base, base, spec)
    folder = Path(rest)
    if not is_folder(folder):
        raise ModelError(f"{spec}: {folder} is no folder")
    at = next((folder / part for part in (".", "model", "adapter")
               if any((folder / part / name).is_file() for name in ("config.json", "adapter_config.json"))), None)
    if at is None:
        raise ModelError(f"{spec}: {folder} holds neither model/ nor adapter/; name the model it began from instead")
    return _read(str(at), str(at) if (at / "config.json").is_file() else _base(at), spec)


def _base(adapter: Path) -> str:
    """Where the configuration of an adapter's base lies."""
    config = adapter / "adapter_config.json"
    base = read_json(config, dict, error=ModelError).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{config}: names no base model; base_model_name_or_path must be one, found {base!r}")
    return str(WEIGHTS / base) if base in POCKETS else base.removeprefix("hf:")


def _read(words: str, about: str, name: str) -> Reader:
    from transformers import AutoConfig

    with one_line(name):
        tokenizer = read_tokenizer(words, local_files_only=Path(words).is_dir())
        config = AutoConfig.from_pretrained(about, local_files_only=Path(about).is_dir(), trust_remote_code=False)
    return Reader(tokenizer, config, name)


# ------------------------------------------------------------------------------------------------ whose words


@dataclass(frozen=True)
class Token:
    """One token of a row: its text, and whose it is ("trained", a role, or "mark" for the template's own)."""

    text: str
    kind: str


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; of a character that several tokens make, the last one has it all.

    A blank that a tokenizer leaves away from a single token (SentencePiece) is put back from its written form.
    """
    found: list[str] = []
    waiting: list[int] = []
    written = tokenizer.convert_ids_to_tokens(list(ids))
    for token, form in zip(ids, written, strict=True):
        waiting.append(int(token))
        text = tokenizer.decode(waiting, skip_special_tokens=False)
        if text.endswith("\ufffd") and len(waiting) < 4:
            found.append("")
            continue
        if isinstance(form, str) and form.startswith("▁") and not text.startswith(" "):
            text = f" {text}"
        found.append(text)
        waiting = []
    return found


def attribute(texts: Sequence[str], messages: Sequence[tuple[str, str]]) -> tuple[list[str], list[int]]:
    """Whose words each token is, and which messages were not found.

    Args:
        texts: of the tokens.
        messages: (role, text) in the order in which they stand there. White space is not compared.
    Returns: for each token a role, or "mark"; indices of the messages whose words do not stand in the tokens.
    """
    letters: list[str] = []
    owner: list[int] = []
    for at, text in enumerate(texts):
        letters.append(squeezed(text))
        owner += [at] * len(letters[-1])
    kinds, lost = [MARK] * len(texts), []
    said = [(role, squeezed(text)) for role, text in messages]
    for number, ((role, wanted), start) in enumerate(zip(said, places("".join(letters), said), strict=True)):
        if start < 0:
            lost.append(number)
        elif wanted:
            first, last = owner[start], owner[start + len(wanted) - 1]
            kinds[first:last + 1] = [role] * (last + 1 - first)
    return kinds, lost


def places(whole: str, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Where each message stands in a text, one after the other; -1: nowhere.

    A system text may stand anywhere: some templates put it into the last message of the user.
    """
    found = _in_order(whole, [text for _, text in messages])
    if -1 in found and any(role == "system" for role, _ in messages):
        rest = iter(_in_order(whole, [text for role, text in messages if role != "system"]))
        found = [whole.find(text) if role == "system" else next(rest) for role, text in messages]
    return found


def _in_order(whole: str, texts: Sequence[str]) -> list[int]:
    found, place = [], 0
    for text in texts:
        found.append(whole.find(text, place))
        place = found[-1] + len(text) if found[-1] >= 0 else place
    return found


def squeezed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())

"""Whole recipes without torch: models that are functions of the chat, trainings that count.

Only two seams are replaced: how a local model is loaded (`LocalModel.load`), and the two training functions. The rest
of a run, its loop, judges, logs, stages and evaluations, is the recipes' own.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dialoom.dialogue import Chat, content_id
from dialoom.files import read_steps
from dialoom.models.base import Completion, Sampling
from dialoom.models.local import LocalModel
from dialoom.store import append_row, write_rows, write_whole

SECONDS = 0.002  # a call of a scripted model: so that a run takes long enough to be killed in the middle of anything
Event = Callable[[str], None]
Respond = Callable[[str, Chat, str], str]
"""What a model says: of its name, the chat and a key that differs by request (and by what it has learned)."""


def quiet(*_: object) -> None:
    """Says nothing."""


class WordTemplate:
    """Cuts chats at white space; as much of a chat template as recipes ask for."""

    def with_reply(self, chat: Chat, reply: str, prompt: object = None) -> tuple[list[int], int]:
        """Ids of chat, reply and end, and where the reply begins."""
        before = self.prompt(chat)
        return [*before, *([1] * len(reply.split())), 2], len(before)

    def prompt(self, chat: Chat) -> list[int]:
        """Ids of the chat."""
        return [0] * sum(1 + len(message["content"].split()) for message in chat)


class ScriptedLocal(LocalModel):
    """A local model that answers by a function of chat and key, and that training changes (`learned`)."""

    def __init__(self, name: str, respond: Respond, learned: Sequence[str] = (),
                 event: Event = quiet) -> None:
        self.name = self.base = name
        self.respond, self.learned, self.event = respond, list(learned), event
        self.template, self.context = WordTemplate(), 1 << 30  # type: ignore[assignment]

    @property
    def fingerprint(self) -> str:
        return content_id(self.base, self.learned)

    @property
    def known_by(self) -> dict[str, str]:
        return {"fingerprint": self.fingerprint}

    def chat(self, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str],  # type: ignore[override]
             **_: object) -> list[Completion]:
        found = []
        for chat, key in zip(chats, keys, strict=True):
            self.event("model")
            greedy = sampling.temperature == 0
            found.append(Completion(self.respond(self.base, chat, content_id(self.learned, "" if greedy else key))))
        time.sleep(SECONDS)
        return found

    def choose(self, chats: Sequence[Chat], options: Sequence[str]) -> list[list[float]]:
        self.event("model")
        return [[-1.0 - int(content_id(chat, option, self.learned), 16) % 97 / 10 for option in options]
                for chat in chats]

    def reply_ids(self, chat: Chat, reply: str) -> tuple[list[int], int]:
        return self.template.with_reply(chat, reply)

    def save(self, folder: str | Path) -> None:
        for name in ("config.json", "learned.json", "tokenizer.json"):
            write_whole(Path(folder) / name, json.dumps({"name": self.base, "learned": self.learned}))
            self.event("save")


def load(respond: Respond, event: Event) -> Callable[..., ScriptedLocal]:
    """What stands in for `LocalModel.load`: a folder that was saved to, or a name."""
    def load_local(path_or_name: str | Path, *, adapter: str | Path | None = None, name: str | None = None,
                   **_: object) -> ScriptedLocal:
        file = Path(adapter or path_or_name) / "learned.json"
        held = json.loads(file.read_text()) if file.exists() else {"name": str(path_or_name), "learned": []}
        model = ScriptedLocal(held["name"], respond, held["learned"], event)
        model.name = name or model.name
        return model
    return load_local


# ------------------------------------------------------------------------------------------------ training


def train(model: ScriptedLocal, rows: Sequence[Any], config: Any, *, out: Path, log: Any = None, validate: Any = None,
          event: Event = quiet, **_: object) -> None:
    """Counts its steps: a checkpoint every second one, metrics after each, a validation at the end of each epoch.

    It keeps to what `train.loop.fit` promises: resumes from its checkpoint and drops the metrics that came after it.
    """
    out, total = Path(out), config.steps(len(rows))
    held, metrics = out / "checkpoint.json", out / "metrics.jsonl"
    step = json.loads(held.read_text())["step"] if held.exists() else 0
    if metrics.exists():
        write_rows(metrics, read_steps(metrics, step))
    before = list(model.learned)
    digest = content_id([str(row) for row in rows])
    while step < total:
        step += 1
        event("step")
        model.learned = [*before, digest, str(step)]
        append_row(metrics, {"step": step, "loss": int(content_id(model.learned), 16) % 1000 / 1000})
        if validate is not None and step == total:
            append_row(metrics, {"step": step, **{f"eval_{name}": value for name, value in validate(model).items()}})
        if step % 2 == 0 or step == total:
            write_whole(held, json.dumps({"step": step}))
        if log is not None:
            log({"step": step})
    model.learned = [*before, digest, str(total)]


def install(respond: Respond, event: Event = quiet) -> None:
    """Put the doubles in place, for the rest of this process.

    Args:
        event: told of every call and step by name, before it happens.
    """
    LocalModel.load = staticmethod(load(respond, event))  # type: ignore[assignment,method-assign]
    for name in ("sft", "dpo"):
        module = types.ModuleType(f"dialoom.train.{name}")

        def trained(model: Any, rows: Any, config: Any, **given: Any) -> None:
            train(model, rows, config, event=event, **given)

        setattr(module, name, trained)
        module.reference_logprobs = lambda *_: None  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module

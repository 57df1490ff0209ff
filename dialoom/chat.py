"""`dialoom chat`: one person, one model, one path of a dialogue tree; reads a terminal or a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dialoom.config import near_miss
from dialoom.dialogue import Dialogue, DialogueTree, Scenario, Turn, chat_view, content_id, turn_id
from dialoom.errors import DialoomError
from dialoom.models.base import ChatModel, Sampling
from dialoom.models.load import load_model
from dialoom.report.safe import visible
from dialoom.store import TreeLog

YOU = "you"
COMMANDS = ("/save", "/quit", "/help")
HELP = "/save FILE keeps the dialogue as a tree log (`dialoom show FILE` prints it), /quit ends it"


def talk(model: str, *, brief: str = "", temperature: float = 0.7, max_new_tokens: int = 200, seed: int = 0,
         device: str = "auto") -> None:
    """Talk with a model until /quit or the end of the input."""
    spec = f"run:{model}" if Path(model).is_dir() and (Path(model) / "config.yaml").exists() else model
    with _loading(spec):
        loaded = load_model(spec, device=device)
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    converse(loaded, _typed(), sampling=sampling, brief=brief, seed=seed)


def converse(model: ChatModel, lines: Iterator[str], *, sampling: Sampling, brief: str = "", seed: int = 0,
             console: Console | None = None) -> DialogueTree:
    """Answer each line; returns the dialogue as a tree. A reply that fails is told, and the line not kept."""
    out = console or Console()
    briefs = {model.name: brief} if brief else {}
    scene = Scenario(content_id("chat", model.fingerprint, brief, seed), "", briefs)
    tree, dialogue = DialogueTree(scene), Dialogue(scene)
    for line in lines:
        text = line.strip()
        if text == "/quit":
            break
        if text.startswith("/"):
            _obey(text, tree, out)
        elif text:
            try:
                dialogue = _answer(model, dialogue, text, sampling, brief, seed)
            except DialoomError as wrong:
                out.print(Text(visible(f"error: {wrong}"), "red"))
                continue
            for turn in dialogue.turns[-2:]:
                tree.add(turn)
            out.print(Text.assemble((f"{visible(model.name)}> ", "bold cyan"), visible(dialogue.last.text)))
    return tree


def _answer(model: ChatModel, dialogue: Dialogue, text: str, sampling: Sampling, brief: str, seed: int) -> Dialogue:
    asked = Turn(turn_id(seed, dialogue, YOU, 0, [text]), dialogue.turns[-1].id if dialogue.turns else None, YOU, text)
    heard = dialogue.then(asked)
    key = turn_id(seed, heard, model.name, 0, [model.fingerprint, brief, sampling.key()])
    reply = model.chat([chat_view(heard, model.name, brief or None)], sampling, [key])[0]
    notes = {"model": model.name} | ({"cut": True} if reply.finish == "length" else {})
    return heard.then(Turn(key, asked.id, model.name, reply.text, notes))


def _obey(text: str, tree: DialogueTree, out: Console) -> None:
    command, _, rest = text.partition(" ")
    path = rest.strip()
    if command == "/save" and path:
        try:
            with TreeLog(path) as log:
                log.add_tree(tree)
            out.print(Text(visible(f"saved {len(tree)} turns to {path}")))
        except DialoomError as wrong:
            out.print(Text(visible(f"error: {wrong}"), "red"))
    elif command in COMMANDS:
        out.print(Text(HELP))
    else:
        out.print(Text(visible(f"{command} is no command; {near_miss(command, COMMANDS)}")))


def _typed() -> Iterator[str]:
    """Lines of a person (with a prompt) or of a pipe (without), until there are no more."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no text must not end the talk
        yield from sys.stdin
        return
    import readline  # noqa: F401  gives `input` line editing and a history

    print(HELP)
    while True:
        try:
            yield input(f"{YOU}> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


class _loading:
    """A spinner on a terminal while the model loads."""

    def __init__(self, spec: str) -> None:
        self._status = Console(stderr=True).status(Text(f"loading {visible(spec)}")) if sys.stderr.isatty() else None

    def __enter__(self) -> None:
        if self._status:
            self._status.start()

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

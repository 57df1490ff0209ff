"""`dialoom chat`: one person and a model, or two side by side, and one dialogue tree; reads a terminal or a pipe.

With two models /switch changes who answers and /both asks both: the replies stand beside each other in the tree, and
the dialogue goes on from that of the model whose turn it is.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dialoom.config import near_miss, read_yaml
from dialoom.dialogue import Dialogue, DialogueTree, Scenario, Turn, chat_view, content_id, turn_id
from dialoom.errors import ConfigError, DialoomError, EndpointError
from dialoom.models.base import ENDED, ChatModel, Sampling
from dialoom.models.ledger import current, usage_beside
from dialoom.models.load import in_role, load_model
from dialoom.models.place import Place
from dialoom.models.stream import stream
from dialoom.report.safe import visible
from dialoom.store import TreeLog

YOU = "you"
COMMANDS = ("/save", "/switch", "/both", "/quit", "/help")
HELP = "/save FILE keeps the dialogue as a tree log (`dialoom show FILE` prints it), /quit ends it"
HELP_TWO = "/switch lets the other one answer, /both asks both (again: one); "


@dataclass(frozen=True)
class Voice:
    """Somebody to talk with.

    Attributes:
        within: entered around each reply; switches an adapter off for the untrained side.
    """

    label: str
    model: ChatModel
    within: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext, repr=False)


def talk(model: str = "", *, beside: str = "", planner: Path | None = None, brief: str = "", temperature: float = 0.7,
         max_new_tokens: int = 200, seed: int = 0, device: str | Place = "auto") -> None:
    """Talk with a model until /quit or the end of the input.

    Args:
        model: "": the one that the planner's run steered; such a run's folder is model and planner at once.
        beside: a second model; "": for a run what it began from, beside a steered model itself unsteered.
        planner: folder of what steers the model.
    Raises: ConfigError: if no model is named.
    """
    if planner is None and (Path(model) / "planner" / "steering.json").is_file():  # a run of DAT's
        model, planner = "", Path(model)
    model = model or _steered_by(planner)
    spec = f"run:{model}" if Path(model).is_dir() and (Path(model) / "config.yaml").exists() else model
    with _loading(spec):
        if planner is None:
            voices = [Voice(spec, load_model(spec, device=device))]
            voices += _beside(beside, spec, voices[0].model, device)
        else:
            from dialoom.models.steering import load_steered

            steered = load_steered(spec, planner, device=device)
            plain = _beside(beside, "", steered, device) or [Voice("unsteered", steered.model)]
            voices = [Voice(steered.name, steered), *plain]
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    converse(voices, _typed(len(voices) > 1), sampling=sampling, brief=brief, seed=seed)


def _steered_by(planner: Path | None) -> str:
    """The model that a run's planner was trained for."""
    settings = planner / "config.yaml" if planner else None
    if settings is None or not settings.exists():
        raise ConfigError(f"no model is named{f', and {planner} is no run that names one' if planner else ''}; "
                          "give one, as in `dialoom chat pocket`")
    return str(read_yaml(settings).get("model", "pocket"))


def _beside(beside: str, spec: str, model: ChatModel, device: str | Place) -> list[Voice]:
    """The second voice: the one that is named, or a run's untrained model; none where nothing was trained."""
    if beside:
        return [Voice(beside, in_role(load_model(beside, device=device), "beside"))]
    if not spec.startswith("run:"):
        return []
    if getattr(model, "has_adapter", False):
        return [Voice("untrained", model, model.without_adapter)]  # type: ignore[attr-defined]
    settings = Path(spec.removeprefix("run:")) / "config.yaml"
    began = read_yaml(settings).get("model", "pocket") if settings.exists() else ""
    return [Voice("untrained", load_model(str(began), device=device))] if began else []


def converse(voices: Sequence[Voice], lines: Iterator[str], *, sampling: Sampling, brief: str = "", seed: int = 0,
             console: Console | None = None) -> DialogueTree:
    """Answer each line; returns the dialogue as a tree. A reply that fails is told, and the line not kept.

    Args:
        voices: one or two; the first answers until /switch.
    """
    talked = _Talk(voices, console or Console(), sampling, brief, seed)
    for line in lines:
        text = line.strip()
        if text == "/quit":
            break
        if text.startswith("/"):
            talked.obey(text)
        elif text:
            talked.answer(text)
    return talked.tree


class _Talk:
    """A conversation as far as it went."""

    def __init__(self, voices: Sequence[Voice], out: Console, sampling: Sampling, brief: str, seed: int) -> None:
        self.voices, self.out, self.sampling, self.brief, self.seed = list(voices), out, sampling, brief, seed
        briefs = {voice.label: brief for voice in voices} if brief else {}
        self.both = False
        self.tree = DialogueTree(Scenario(content_id("chat", voices[0].model.fingerprint, brief, seed), "", briefs))
        self.path = Dialogue(self.tree.scenario)

    def answer(self, text: str) -> None:
        """Ask the voice whose turn it is (or both), and keep what was said."""
        last = self.path.turns[-1].id if self.path.turns else None
        asked = Turn(turn_id(self.seed, self.path, YOU, 0, [text]), last, YOU, text)
        heard = self.path.then(asked)
        replies: list[Turn] = []
        for voice in self.voices if self.both else self.voices[:1]:
            try:
                replies.append(self._reply(voice, heard))
            except DialoomError as wrong:
                self.out.print(Text(visible(f"error: {wrong}"), "red"))
        if not replies:
            return
        for turn in (asked, *replies):
            if turn.id not in self.tree:  # the same words again after a /switch
                self.tree.add(turn)
        self.path = heard.then(replies[0])

    def _reply(self, voice: Voice, heard: Dialogue) -> Turn:
        self.out.print(Text(f"{visible(voice.label)}> ", "bold cyan"), end="")
        chat = chat_view(_as_heard_by(voice, heard), voice.label, self.brief or None)
        with voice.within():
            key = turn_id(self.seed, heard, voice.label, 0, [voice.model.fingerprint, self.brief, self.sampling.key()])
            reply = stream(voice.model, chat, self.sampling, key,
                           lambda piece: self.out.print(Text(visible(piece)), end="", soft_wrap=True))
        self.out.print()
        if reply.finish not in ENDED:
            raise EndpointError(f"{voice.label} gave no reply ({reply.finish}); say it in other words")
        notes = {"model": voice.model.name} | ({"cut": True} if reply.finish == "length" else {})
        return Turn(key, heard.last.id, voice.label, reply.text, notes)

    def obey(self, text: str) -> None:
        """Do what a line that starts with a slash says."""
        command, _, rest = text.partition(" ")
        two = len(self.voices) > 1
        if command == "/save" and rest.strip():
            self._save(rest.strip())
        elif command in ("/switch", "/both") and not two:
            self._tell(f"{command} needs a second model; start with --beside MODEL")
        elif command == "/switch":
            self.voices.reverse()
            self._tell(f"{self.voices[0].label} answers now")
        elif command == "/both":
            self.both = not self.both
            self._tell(f"both answer; the talk goes on from {self.voices[0].label}" if self.both else
                       f"{self.voices[0].label} answers alone")
        elif command in COMMANDS:
            self._tell((HELP_TWO if two else "") + HELP)
        else:
            self._tell(f"{command} is no command; {near_miss(command, COMMANDS)}")

    def _save(self, path: str) -> None:
        try:
            with TreeLog(path) as log:
                log.add_tree(self.tree)
            ledger = current()
            if ledger is not None:
                ledger.write(usage_beside(Path(path)))
            self._tell(f"saved {len(self.tree)} turns to {path}")
        except DialoomError as wrong:
            self.out.print(Text(visible(f"error: {wrong}"), "red"))

    def _tell(self, line: str) -> None:
        self.out.print(Text(visible(line)))


def _typed(two: bool = False) -> Iterator[str]:
    """Lines of a person (with a prompt) or of a pipe (without), until there are no more."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no text must not end the talk
        yield from sys.stdin
        return
    import readline  # noqa: F401  gives `input` line editing and a history

    print((HELP_TWO if two else "") + HELP)
    while True:
        try:
            yield input(f"{YOU}> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def _as_heard_by(voice: Voice, heard: Dialogue) -> Dialogue:
    """The dialogue as if this voice had said all that was not said by the person."""
    turns = [turn if turn.speaker == YOU else replace(turn, speaker=voice.label) for turn in heard.turns]
    return Dialogue(heard.scenario, tuple(turns))


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

"""Settings out of YAML and flags, and whole command lines."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cyclopts import CycloptsError

from dialoom import cli
from dialoom.config import differences, fields, load_config, near_miss
from dialoom.errors import ConfigError, DialoomError
from dialoom.models.scripted import ScriptedModel
from dialoom.recipes.run import default_folder
from dialoom.recipes.shards import parse_shard

from .checks import Target, refused, writable
from .loaders import CHAT, PERSON, TALK, TRIVIA, lines
from .logs import FOLDER, LOG, RUN
from .mutants import PART
from .scratch import folder, write

RUN_BY = ("show", "chat", "eval", "personas", "pocket", *cli.RECIPES)
"""Commands that are carried out, on scripted models and without any recipe's work; of others only words are read."""


def _yaml(data: bytes) -> None:
    """The first byte chooses a recipe; a file and flags give its settings, which can be written and read again."""
    recipes = [importlib.import_module(f"dialoom.recipes.{name}") for name in (*cli.RECIPES, "personas")]
    presets = recipes[data[0] % len(recipes) if data else 0].PRESETS
    preset = list(presets.values())[len(data) % len(presets)]
    text, *flags = data[1:].split(PART)
    path = write("settings.yaml", text)
    given = dict(part.decode("utf-8", "replace").partition("=")[::2] for part in flags)
    found = refused(lambda: load_config(type(preset), preset, path, given), ConfigError)
    if isinstance(found, DialoomError):
        assert "\n" not in cli._one_line(found)
        return
    path = write("again.yaml", found.to_yaml().encode())
    assert load_config(type(preset), None, path) == found
    assert differences(found.values(), preset.values()) == [] or found != preset
    writable(found.identity())
    assert default_folder("x", found).parts[0] == "runs" and len(default_folder("x", found).parts) == 2
    assert len(list(fields(type(found)))) > 5
    near_miss(text.decode("utf-8", "replace")[:40], found.values())
    refused(lambda: parse_shard(text.decode("utf-8", "replace")[:12]), ConfigError)


@cache
def _home() -> None:
    """A working folder with something of each kind in it."""
    home = folder() / "home"
    home.mkdir()
    for name, part in zip(FOLDER, RUN.split(PART), strict=True):
        (home / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "run" / name).write_bytes(part)
    for name, content in (
        ("trees.jsonl", LOG),
        ("talk.jsonl", lines(TALK, CHAT)),
        ("people.jsonl", lines(PERSON)),
        ("asked.jsonl", lines(TRIVIA, {**TRIVIA, "answer": "Rome", "question_id": 2})),
        ("my.yaml", b"seed: 3\nlimit: 4\n"),
        ("bad.yaml", b"seed: ["),
    ):
        (home / name).write_bytes(content)


@contextlib.contextmanager
def _harmless() -> Iterator[io.StringIO]:
    """Models are scripted, recipes do nothing, the terminal is a string, the working folder is our own."""
    _home()
    model = ScriptedModel(lambda chat: "It is Lima.", choose=lambda chat, options: [1.0] * len(options))
    said, before = io.StringIO(), Path.cwd()
    with contextlib.ExitStack() as stack:
        for name in (*cli.RECIPES, "personas"):
            recipe = importlib.import_module(f"dialoom.recipes.{name}")
            stack.enter_context(patch.object(recipe, "run", lambda *_: None))
        for where in ("dialoom.models.load", "dialoom.chat", "dialoom.evaluate"):
            stack.enter_context(patch(f"{where}.load_model", lambda spec, **_: model))
        stack.enter_context(patch("dialoom.recipes.pocket_card.build_with_card", lambda *_: "built"))
        stack.enter_context(patch("sys.stdin", io.StringIO("Hello\n/quit\n")))
        stack.enter_context(patch.dict(os.environ))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(said))
        os.chdir(folder() / "home")
        try:
            yield said
        finally:
            os.chdir(before)


def _words(data: bytes) -> list[str]:
    """The words of a command line; none of them leads out of the working folder."""
    words = [part.decode("utf-8", "replace").replace("\x00", "") for part in data.split(PART)]
    return [word.replace("..", "_").replace("=/", "=").lstrip("/").replace("~", "_") for word in words][:40]


def _command(data: bytes) -> None:
    """A command line ends with a code that is documented, and an error of one line, never with a traceback."""
    words = _words(data)
    with _harmless() as said:
        if words[0] in RUN_BY or not any(name.split()[0] == words[0] for name in cli.COMMANDS):
            code = cli.main(words)
            assert code in (0, 1, cli.FAILED), code
            errors = [line for line in said.getvalue().split("\n") if line.startswith("error: ")]
            assert len(errors) == (code == cli.FAILED), said.getvalue()
        else:
            with contextlib.suppress(CycloptsError):
                cli.make_app(words).parse_args(words, exit_on_error=False, print_error=False)
    assert "Traceback" not in said.getvalue()


def _line(*words: Any) -> bytes:
    return PART.join(str(word).encode() for word in words)


TARGETS = [
    Target(
        "settings",
        _yaml,
        tuple(
            bytes([number]) + text
            for number, text in enumerate(
                (
                    b"model: hf:mine\nspeakers: [A, B]\nsft: {lr: 1e-4, epochs: 2}\ndpo:\n  beta: 0.2\nlimit: 5",
                    b"data: mine.jsonl\nauthors: [ann]\nseed: 4" + PART + b"dpo.beta=0.1" + PART + b"device=cpu",
                    b"model: pocket\nuser: rule\nturns: 3\nsft: {tune: lora}" + PART + b"turns=4",
                    b"model: pocket\ncandidates: 20\nranker: {eta: 0.4, decays: [0.1]}\npolicy: random"
                    + PART
                    + b"ranker.width=8",
                    b"kind: profile\n? [a]\n: &x {b: 2001-01-01}\n<<: *x\n",
                )
            )
        ),
    ),
    Target(
        "commands",
        _command,
        (
            _line("pbt", "--dry-run", "--model", "pocket", "--dpo.beta", "0.2", "--limit", 5, "-c", "my.yaml"),
            _line("ditto", "pairs", "--preset", "paper", "--out", "new", "--fresh"),
            _line("aloe", "--seed", 2, "--no-packed", "--sft.lr", "1e-3", "--dry-run"),
            _line("ideas", "-c", "bad.yaml"),
            _line("show", "run", "--tree", "one", "--limit", 2),
            _line("show", "trees.jsonl"),
            _line("chat", "pocket", "--brief", "Be kind.", "--temperature", 0),
            _line("eval", "flipflop", "--limit", 2),
            _line("eval", "recall", "--data", "asked.jsonl", "--out", "rows.json"),
            _line("eval", "diversity", "--data", "talk.jsonl"),
            _line("personas", "check", "people.jsonl", "people.jsonl", "--threshold", 0.5),
            _line("personas", "grow", "--dry-run"),
            _line("pocket", "card"),
            _line("pbt", "--shard", "1/2", "--out", "sharded", "trees"),
            _line("--help"),
            _line("--version"),
            _line("demo", "--out", "x"),
            _line("eval", "team", "--partner", "pocket", "--limit", 1),
        ),
        heavy=True,
    ),
]

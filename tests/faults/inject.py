"""Faults that are put into a process before a run begins in it, by name; what follows a colon is the value."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dialoom.dialogue import Chat
from dialoom.models.base import Completion, Sampling
from tests.faults import runs
from tests.faults.doubles import ScriptedLocal


def small_files(size: str) -> None:
    """No file may grow beyond so many bytes: a write past that fails as on a full disk, after a short write."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))


def nobody(_: str) -> None:
    """The process loses root's power over file modes."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def jumping_clock(seed: str) -> None:
    """Wall clock and monotonic clock jump by up to a day, either way, at each look."""
    rng, wall, steady = random.Random(seed), time.time, time.monotonic
    time.time = lambda: wall() + rng.uniform(-86_400, 86_400)
    time.monotonic = lambda: steady() + rng.uniform(-86_400, 86_400)


def said_otherwise(kind: str) -> None:
    """The scripted models misbehave: `judge` says nothing readable, the others as `MANNERS` have it."""
    real, change = ScriptedLocal.chat, MANNERS[kind]

    def chat(self: ScriptedLocal, *given: object, **more: object) -> list[Completion]:
        return [Completion(change(self.base, reply.text)) for reply in real(self, *given, **more)]  # type: ignore
    ScriptedLocal.chat = chat  # type: ignore[method-assign,assignment]


MANNERS: dict[str, Callable[[str, str], str]] = {
    "judge": lambda name, text: "It depends." if name == "judge" else text,
    "endless": lambda name, text: text + " and then" * 20_000 if name == "simulator" else text,
    "repeating": lambda name, text: text.partition("instruction: ")[0] + "instruction: Tell me more."
    if name == "simulator" else text,
    "role": lambda name, text: text.replace("instruction: ", "instruction: Assistant: Of course!\nUser: ")
    if name == "simulator" else text,
    "silent": lambda name, text: "" if name == "answerer" else text,
}


def slow(seconds: str) -> None:
    """Every call of a model takes so long."""
    from tests.faults import doubles

    doubles.SECONDS = float(seconds)


def hanging_close(sign: str) -> None:
    """Closing a run's folder hangs, as on a disk that has gone away; a file then stands at `sign`."""
    from dialoom.recipes.run import RunFolder

    def close(self: RunFolder) -> None:
        Path(sign).touch()
        time.sleep(60)
    RunFolder.close = close  # type: ignore[method-assign]


def batch(size: str) -> None:
    """At most so many replies, or dialogues, are in flight."""
    from dialoom.evals import redteam, social
    from dialoom.recipes import aloe, ditto_write, ideas, pbt

    real = pbt.grow
    for module in (pbt, ditto_write, social, redteam):
        module.grow = lambda *given, **more: real(*given, **more, batch=int(size))  # type: ignore[attr-defined]
    runs.SCRIPTED["aloe"] = runs.whole("aloe", aloe, runs.aloe_config(batch=int(size)))
    runs.SCRIPTED["ideas"] = runs.whole("ideas", ideas, runs.ideas_config(batch=int(size)))


def small(_: str) -> None:
    """Runs of a handful of questions by models that take no time: for tests that need hundreds of runs."""
    from dialoom.evals import alignment
    from dialoom.recipes import aloe, ideas, pbt, run
    from tests.faults import doubles

    doubles.SECONDS, real = 0, alignment._drawn
    run.revision, run.versions = lambda: None, dict  # which ask git and all packages
    alignment._drawn = lambda scores, seed: real(scores, seed, 50)  # intervals out of so many draws
    gc.freeze()  # what the server imported: collections then cost nothing
    runs.SCRIPTED["pbt"] = runs.whole("pbt", pbt, runs.pbt_config(limit=10, eval_questions=1, max_pairs=8))
    runs.SCRIPTED["aloe"] = runs.whole("aloe", aloe, runs.aloe_config(train_count=3, eval_count=1))
    few = runs.ideas_config(corpus_count=5, opening_count=3, eval_count=1)
    runs.SCRIPTED["ideas"] = runs.whole("ideas", ideas, few)


def opened(file: str) -> None:
    """What files are opened, whatever for, is written down, a path a line."""
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def hook(event: str, given: tuple[object, ...]) -> None:
        if event == "open" and isinstance(given[0], str | Path):
            os.write(log, f"{given[0]}\n".encode())
    sys.addaudithook(hook)


def split(size: str) -> None:
    """A model answers so many chats at a time, however many it is given."""
    real, most = ScriptedLocal.chat, int(size)

    def chat(self: ScriptedLocal, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str],
             **more: object) -> list[Completion]:
        return [reply for at in range(0, len(chats), most)
                for reply in real(self, chats[at:at + most], sampling, keys[at:at + most], **more)]
    ScriptedLocal.chat = chat  # type: ignore[method-assign,assignment]


def command_line(_: str) -> None:
    """The recipe `personas` is run by the command line's own `main`, signals and all."""
    from dialoom.cli import main

    def run(out: Path) -> int:
        return main(["personas", "grow", "--model", "hf:people", "--style", "free", "--rounds", "6", "--batch", "3",
                     "--count", "3", "--passes", "2", "--threshold", "0.7", "--out", str(out)])
    runs.SCRIPTED["personas"] = run


def killed(call: str) -> None:
    """The process is killed at that call of a model."""
    real, left = ScriptedLocal.chat, [int(call)]

    def chat(self: ScriptedLocal, *given: object, **more: object) -> list[Completion]:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *given, **more)  # type: ignore[arg-type]
    ScriptedLocal.chat = chat  # type: ignore[method-assign,assignment]


def counted(file: str) -> None:
    """A file gets a byte for each chat that a model is given; none is made if none is given."""
    real = ScriptedLocal.chat

    def chat(self: ScriptedLocal, chats: Sequence[Chat], *given: object, **more: object) -> list[Completion]:
        with Path(file).open("ab") as calls:
            calls.write(b"." * len(chats))
        return real(self, chats, *given, **more)  # type: ignore[arg-type]
    ScriptedLocal.chat = chat  # type: ignore[method-assign,assignment]


FAULTS: dict[str, Callable[[str], None]] = {
    "small_files": small_files, "nobody": nobody, "clock": jumping_clock, "says": said_otherwise, "slow": slow,
    "hanging_close": hanging_close, "batch": batch, "killed": killed, "counted": counted,
    "small": small, "opened": opened, "split": split, "command_line": command_line}

"""Dying on purpose: a process that kills itself at the n-th thing it does, also in the middle of a write."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITE = os.write  # as it is before anybody watches it
WATCHED = ("write", "fsync", "replace", "rename", "ftruncate", "unlink", "mkdir")
"""What of `os` changes a run folder, and the moments around it."""


class Bomb:
    """Counts what this process does, and sends it SIGKILL at one of these moments.

    Attributes:
        at: the event to die at, from 0; None: none, only count.
        half: if that event is a write, do part of it first: the torn line a kill may leave.
        within: count events of this stage only; None: all.
        calls: a file that gets a byte for every call of a model, so that they outlive the process; None: none.
        events: (what, stage) of everything so far.
        stage: the stage under way, as `watch_stages` tells.
    """

    def __init__(self, at: int | None = None, half: float = 0.5, within: str | None = None,
                 calls: Path | None = None) -> None:
        self.at, self.half, self.within, self.calls, self.stage = at, half, within, calls, ""
        self.events: list[tuple[str, str]] = []
        self._counted, self._handle = 0, -1

    def event(self, what: str) -> None:
        """Something is about to happen."""
        if self._due():
            self.die()
        self.events.append((what, self.stage))
        self._counted += self.within in (None, self.stage)
        if what == "model" and self.calls is not None:
            if self._handle < 0:
                self._handle = os.open(self.calls, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            WRITE(self._handle, b".")

    def _due(self) -> bool:
        return self._counted == self.at and self.within in (None, self.stage)

    def die(self) -> None:
        """No handler, no `finally`, no flush."""
        os.kill(os.getpid(), signal.SIGKILL)

    def plant(self) -> None:
        """Watch `os` and the stages of runs, for the rest of this process."""
        for name in WATCHED:
            setattr(os, name, self._watched(name, getattr(os, name)))
        self._watch_stages()

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            if name == "write" and self._due():
                real(given[0], bytes(given[1])[:int(len(given[1]) * self.half)])
                self.die()
            self.event(name)
            return real(*given, **more)
        return call

    def _watch_stages(self) -> None:
        from dialoom.recipes.run import RunFolder

        real = RunFolder.stage

        def stage(folder: RunFolder, name: str, *given: Any, **more: Any) -> Any:
            before, self.stage = self.stage, name
            try:
                return real(folder, name, *given, **more)
            finally:
                self.stage = before
        RunFolder.stage = stage  # type: ignore[method-assign]

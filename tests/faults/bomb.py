"""Dying on purpose: a process that kills itself at the n-th thing it does, also in the middle of a write."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

WATCHED = ("write", "fsync", "replace", "rename", "ftruncate", "unlink", "mkdir")
"""What of `os` changes a run folder, and the moments around it."""


class Bomb:
    """Counts what this process does, and sends it SIGKILL at one of these moments.

    Attributes:
        at: the event to die at, from 0; None: none, only count.
        half: if that event is a write, do part of it first: the torn line a kill may leave.
        events: (what, stage) of everything so far.
        stage: the stage under way, as `watch_stages` tells.
    """

    def __init__(self, at: int | None = None, half: float = 0.5) -> None:
        self.at, self.half, self.stage = at, half, ""
        self.events: list[tuple[str, str]] = []

    def event(self, what: str) -> None:
        """Something is about to happen."""
        if len(self.events) == self.at:
            self.die()
        self.events.append((what, self.stage))

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
            if name == "write" and len(self.events) == self.at:
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

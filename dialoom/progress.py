"""What the user sees while something takes long: a bar on a terminal, plain lines now and then elsewhere.

Nothing is said of work that is over within two seconds. Everything goes to stderr, so results can be piped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

QUIET_SECONDS = 2.0   # shorter work needs no bar
LINE_SECONDS = 15.0   # between two plain lines; a log of an hour stays readable


class Progress(Protocol):
    """Counts work done; made by `progress`."""

    def advance(self, n: int = 1) -> None:
        """`n` more are done."""
        ...

    def reach(self, done: int, label: str | None = None) -> None:
        """`done` are done in all; `label` renames the work."""
        ...


def quiet(*_: object) -> None:
    """Says nothing: where lines or steps could be told to somebody and nobody asked."""


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress]:
    """Show how far `label` has come, out of `total` (None: unknown), until the block ends."""
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        with _bar(label, total) as bar:
            yield bar
        return
    lines = _Lines(label, total)
    yield lines
    lines.finish()


class _Lines:
    """Plain lines: after two seconds, then every fifteen, then how long it took."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total, self._done = label, total, 0
        self._start = time.monotonic()
        self._next = self._start + QUIET_SECONDS

    def advance(self, n: int = 1) -> None:
        self.reach(self._done + n)

    def reach(self, done: int, label: str | None = None) -> None:
        self._done, self._label = done, label or self._label
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LINE_SECONDS
            self._say(self._rest(now))

    def finish(self) -> None:
        seconds = time.monotonic() - self._start
        if seconds >= QUIET_SECONDS:
            self._say(f", took {duration(seconds)}")

    def _rest(self, now: float) -> str:
        if not self._total or not 0 < self._done < self._total:
            return ""
        return f", about {duration((now - self._start) / self._done * (self._total - self._done))} left"

    def _say(self, end: str) -> None:
        of = f"/{self._total}" if self._total else ""
        print(f"{self._label}: {self._done}{of}{end}", file=sys.stderr, flush=True)


@contextmanager
def _bar(label: str, total: int | None) -> Iterator[Progress]:
    from rich.console import Console  # only where a bar is drawn: plain runs need not wait for it
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total)

        class Bar:
            def advance(self, n: int = 1) -> None:
                bars.advance(task, n)

            def reach(self, done: int, label: str | None = None) -> None:
                bars.update(task, completed=done, description=label)

        yield Bar()


def duration(seconds: float) -> str:
    """Seconds as a person says them: `12 s`, `3 min`, `2 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

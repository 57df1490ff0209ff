"""What every target holds its subject to: errors of Dialoom's own, text that can be written, and an end in time."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dialoom.errors import DialoomError

SECONDS = 10.0
"""User CPU time after which an input of a few kilobytes counts as hanging; they take milliseconds."""


@dataclass(frozen=True)
class Target:
    """Something that reads what others wrote.

    Attributes:
        run: tries one input; raises whatever shows a defect, and nothing else.
        seeds: good inputs, from which bad ones are made.
        heavy: needs torch or transformers, or takes over 5 ms an input.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    heavy: bool = False


class Hang(BaseException):
    """An input that takes too long; no `except Exception` on its way catches it."""


@contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Raises Hang once the block has used so much user CPU time; also out of a regular expression."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Hang(f"over {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def refused(call: Callable[[], Any], *kinds: type[DialoomError]) -> Any:
    """What `call` gives, or the DialoomError with which it refuses: a line that can be printed."""
    try:
        return call()
    except DialoomError as wrong:
        if kinds and not isinstance(wrong, kinds):
            raise
        assert str(wrong).strip(), "an error without a word"
        return wrong


def writable(value: Any) -> None:
    """Whether a value can be stored as JSON in UTF-8; a lone surrogate can not."""
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")

"""`python -m tests.watched REPORT COMMAND ...`: a command of Dialoom under Python's audit hooks.

Writes to REPORT, as JSON, what it wrote to, whom it connected to, which programs it started, what it unpickled, and how
the process was called. Used by tests/test_security.py.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
seen: dict[str, list[Any]] = {"written": [], "connected": [], "started": [], "unpickled": [], "title": []}


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what matters."""
    if event == "open" and isinstance(arguments[0], str | bytes) and isinstance(arguments[2], int):
        if arguments[2] & WRITING:
            seen["written"].append(str(Path(os.fsdecode(arguments[0])).absolute()))
    elif event in ("socket.connect", "socket.bind"):
        seen["connected"].append([event, str(arguments[1])])
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        seen["started"].append(f"{arguments[:2]!r}")
    elif event in ("pickle.find_class", "shelve.open", "dbm.open"):
        seen["unpickled"].append(f"{event} {arguments!r}")


def note_pickles() -> None:
    """Note every use of `pickle` to read; the audit hook alone hears of those only that name a class."""
    def noted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            seen["unpickled"].append(f"pickle.{real.__name__}")
            return real(*given, **more)
        return call

    class Unpickler(pickle.Unpickler):
        def load(self) -> Any:
            seen["unpickled"].append("pickle.Unpickler.load")
            return super().load()

    pickle.load, pickle.loads, pickle.Unpickler = noted(pickle.load), noted(pickle.loads), Unpickler  # type: ignore


def main() -> int:
    """Run the command and write the report, however it ends."""
    note_pickles()  # before anybody takes a name out of the module
    report = Path(sys.argv[1])

    def write() -> None:
        seen["title"] = [(Path("/proc/self") / name).read_text(errors="replace") for name in ("cmdline", "comm")]
        report.write_text(json.dumps(seen))

    from dialoom.cli import main

    atexit.register(write)
    sys.addaudithook(hook)
    return main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())

"""A process that has imported what scripted runs need and forks one for each run it is asked for.

It reads one command a line, {"run": ..., "out": ..., "faults": [...]}, and answers with the fork's process id, and
{"wait": <id>} with its exit status: 0 done, 2 refused by a `DialoomError` (whose text ends the log), 1 anything else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
REFUSED = 2


class Forks:
    """The client's side: starts the server, and runs in it."""

    def __init__(self) -> None:
        self._server = subprocess.Popen([sys.executable, "-m", "tests.faults.server"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])

    def close(self) -> None:
        """Let the server end."""
        self._server.communicate()

    def _ask(self, **command: Any) -> int:
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(command), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, run: str, out: Path, *faults: str) -> int:
        """Begin a run of `runs.SCRIPTED` with faults of `inject.FAULTS`; returns its process id."""
        return self._ask(run=run, out=str(out), faults=faults)

    def wait(self, process: int) -> int:
        """The exit status of a run."""
        return self._ask(wait=process)

    def run(self, run: str, out: Path, *faults: str) -> tuple[int, str]:
        """A run to its end: its exit status and what it said last."""
        status = self.wait(self.start(run, out, *faults))
        return status, said(out)


def said(out: Path) -> str:
    """What the latest run in a folder printed; it stands outside of the disk that faults are done to."""
    return _log(out).read_text(errors="replace")


def _log(out: Path) -> Path:
    return out.parent.parent / f"{out.parent.name}-{out.name}.log"


def _child(command: dict[str, Any]) -> int:
    from dialoom.errors import DialoomError
    from tests.faults import doubles, inject, runs

    out = Path(command["out"])
    log = os.open(_log(out), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    doubles.install(runs.respond)
    for fault in command["faults"]:
        name, _, value = fault.partition(":")
        inject.FAULTS[name](value)
    try:
        status = runs.SCRIPTED[command["run"]](out)
    except DialoomError as wrong:
        print(f"error: {wrong}", flush=True)
        return REFUSED
    return status or 0


def main() -> None:
    """Serve until the input ends."""
    import sklearn.metrics  # noqa: F401 - so that forks find them

    from tests.faults import inject, runs  # noqa: F401 - so that forks find them

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background is born deaf to it
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            print(os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = _child(command)
            except BaseException:  # noqa: BLE001 - told in the log
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        print(child, flush=True)


if __name__ == "__main__":
    main()

"""Measuring one way of generating against another: every way is a process of its own, and they take turns.

A process says what it is asked over a pipe and reports its own CPU-seconds and peak memory, so that no way pays for, or
profits from, what another left behind. Standard library only: vLLM's own environment runs this file too.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
              "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
Ids = Sequence[int]
Row = dict[str, Any]


class Sayer(Protocol):
    """A way of generating. `fresh` forgets all that earlier calls left; `say` continues prompts by `new` tokens each.

    Sampling beyond greedy (`keys`, `temperature`, `top_p`) is asked of ours only.
    """

    def fresh(self) -> None: ...

    def say(self, prompts: Sequence[Ids], new: int, **sampling: Any) -> list[list[int]]: ...


@dataclass(frozen=True)
class Said:
    """What one call gave and cost.

    Attributes:
        peak_mb: most memory held since `fresh`, above what the process held before it was first asked.
    """

    replies: list[list[int]]
    cpu_s: float
    peak_mb: float


class Worker:
    """A process that serves one `Sayer`. A context manager; it starts at once and waits without using the CPU."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """
        Args:
            command: ends in a call of `serve`.
            env: on top of `ONE_THREAD`.
        Raises: RuntimeError: if it does not start; what it said of it is on stderr.
        """
        self._name = " ".join(command[-3:])
        self._process = subprocess.Popen(command, cwd=ROOT, env={**ONE_THREAD, **(env or {})}, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def fresh(self) -> None:
        """Forget what earlier calls left."""
        self._ask(ask="fresh")

    def say(self, prompts: Sequence[Ids], new: int, **sampling: Any) -> Said:
        """Continue the prompts; RuntimeError if the process fails."""
        return Said(**self._ask(ask="say", prompts=[list(ids) for ids in prompts], new=new, **sampling))

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has died: reading says so
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: the process ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


def serve(make: Callable[[], Sayer]) -> None:
    """Answer requests from stdin until it closes; whatever else would print goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(found: Mapping[str, Any]) -> None:
        out.write(json.dumps(found) + "\n")
        out.flush()

    sayer = make()
    base = memory_mb("VmRSS")
    sayer.say([[5, 6, 7], [5, 7]], 4)  # what a first call alone pays for
    answer({})
    for line in sys.stdin:
        request = json.loads(line)
        if request.pop("ask") == "fresh":
            sayer.fresh()
            release()
            forget_peak()
            answer({})
        else:
            start = cpu_seconds()
            replies = sayer.say(**request)
            spent = cpu_seconds() - start
            answer({"replies": replies, "cpu_s": spent, "peak_mb": memory_mb("VmHWM") - base})


def memory_mb(field: str) -> float:
    """A field of this process's status (VmRSS: now, VmHWM: at most), in MB; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def release() -> None:
    """Give back what is no longer used, so that it is not counted against what comes next."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def forget_peak() -> None:
    """Let VmHWM start again from now, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds() -> float:
    """CPU time of this process and of all that live below it, whichever thread spent it."""
    return time.process_time() + sum(map(_seconds, _below(os.getpid())))


def _below(process: int) -> Iterator[int]:
    for found in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, found.read_text().split()):
            yield child
            yield from _below(child)


def _seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

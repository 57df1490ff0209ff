"""The embedded default asks nobody: its commands run to their ends where there is no network."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALONE = """
import socket, sys
asked = []

def hook(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        asked.append(event)
        raise OSError(101, "Network is unreachable")

real = socket.socket
class Nowhere(real):
    def __init__(self, family=-1, *given, **more):
        if family in (-1, socket.AF_INET, socket.AF_INET6):
            asked.append("socket.socket")
            raise OSError(101, "Network is unreachable")
        super().__init__(family, *given, **more)

socket.socket = Nowhere
sys.addaudithook(hook)
from dialoom.cli import main
code = main(sys.argv[1:])
print("asked:", asked, file=sys.stderr)
sys.exit(code or bool(asked))
"""


@cache
def apart() -> list[str]:
    """Words before a command that take all networks from it, C code's too; none where this process may not."""
    words = ["unshare", "--map-root-user", "--net"]
    try:
        return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []


def alone(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Dialoom in an empty home, with every network call refused and told."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OPENAI_", "XDG_"))}
    return subprocess.run([*apart(), sys.executable, "-c", ALONE, *words], cwd=where, capture_output=True, text=True,
                          env={**known, "HOME": str(where), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def test_a_call_of_the_network_would_be_noticed(tmp_path):
    done = alone(tmp_path, "eval", "flipflop", "--model", "openai:m", "--limit", "1")
    assert done.returncode, done.stderr  # without a key nothing is asked
    code = ALONE.replace("code = main(sys.argv[1:])", "code = 0\ntry: socket.create_connection(('127.0.0.1', 9))\n"
                         "except OSError: pass")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "asked: [" in done.stderr and "asked: []" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_embedded_default_runs_to_its_end_without_a_network(tmp_path):
    done = alone(tmp_path, "doctor")
    assert done.returncode == 0 and "asked: []" in done.stderr, done.stderr[-2000:]
    assert "weights of pocket" in done.stdout
    done = alone(tmp_path, "pbt", "--limit", "6", "--eval-questions", "2", "--sft.max-steps", "2",
                 "--dpo.max-steps", "2", "--out", "run")
    assert done.returncode == 0 and "asked: []" in done.stderr, done.stderr[-2000:]
    assert (tmp_path / "run" / "results.json").is_file() and (tmp_path / "run" / "report.html").is_file()

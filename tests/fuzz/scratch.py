"""Where inputs are written that are read as files: in memory where there is such a place, gone when the run ends."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def folder() -> Path:
    """An empty folder of this process, some levels deep, so that `../..` stays inside it."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="dialoom-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
    atexit.register(_remove, root, os.getpid())
    deep = root / "a" / "b" / "c"
    deep.mkdir(parents=True)
    return deep


def _remove(root: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a process forked from it
        shutil.rmtree(root, ignore_errors=True)


def write(name: str, data: bytes) -> Path:
    """A file there with this content."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def empty(name: str) -> Path:
    """A folder there with nothing in it."""
    path = folder() / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path

"""What tests of whole runs share: a server of forks, and one undisturbed run of each recipe."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.server import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A process that forks scripted runs."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="session")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an undisturbed run of a recipe, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("whole") / name
            status, said = forks.run(name, out)
            assert status == 0, said
            made[name] = out
        return made[name]
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a size of its own; skips aloud where this process may not mount."""
    where = tmp_path / "disk"
    where.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if where.is_mount() else ""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(where)], capture_output=True,
                              text=True)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        return where
    yield mount
    if where.is_mount():
        subprocess.run(["umount", "-l", str(where)], check=True)

"""One target under mutants of its good inputs, in this process; every defect once, with the smallest input for it."""

from __future__ import annotations

import random
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from .checks import Hang, Target, limited
from .mutants import mutant


@dataclass
class Tried:
    """What came of it: how many inputs, and for each defect (kind and place) its smallest input and its traceback."""

    inputs: int = 0
    found: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def one(self, target: Target, data: bytes) -> None:
        """Try one input."""
        self.inputs += 1
        try:
            with limited():
                target.run(data)
        except (Exception, Hang) as wrong:  # noqa: BLE001 - whatever comes out is what is looked for
            place = traceback.extract_tb(wrong.__traceback__)[-1]
            name = f"{type(wrong).__name__} at {place.filename.rsplit('/', 1)[-1]}:{place.lineno}"
            if name not in self.found or len(data) < len(self.found[name][0]):
                self.found[name] = (data, "".join(traceback.format_exception(wrong)))

    def write(self, folder: Path, name: str) -> None:
        """Write an input and a traceback for each defect."""
        for at, (data, told) in enumerate(self.found.values()):
            (folder / f"{name}-{at}.bin").write_bytes(data)
            (folder / f"{name}-{at}.txt").write_text(told, encoding="utf-8", errors="replace")


def tried(target: Target, inputs: int, seed: int = 0) -> Tried:
    """Every good input, then as many mutants as there is room for; the same seed gives the same inputs."""
    done = Tried()
    for data in target.seeds:
        done.one(target, data)
    for number in range(inputs - len(target.seeds)):
        done.one(target, mutant(target.seeds, random.Random(f"{seed}/{target.name}/{number}")))
    return done

"""What a finished run folder holds, apart from when and how often it was begun; and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dialoom.dialogue import Turn
from dialoom.store import read_skips, read_trees

PASSING = {"env.json", "report.html", ".lock"}
"""Files that say when a run began, and what of it was said; the report is made of the others."""

Rows = Counter[str]


@dataclass
class Difference:
    """How a run that was disturbed differs from one that was not.

    Attributes:
        lost, extra: rows of the JSON-lines files, tree logs turn by turn with their notes and scores.
        repeated: turns that stand twice in a log.
        files: those there are on one side only, or with other content.
    """

    lost: int = 0
    extra: int = 0
    repeated: int = 0
    files: list[str] = field(default_factory=list)

    @property
    def none(self) -> bool:
        """Whether there is no difference."""
        return not (self.lost or self.extra or self.repeated or self.files)


def difference(expected: Path, found: Path) -> Difference:
    """What of a run is not as expected."""
    left, right = contents(expected), contents(found)
    told = Difference(files=sorted(left.keys() ^ right.keys()))
    for name in left.keys() & right.keys():
        if left[name] != right[name]:
            told.files.append(name)
        if isinstance(left[name], Counter) and isinstance(right[name], Counter):
            told.lost += (left[name] - right[name]).total()
            told.extra += (right[name] - left[name]).total()
    told.repeated = sum(repeated(path) for path in found.rglob("*.jsonl"))
    return told


def contents(folder: Path) -> dict[str, Any]:
    """Every file by its path in the folder: rows counted, or a hash."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and path.name not in PASSING and path.suffix != ".lock":
            found[name] = (_rows(path) if path.suffix == ".jsonl" else _marker(path) if path.parent.name == "stages"
                           else hashlib.sha256(_plain(path)).hexdigest())
    return found


def _plain(path: Path) -> bytes:
    """A file's bytes; safetensors writes a header's entries, and PEFT the layers of an adapter, in any order."""
    data = path.read_bytes()
    if path.name == "adapter_config.json":
        return bytes(sorted(data))
    if path.suffix != ".safetensors":
        return data
    size = int.from_bytes(data[:8], "little")
    try:
        return json.dumps(json.loads(data[8:8 + size]), sort_keys=True).encode() + data[8 + size:]
    except ValueError:  # damaged
        return data


def is_log(path: Path) -> bool:
    """Whether a file is a log of trees."""
    with path.open("rb") as file:
        return b'"crc":"' in file.readline()[-30:]


def _rows(path: Path) -> Rows:
    if not is_log(path):
        return Counter(line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line)
    trees = read_trees(path)  # warns, which fails a test, if the log is damaged still
    rows = Counter(json.dumps([tree.id, _said(turn)], sort_keys=True) for tree in trees.values() for turn in tree)
    rows.update(json.dumps([tree.id, tree.scenario.id, tree.scenario.opening]) for tree in trees.values())
    rows.update(json.dumps(asdict(skip)) for skip in read_skips(path))
    return rows


def _said(turn: Turn) -> dict[str, Any]:
    """A turn; of the action that steered it how many numbers it has: their last digits are those of its batch."""
    row = asdict(turn)
    if "action" in row["notes"]:
        row["notes"] = {**row["notes"], "action": len(row["notes"]["action"])}
    return row


def _marker(path: Path) -> Any:
    """A marker without when, how long, and what was asked anew or stood there already."""
    try:
        held = json.loads(path.read_bytes())
    except ValueError:
        return path.read_bytes()
    if not isinstance(held, dict):
        return held
    value = held.get("value")
    if isinstance(value, dict) and "counts" in value:
        held["value"] = {name: found for name, found in value.items() if name != "counts"}
    return {name: found for name, found in held.items() if name not in ("finished", "seconds", "logs")}


def repeated(path: Path) -> int:
    """Turns that a log holds twice."""
    if not is_log(path):
        return 0
    lines = (json.loads(line) for line in path.read_bytes().split(b"\n") if line)
    turns = Counter((row["tree"], row["id"]) for row in lines if row["kind"] == "turn")
    return turns.total() - len(turns)

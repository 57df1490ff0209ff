"""What a run folder holds, read for people: any file may be missing, and the run may still be going on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dialoom.config import read_yaml
from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.files import read_json
from dialoom.models.ledger import row_line
from dialoom.report.placed import placed
from dialoom.report.table import Row
from dialoom.select import Pair
from dialoom.store import FollowedLog, Skip, read_rows

MAIN = "trees.jsonl"
ATTACKS, HARDENING = "harden/attacks.jsonl", "harden/pairs.jsonl"   # of a red-teaming run that hardens its defender
FILES = (MAIN, "pairs.jsonl", "metrics.jsonl", "results.json", "notes.json", "dropped.json", "funnel.json",
         "usage.json", "briefs.json", "config.yaml", "env.json", HARDENING)
OTHERS = ("arms/*/trees.jsonl", ATTACKS, "evals/*.jsonl")   # dialogues beside the run's own: arms, evaluations


@dataclass(frozen=True)
class Part:
    """The dialogues of one file: those of the run itself ("trees"), of an arm, of an evaluation.

    Attributes:
        changes: of a log that is followed: how many records each tree has.
        pairs: rows that name trees and turns of this part.
        added: by tree, turns that a page shows though the log does not hold them.
    """

    name: str
    trees: Sequence[DialogueTree]
    skips: Sequence[Skip] = ()
    changes: Mapping[str, int] | None = None
    pairs: Sequence[Row] = ()
    added: Mapping[str, Sequence[Turn]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a run folder holds; what is missing is empty. `notes` lead the page, `parts` begin with the run's own.

    Attributes:
        pairs: all rows, those of hardening too.
        briefs: private instructions by their names, see `RunFolder.briefs`.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    pairs: Sequence[Row] = ()
    metrics: Sequence[Row] = ()
    results: Sequence[Row] = ()
    stages: Sequence[Row] = ()
    funnels: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    briefs: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """The recipe's name, as the run says it or as the folder's name begins."""
        named = self.config.get("recipe") or self.env.get("recipe")
        return str(named or self.folder.resolve().name.split("-")[0])

    @property
    def trees(self) -> Sequence[DialogueTree]:
        """The run's own dialogues."""
        return next((part.trees for part in self.parts if part.name == "trees"), ())


Followed = dict[Path, FollowedLog]
"""The logs of a run that is read again and again, by path."""


def read_run(folder: Path, followed: Followed | None = None) -> Run:
    """Everything a page tells of a run folder.

    Args:
        followed: what was read of its logs before; they are read on, and their trees are changed.
    Raises:
        StoreError: if there is no such folder, or a log in it is no log.
        DataError: naming the file that breaks its format.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such run folder; `--out` of a run names it, by default it lies below runs/")
    damage: list[str] = []

    def rows(name: str) -> Sequence[Row]:
        return read_rows(folder / name, log=damage.append) if (folder / name).exists() else []

    parts = [part for path in logs(folder) if (part := _part(folder, path, damage, followed)) is not None]
    pairs, metrics, results = rows("pairs.jsonl"), rows("metrics.jsonl"), read_results(folder / "results.json")
    parts = [replace(part, pairs=pairs) if part.name == "trees" else part for part in _hardened(folder, parts, rows)]
    pairs = [*pairs, *(pair for part in parts if part.name != "trees" for pair in part.pairs)]
    notes = [str(note) for note in _json(folder / "notes.json", list)]
    briefs = {str(name): str(text) for name, text in _json(folder / "briefs.json", dict).items()}
    return Run(folder, _yaml(folder / "config.yaml"), _json(folder / "env.json", dict), parts, pairs, metrics, results,
               _stages(folder), _json(folder / "funnel.json", dict), [*notes, *_usage(folder), *damage],
               _dropped(folder, parts), briefs)


def logs(folder: Path) -> Iterator[Path]:
    """The files of a run folder that may hold dialogues, the run's own first."""
    if (folder / MAIN).exists():
        yield folder / MAIN
    for pattern in OTHERS:
        yield from sorted(folder.glob(pattern))


def _part(folder: Path, path: Path, damage: list[str], followed: Followed | None) -> Part | None:
    name = path.relative_to(folder).as_posix().removesuffix(".jsonl").removesuffix(".trees")
    with path.open("rb") as file:
        first = file.readline()
    if path.name == MAIN or first.startswith(b'{"kind":"tree"'):
        log = FollowedLog(path) if followed is None else followed.setdefault(path, FollowedLog(path))
        log.read(log=damage.append)
        return Part(name.removesuffix("/trees"), list(log.trees.values()), log.skips, log.changes)
    rows = read_rows(path, log=damage.append)
    trees = [tree for number, row in enumerate(rows) if (tree := _told(row, f"{name}-{number}")) is not None]
    return Part(name, trees) if trees else None


def _hardened(folder: Path, parts: Sequence[Part], rows: Callable[[str], Sequence[Row]]) -> list[Part]:
    """The parts, the attacks with what was preferred to their successes, and the pairs that are of no attack."""
    pairs = [Pair.from_row(row, f"{folder / HARDENING}:{line}") for line, row in enumerate(rows(HARDENING), 1)]
    attacks = ATTACKS.removesuffix(".jsonl")
    found = placed(pairs, next((part.trees for part in parts if part.name == attacks), ()))
    beside = [Part(HARDENING.removesuffix(".jsonl"), found.trees, pairs=found.apart)] if found.trees else []
    return [*(replace(part, pairs=found.pairs, added=found.added) if part.name == attacks else part for part in parts),
            *beside]


def _told(row: Row, id: str) -> DialogueTree | None:
    """The dialogue of one evaluation's row, as a tree of one path; None where the row holds none."""
    said = row.get("turns")
    if not isinstance(said, list) or not all(isinstance(turn, dict) and "text" in turn for turn in said):
        return None
    facts = {name: value for name, value in row.items() if name not in ("turns", "opening", "scenario")}
    tree = DialogueTree(Scenario(str(row.get("scenario", id)), str(row.get("opening", "")), facts=facts), id)
    for number, turn in enumerate(said):
        rest = {name: value for name, value in turn.items() if name not in ("speaker", "text")}
        scores = {name: value for name, value in rest.items() if type(value) in (int, float)}
        tree.add(Turn(f"{id}-{number}", f"{id}-{number - 1}" if number else None, str(turn.get("speaker", "")),
                      str(turn["text"]), {name: value for name, value in rest.items() if name not in scores}, scores))
    return tree


def _stages(folder: Path) -> list[Row]:
    found = [_json(path, dict) for path in sorted(folder.glob("stages/*.json"))]
    return sorted(found, key=lambda row: str(row.get("finished", "")))


def _usage(folder: Path) -> list[str]:
    """What endpoints were asked and what it cost, a line for each role; what they left unanswered; what was noted."""
    held = _json(folder / "usage.json", dict)
    try:
        lines = [*map(row_line, held.get("rows", [])),
                 *(f"left out, since nothing came that could be used: {int(count):,} x {why}"
                   for why, count in held.get("left_out", {}).items()),
                 *map(str, held.get("notes", []))]
    except (TypeError, KeyError, ValueError, AttributeError):
        raise DataError(f"{folder / 'usage.json'}: expected rows of role, model and tokens, and what was left out, "
                        f"found {held!r:.200}") from None
    return [f"Endpoints: {line}" for line in lines]


def _dropped(folder: Path, parts: Sequence[Part]) -> dict[str, int]:
    if (folder / "dropped.json").exists():
        found = _json(folder / "dropped.json", dict)
    else:
        found = Counter(skip.reason for part in parts if part.name == "trees" for skip in part.skips)
    try:
        return {str(reason): int(count) for reason, count in sorted(found.items(), key=lambda item: -int(item[1]))}
    except (TypeError, ValueError):
        raise DataError(f"{folder / 'dropped.json'}: expected {{reason: count}}, found {found!r:.200}") from None


def _json(path: Path, kind: type) -> Any:
    """What a JSON file holds, which must be a `kind`; an empty one where there is no file."""
    return read_json(path, kind, default=kind(), error=DataError, hint="delete it and run the same command again")


def _yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_yaml(path)
    except ConfigError as wrong:
        raise DataError(str(wrong)) from None


def read_results(path: Path) -> list[Row]:
    """The tidy rows of a `results.json`; none where there is no file. Raises DataError naming a row that is none."""
    return [_checked(row, path) for row in _json(path, list)]


def _checked(row: Any, path: Path) -> Row:
    needed = {"eval": str, "subject": str, "metric": str, "value": int | float | None}
    wrong = [key for key, kind in needed.items() if not isinstance(row, dict) or not isinstance(row.get(key, ()), kind)]
    if isinstance(row, dict):
        wrong += [key for key in ("low", "high", "n", "seed") if not isinstance(row.get(key), int | float | None)]
    if wrong:
        raise DataError(f"{path}: a row lacks {', '.join(wrong)}; expected eval, subject, metric, value, low, high, "
                        f"n, seed; found {row!r:.200}")
    checked: Row = row
    return checked

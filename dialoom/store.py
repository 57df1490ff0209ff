"""The log of dialogue trees, which survives a kill; `files` holds whole files and rows, which do so too.

`TreeLog` is append-only JSON lines, one record a line (`tree`, `turn`, `score`, `skip`), the last field of each being
the CRC-32 of the rest. Its surprising choice: on opening it repairs itself. A torn last line (a kill, a full disk) is
cut; a line that fails its checksum is moved to `<log>.bad` together with whatever hangs on it, and all of it counts as
never said, so the same command says it again under the same ids.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dialoom.dialogue import DialogueTree, Scenario, Turn, content_id
from dialoom.errors import DataError, StoreError
from dialoom.files import (
    Log,
    Row,
    StoreWarning,
    append_row,
    dumped,
    lock,
    read_rows,
    remove_drafts,
    stopped,
    warn,
    write_all,
    write_rows,
    write_whole,
)
from dialoom.text import parse_json

__all__ = [  # with the names of `files`, so that whoever keeps trees has one module to import from
    "SYNC_RECORDS", "SYNC_SECONDS", "FollowedLog", "Log", "Row", "Skip", "StoreWarning", "TreeLog", "append_row",
    "framed", "is_damaged", "lock", "read_rows", "read_skips", "read_trees", "remove_drafts", "unframed", "write_rows",
    "write_whole"]

SYNC_RECORDS = 100  # fsync at every record writes 252 records a second, every 100 records 25,300, losing at most those
SYNC_SECONDS = 1.0
_TAIL = len(',"crc":"01234567"}\n')
_FIELDS: dict[str, dict[str, Any]] = {
    "tree": {"id": str, "scenario": dict},
    "turn": {"tree": str, "id": str, "parent": str | None, "speaker": str, "text": str, "notes": dict, "scores": dict},
    "score": {"tree": str, "turn": str, "notes": dict, "scores": dict},
    "skip": {"tree": str, "turn": str | None, "reason": str}}
_SCENE = {"id": str, "opening": str, "briefs": dict, "facts": dict}


@dataclass(frozen=True)
class Skip:
    """Something that was left out on purpose, and why: a whole tree (`turn` None) or one turn of it."""

    tree: str
    turn: str | None
    reason: str


# ---------------------------------------------------------------------------------------------- one line


def framed(record: Mapping[str, Any], where: str) -> bytes:
    """A record as one line that ends in its checksum."""
    body = dumped(record, where)
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def unframed(line: bytes) -> Row | None:
    """The record of a whole line; None if the checksum or the frame is wrong."""
    body = line[:-_TAIL] + b"}"
    if line[-_TAIL:] != b',"crc":"%08x"}\n' % zlib.crc32(body):
        return None
    try:
        record = parse_json(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


# ------------------------------------------------------------------------------------------------ replay


@dataclass(frozen=True)
class _Bad:
    line: int
    offset: int
    raw: bytes
    why: str


@dataclass
class _Replay:
    """What a log says: its trees and skips, the lines that do not count, and the byte at which a torn tail begins."""

    trees: dict[str, DialogueTree] = field(default_factory=dict)
    skips: dict[Skip, None] = field(default_factory=dict)
    bad: list[_Bad] = field(default_factory=list)
    torn: int | None = None
    changes: Counter[str] = field(default_factory=Counter)  # records by tree

    def apply(self, record: Row) -> str:
        """Take in one record; returns why it cannot count ("" if it does)."""
        kind = record["kind"]
        self.changes[record["id" if kind == "tree" else "tree"]] += 1
        if kind == "skip":
            self.skips[Skip(record["tree"], record["turn"], record["reason"])] = None
            return ""
        if kind == "tree":
            if record["id"] in self.trees:
                return "repeats a tree"
            self.trees[record["id"]] = DialogueTree(Scenario(**record["scenario"]), record["id"])
            return ""
        tree = self.trees.get(record["tree"])
        if tree is None:
            return "hangs on a tree that was lost"
        return _add_turn(tree, record) if kind == "turn" else _add_scores(tree, record)


def _add_turn(tree: DialogueTree, record: Row) -> str:
    if record["id"] in tree:
        return "repeats a turn"
    if record["parent"] is not None and record["parent"] not in tree:
        return "hangs on a turn that was lost"
    tree.add(Turn(*(record[name] for name in ("id", "parent", "speaker", "text", "notes", "scores"))))
    return ""


def _add_scores(tree: DialogueTree, record: Row) -> str:
    if record["turn"] not in tree:
        return "hangs on a turn that was lost"
    turn = tree[record["turn"]]
    turn.scores.update(record["scores"])
    turn.notes.update(record["notes"])
    return ""


def _replay(path: Path) -> _Replay:
    replay = _Replay()
    offset = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                replay.torn = offset
                break
            why = _count(replay, line, f"{path}:{number}")
            if why:
                replay.bad.append(_Bad(number, offset, line, why))
            offset += len(line)
    return replay


def _count(replay: _Replay, line: bytes, where: str) -> str:
    record = unframed(line)
    if record is None:
        return "fails its checksum"
    if record.get("kind") not in ("tree", "turn", "score", "skip"):
        raise StoreError(f"{where}: record of unknown kind {record.get('kind')!r}, expected tree, turn, score or skip; "
                         "was it written by a newer Dialoom?")
    kind = record["kind"]
    wrong = _misfit(record, _FIELDS[kind]) or (kind == "tree" and _misfit(record["scenario"], _SCENE))
    if not wrong and not all(isinstance(score, int | float) for score in record.get("scores", {}).values()):
        wrong = "scores that are no numbers"
    if wrong:
        raise StoreError(f"{where}: {kind} record lacks or misnames a field ({wrong}); "
                         "was it written by another program?")
    return replay.apply(record)


def _misfit(record: Row, fields: Mapping[str, Any]) -> str:
    """The first field that is missing or of another kind, or that nobody knows; "" if all fit."""
    for name, kind in fields.items():
        if name not in record or not isinstance(record[name], kind):
            return name
    return next((name for name in record if name not in fields and name != "kind"), "")


def _describe(path: Path, replay: _Replay, repaired: bool) -> Iterator[str]:
    if replay.torn is not None:
        yield (f"{path}: the last line was torn at byte {replay.torn} (a kill or a full disk); "
               f"it {'was cut' if repaired else 'is ignored'}")
    if replay.bad:
        first, count = replay.bad[0], len(replay.bad)
        yield (f"{path}:{first.line} (byte {first.offset}) {first.why}; {count} record{'s' * (count > 1)} "
               f"{'went to ' + path.name + '.bad and will be made again' if repaired else 'ignored'}")


def read_trees(path: str | Path, *, log: Log = warn) -> dict[str, DialogueTree]:
    """The trees of a log by id, also while somebody writes it; damage is told to `log` and read around.

    Raises: StoreError: if there is no such file or it is no log.
    """
    return _read(Path(path), log).trees


def read_skips(path: str | Path, *, log: Log = warn) -> list[Skip]:
    """What a log says was left out, oldest first."""
    return list(_read(Path(path), log).skips)


class FollowedLog:
    """A log that somebody may be writing, read again and again: each time only what was added.

    A log that was begun anew or repaired meanwhile is read from its start.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._begin()

    def _begin(self) -> None:
        self._replay, self._offset, self._lines, self._last = _Replay(), 0, 0, b""

    @property
    def trees(self) -> dict[str, DialogueTree]:
        """By id, as far as the log was read; reading on changes them."""
        return self._replay.trees

    @property
    def skips(self) -> list[Skip]:
        """What was left out, oldest first."""
        return list(self._replay.skips)

    @property
    def changes(self) -> Mapping[str, int]:
        """How many records there are of each tree: where the number is the same, so is the tree."""
        return self._replay.changes

    def read(self, *, log: Log = warn) -> None:
        """Take in what was added; damage is told to `log`, as by `read_trees`. Raises StoreError as that does."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset - len(self._last))
                if file.read(len(self._last)) != self._last:
                    self._begin()
                    file.seek(0)
                self._take(file)
        except StoreError:
            raise
        except OSError as wrong:
            raise StoreError(f"{self.path}: cannot read a tree log there ({wrong.strerror})") from None
        for message in _describe(self.path, self._replay, repaired=False):
            log(message)

    def _take(self, lines: Iterable[bytes]) -> None:
        self._replay.torn = None
        for line in lines:
            if not line.endswith(b"\n"):
                self._replay.torn = self._offset
                return
            why = _count(self._replay, line, f"{self.path}:{self._lines + 1}")
            if why:
                self._replay.bad.append(_Bad(self._lines + 1, self._offset, line, why))
            self._lines, self._offset, self._last = self._lines + 1, self._offset + len(line), line


def is_damaged(path: Path) -> bool:
    """Whether a whole line of a log fails its checksum; a torn last one is no damage."""
    with path.open("rb") as lines:
        return any(unframed(line) is None for line in lines if line.endswith(b"\n"))


def _read(path: Path, log: Log) -> _Replay:
    try:
        replay = _replay(path)
    except StoreError:
        raise
    except OSError as wrong:
        raise StoreError(f"{path}: cannot read a tree log there ({wrong.strerror})") from None
    for message in _describe(path, replay, repaired=False):
        log(message)
    return replay


# ---------------------------------------------------------------------------------------------- the log


class TreeLog:
    """The one writer of a tree log; use it in a `with` block, or close it.

    A call is one write: after a kill a batch is there whole, or in part with nothing damaged. Records are on the disk
    (fsync) after 100 of them, after a second's worth, and on closing.

    Args:
        path: the log; made with its folder where missing.
        log: told about repairs, one message each; None: `warnings.warn`.
    Raises: StoreError: if another process writes this log, or it cannot be written at all. This comes before any work.
    """

    def __init__(self, path: str | Path, *, log: Log | None = None) -> None:
        self.path = Path(path)
        if "\0" in str(path):
            raise StoreError(f"{str(path)!a}: no file has such a name; choose another")
        self._file = self._lock = -1
        self._log = log or warn
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path.with_name(self.path.name + ".lock"), self.path)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            replay = self._repair()
        except BaseException as wrong:
            self.close()
            if isinstance(wrong, OSError) and not isinstance(wrong, StoreError):
                raise StoreError(f"{self.path}: cannot write a log there ({wrong.strerror}); "
                                 "choose another folder with --out") from None
            raise
        self._turns = {tree.id: {turn.id for turn in tree} for tree in replay.trees.values()}
        self._scenes = {tree.id: _fingerprint(tree.scenario) for tree in replay.trees.values()}
        self._skips = set(replay.skips)
        self._size = os.fstat(self._file).st_size
        self._unsynced, self._synced_at = 0, time.monotonic()

    def __enter__(self) -> TreeLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repair(self) -> _Replay:
        replay = _replay(self.path)
        if replay.torn is not None:
            os.ftruncate(self._file, replay.torn)
        if replay.bad:
            with self.path.with_name(self.path.name + ".bad").open("ab") as quarantine:
                quarantine.writelines(bad.raw for bad in replay.bad)
            drop = {bad.line for bad in replay.bad}
            with self.path.open("rb") as lines:
                keep = b"".join(line for number, line in enumerate(lines, 1) if number not in drop)
            write_whole(self.path, keep)
            os.close(self._file)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        for message in _describe(self.path, replay, repaired=True):
            self._log(message)
        return replay

    def trees(self) -> dict[str, DialogueTree]:
        """Every tree by id, replayed from the file; the caller's to grow."""
        return _replay(self.path).trees

    def skips(self) -> list[Skip]:
        """What was left out, oldest first."""
        return list(_replay(self.path).skips)

    def add_tree(self, tree: DialogueTree) -> None:
        """Log a tree and its turns; where it stands in the log already, only the turns that are not there.

        Raises: DataError: if a tree of this id with another scenario was logged before.
        """
        scene = tree.scenario
        if tree.id in self._scenes:
            if self._scenes[tree.id] != _fingerprint(scene):
                raise DataError(f"{self.path}: tree {tree.id} was logged with another scenario; ids must be unique")
            self.add_turns(tree, [turn for turn in tree if turn.id not in self._turns[tree.id]])
            return
        about = {"id": scene.id, "opening": scene.opening, "briefs": dict(scene.briefs), "facts": dict(scene.facts)}
        turns = [_turn_record(tree.id, turn) for turn in tree]
        self._write([{"kind": "tree", "id": tree.id, "scenario": about}, *turns])
        self._turns[tree.id] = {turn["id"] for turn in turns}
        self._scenes[tree.id] = _fingerprint(scene)

    def add_turns(self, tree: DialogueTree, turns: Iterable[Turn]) -> None:
        """Log turns said in a logged tree, parents first. Raises DataError on a repeated id or an unknown parent."""
        known = self._known(tree)
        new: dict[str, Turn] = {}
        for turn in turns:
            if turn.id in known or turn.id in new:
                raise DataError(f"{self.path}: turn {turn.id} of tree {tree.id} was logged before; ids must be unique")
            if turn.parent is not None and turn.parent not in known and turn.parent not in new:
                raise DataError(f"{self.path}: turn {turn.id} names parent {turn.parent}, which is not in the log; "
                                "log parents before children")
            new[turn.id] = turn
        self._write([_turn_record(tree.id, turn) for turn in new.values()])
        known.update(new)

    def add_scores(self, tree: DialogueTree, turns: Iterable[Turn]) -> None:
        """Log the scores and notes that logged turns have by now; the latest of one name wins."""
        known = self._known(tree)
        records = []
        for turn in turns:
            if turn.id not in known:
                raise DataError(f"{self.path}: scores for turn {turn.id}, which is not in the log; log the turn first")
            records.append({"kind": "score", "tree": tree.id, "turn": turn.id,
                            "scores": turn.scores, "notes": turn.notes})
        self._write(records)

    def skip(self, tree_id: str, turn_id: str | None, reason: str) -> None:
        """Log that a tree (`turn_id` None) or one turn is left out, and why; saying the same again writes nothing."""
        skip = Skip(tree_id, turn_id, reason)
        if skip not in self._skips:
            self._write([{"kind": "skip", "tree": tree_id, "turn": turn_id, "reason": reason}])
            self._skips.add(skip)

    def sync(self) -> None:
        """Force what was written onto the disk."""
        try:
            os.fsync(self._file)
        except OSError as wrong:
            raise stopped(self.path, wrong) from None
        self._unsynced, self._synced_at = 0, time.monotonic()

    def close(self) -> None:
        """Sync and hand the log to the next writer; closing twice is fine."""
        file, self._file = self._file, -1
        lock, self._lock = self._lock, -1
        try:
            if file >= 0:
                os.fsync(file)
        except OSError as wrong:
            raise stopped(self.path, wrong) from None
        finally:
            for handle in (file, lock):
                if handle >= 0:
                    os.close(handle)

    def _known(self, tree: DialogueTree) -> set[str]:
        if tree.id not in self._turns:
            raise DataError(f"{self.path}: tree {tree.id} is not in the log; call add_tree first")
        return self._turns[tree.id]

    def _write(self, records: Sequence[Row]) -> None:
        if not records:
            return
        if self._file < 0:
            raise StoreError(f"{self.path}: the log was closed")
        data = b"".join(framed(record, str(self.path)) for record in records)
        try:
            write_all(self._file, data)
        except OSError as wrong:
            with contextlib.suppress(OSError):  # take back the half batch; where even that fails, opening cuts it
                os.ftruncate(self._file, self._size)
            raise stopped(self.path, wrong) from None
        self._size += len(data)
        self._unsynced += len(records)
        if self._unsynced >= SYNC_RECORDS or time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync()


def _fingerprint(scene: Scenario) -> str:
    return content_id(scene.id, scene.opening, dict(scene.briefs), dict(scene.facts))


def _turn_record(tree_id: str, turn: Turn) -> Row:
    return {"kind": "turn", "tree": tree_id, "id": turn.id, "parent": turn.parent, "speaker": turn.speaker,
            "text": turn.text, "notes": turn.notes, "scores": turn.scores}

"""Whole files and rows that survive a kill, and the reading of files that may be damaged.

A whole file is written under another name and renamed, so it is there complete or not at all; rows are JSON lines, of
which a kill can only tear the last. What is read is checked: a file that cannot be read is named, with the next step.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import reprlib
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dialoom.errors import DataError, DialoomError, StoreError
from dialoom.text import check_nesting, parse_json

Row = dict[str, Any]
Log = Callable[[str], None]

_DRAFT = re.compile(r"\..+\.\d+\.tmp")
_NEEDED: Any = object()


class StoreWarning(UserWarning):
    """A file was found damaged and was repaired or read around."""


def warn(message: str) -> None:
    """Warn whoever called the function that calls this one."""
    warnings.warn(message, StoreWarning, stacklevel=3)


# ------------------------------------------------------------------------------------------------ writing


def dumped(row: Mapping[str, Any], where: str) -> bytes:
    """A row as compact JSON in UTF-8. Raises DataError, naming `where`, if it is not plain JSON."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        check_nesting(row, text)
    except (TypeError, ValueError, RecursionError) as wrong:
        raise DataError(f"{where}: a row must be plain JSON with finite numbers ({wrong}); got "
                        f"{reprlib.repr(row)}") from None
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate out of a damaged input: JSON can carry it escaped, UTF-8 cannot
        return json.dumps(row, separators=(",", ":")).encode()


def write_all(handle: int, data: bytes) -> None:
    """Write until all is written: a full disk first shows as a short write."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view):]


def stopped(path: Path, wrong: OSError) -> StoreError:
    """The error of a file that could not be written."""
    return StoreError(f"{path}: cannot be written ({wrong.strerror}); what was written before is safe: "
                      "make room and run the same command to continue")


def write_whole(path: str | Path, data: str | bytes) -> None:
    """Write a file that is either there complete or not at all, whatever happens meanwhile.

    Raises: StoreError: if it cannot be written; an older file of this name is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as wrong:
        with contextlib.suppress(OSError):  # its folder may be a file
            temporary.unlink()
        raise stopped(path, wrong) from None


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A draft to write files into, which becomes `folder` once they are on the disk; an older one is then replaced.

    Raises: StoreError: if it cannot be written; an older folder of this name is then untouched.
    """
    draft, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{part}.tmp") for part in ("new", "old"))
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in (*draft.rglob("*"), draft):
            sync(path)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        sync(folder.parent)
    except OSError as wrong:
        raise wrong if isinstance(wrong, StoreError) else stopped(folder, wrong) from None
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for rest in (draft, old):
            shutil.rmtree(rest, ignore_errors=True)


def remove_drafts(folder: Path) -> None:
    """Remove what a kill left of `write_whole` in a folder that the caller has locked; not where another lock lies."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink() and not (entry / ".lock").exists():
            remove_drafts(entry)
        elif _DRAFT.fullmatch(entry.name):
            entry.unlink()


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, the whole file at once."""
    write_whole(path, b"".join(dumped(row, str(path)) + b"\n" for row in rows))


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Add one JSON line to a file of measurements; a torn last line left by a kill is cut first, a whole one ended."""
    path, data = Path(path), dumped(row, str(path)) + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            _end_last_line(file.fileno())
            write_all(file.fileno(), data)
    except OSError as wrong:
        raise stopped(path, wrong) from None


def _end_last_line(handle: int, block: int = 65536) -> None:
    size = os.fstat(handle).st_size
    tail, start = b"", size
    while start > 0 and b"\n" not in tail:
        start = max(0, start - block)
        tail = os.pread(handle, size - start, start)
        block *= 4
    tail = tail[tail.rfind(b"\n") + 1:]
    if not tail:
        return
    try:
        is_whole = isinstance(parse_json(tail), dict)  # all but its line end was written: read_rows counts it
    except ValueError:
        is_whole = False
    if is_whole:
        write_all(handle, b"\n")
    else:
        os.ftruncate(handle, size - len(tail))


# ------------------------------------------------------------------------------------------------ reading


def read_json(path: str | Path, kind: type | None = None, *, default: Any = _NEEDED,
              error: type[DialoomError] = StoreError, hint: str = "") -> Any:
    """What a JSON file holds.

    Args:
        kind: what it must be, as `dict`; None: anything.
        default: what a file that is not there counts as holding; without one, that is an error.
        hint: the next step, ends the message of an error.
    Raises: `error`: naming the file, if it cannot be read, is not JSON in UTF-8, or holds something else.
    """
    path, hint = Path(path), f"; {hint}" if hint else ""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if default is not _NEEDED:
            return default
        raise error(f"{path}: is missing{hint}") from None
    except (OSError, ValueError) as wrong:  # the latter of a name that no file can have
        raise error(f"{path}: cannot be read ({getattr(wrong, 'strerror', None) or wrong}){hint}") from None
    try:
        value = parse_json(data)
    except ValueError as wrong:
        raise error(f"{path}: cannot be read: not JSON ({wrong}){hint}") from None
    if kind is not None and not isinstance(value, kind):
        raise error(f"{path}: expected a JSON {kind.__name__}, found {type(value).__name__}{hint}")
    return value


def read_rows(path: str | Path, *, log: Log = warn) -> list[Row]:
    """The rows of a JSON-lines file; a torn last line is told to `log` and left out.

    Raises:
        StoreError: if the file cannot be read.
        DataError: naming file and line, if a line is not a JSON object.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as wrong:
        raise StoreError(f"{path}: cannot be read ({wrong.strerror})") from None
    rows: list[Row] = []
    lines = data.split(b"\n")  # not splitlines: text may hold other line ends
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as wrong:
            if number == len(lines):
                log(f"{path}:{number}: the last line was torn; it is ignored")
                break
            raise DataError(f"{path}:{number}: not JSON ({wrong}); expected one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows


def read_text(path: str | Path) -> str:
    """What a text file holds. Raises StoreError, naming it, if it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        raise StoreError(f"{path}: cannot be read ({getattr(wrong, 'strerror', None) or wrong})") from None


def read_steps(path: str | Path, last: float = math.inf) -> list[Row]:
    """What a training noted, a row of numbers for each step or validation; nothing where there is no file.

    Args:
        last: of the checkpoint that a training goes on from; rows of later steps are left out, and a file that does
            not come so far is told.
    Raises:
        StoreError: if the file cannot be read.
        DataError: naming file and line, if a line is no such row.
    """
    rows = read_rows(path) if Path(path).exists() else []
    for line, row in enumerate(rows, 1):
        if not isinstance(row.get("step"), int) or not all(isinstance(value, int | float | None)
                                                           for value in row.values()):
            raise DataError(f"{path}:{line}: expected numbers and among them a step, found {reprlib.repr(row)}; remove "
                            "the file, which loses the curve of what was trained so far and nothing else")
    kept = [row for row in rows if row["step"] <= last]
    if not kept and last == math.inf and Path(path).exists():
        warn(f"{path}: is empty, so this curve is lost; the training is not")
    elif max((row["step"] for row in kept), default=0) < last < math.inf:
        warn(f"{path}: lost what was noted up to step {last}; its curve has a gap, the training has none")
    return kept


def read_answers(path: Path | None, names: Collection[str]) -> dict[str, Row]:
    """What a model was asked, by `key`, with what came of it; nothing where there is no file.

    Args:
        names: what a row must have; one without counts as never asked.
    Raises: as `read_rows`.
    """
    rows = read_rows(path) if path is not None and path.exists() else []
    return {str(row["key"]): row for row in rows if row.keys() >= {"key", *names}}


# ------------------------------------------------------------------------------------------------ locks


def lock(path: Path, guarded: Path) -> int:
    """Take the lock file of `guarded` until the returned handle is closed; a holder that dies frees it.

    Raises: StoreError: naming the process that holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise StoreError(f"{guarded}: process {owner} is writing it; wait for it, or choose another --out") from None
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle

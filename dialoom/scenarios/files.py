"""Reading a user's file: plain or gzip, JSON in a list or in lines, tables of a hub data set. No layout is known here.

One bad place never costs a good one: it is told by its line, and what follows is read.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from dialoom.errors import DataError
from dialoom.text import decode_json, parse_json

OnBad = Callable[[int, str, str], None]
"""Told of a bad place: its line, what kind of fault, and a message."""
TABLES = (".parquet", ".arrow")

_ABOUT = {"dataset_info.json", "state.json", "dataset_dict.json"}  # what `save_to_disk` writes beside the rows
_BETWEEN = re.compile(r"[\s,]*")
_GZIP = b"\x1f\x8b"
_UNPACKED = 2 * 2**30  # bytes that a packed file may hold: a small one can hold any number


def read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked if it is gzip, whatever its name.

    Raises:
        OSError: if it cannot be read.
        DataError: if it is gzip and damaged, or holds more than 2 GiB.
    """
    data = path.read_bytes()
    if data[:2] != _GZIP:
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as wrong:
        raise DataError(f"{path}: a damaged gzip file ({wrong}); fetch or pack it again") from None
    if len(unpacked) > _UNPACKED:
        raise DataError(f"{path}: holds more than {_UNPACKED:,} bytes; unpack it yourself if it is to be read")
    return unpacked


def plain_suffix(path: Path) -> str:
    """The ending of a file's name that says what is in it: that before `.gz`, in lower case."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def json_values(path: Path, bad: OnBad, names: Collection[str] = ()) -> Iterator[tuple[int, Any]]:
    """(line, value) of a JSON list's items, or of JSON lines, or of a file that is one object.

    Args:
        bad: told of what cannot be read; it is passed over.
        names: keys of which an item has one; by them reading finds its way again after a break in a list.
    Raises: DataError: if the file cannot be read.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig", "surrogateescape")
    except OSError as wrong:
        raise DataError(f"{path}: cannot be read ({wrong.strerror}); expected a JSON or JSON-lines file") from None
    start = len(text) - len(text.lstrip())
    if text[start:start + 1] == "[":
        yield from _items(text, start + 1, bad, names)
        return
    if "\n" in text.strip() and (whole := _whole(text)) is not None:
        yield 1, whole
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line)
        except ValueError as wrong:
            bad(number, "broken JSON", f"expected a JSON object, found {line.strip()!r:.40} ({_why(wrong)})")


def _whole(text: str) -> Any:
    """The object that is a whole file, spread over its lines; None if it is not one."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def _items(text: str, at: int, bad: OnBad, names: Collection[str]) -> Iterator[tuple[int, Any]]:
    """The items of a list that begins before `at`; after a break it goes on with the next object that can be read."""
    line, counted, broken = 1, 0, False
    while True:
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text):
            if not broken:
                bad(line, "broken JSON", "the list is not closed; was the file cut off?")
            return
        if text[at] == "]" and not broken:  # of a list; or of a first line that is one, with good lines below it
            if (at := text.find("{", at)) < 0:
                return
            bad(line, "broken JSON", "more follows the end of the list; it is read as well")
            continue
        try:
            value, at = decode_json(text, at)
        except ValueError as wrong:
            if not broken:
                bad(line, "broken JSON", f"expected an item, found {text[at:at + 60]!r:.40} ({_why(wrong)})")
            broken = True
            at = text.find("{", at + 1) % (len(text) + 1)
            continue
        if not broken or (isinstance(value, dict) and any(name in value for name in names)):
            broken = False
            yield line, value


def _why(wrong: Exception) -> str:
    return str(getattr(wrong, "msg", wrong))


def table_values(path: Path, bad: OnBad) -> Iterator[tuple[int, Any]]:
    """(row number, row as an object) of a `.parquet` file, or an `.arrow` one as `save_to_disk` writes it.

    Args:
        bad: told of a row whose texts are no UTF-8 or whose values Python has no place for; it is passed over.
    Raises: DataError: if pyarrow is not installed, or the file cannot be read.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: tables need pyarrow; pip install pyarrow, or save the data set as JSON lines "
                        "(`to_json`)") from None
    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            with pyarrow.memory_map(str(path)) as source:
                table = pyarrow.ipc.open_stream(source).read_all()
                _check(table)
    except (OSError, UnicodeError, pyarrow.ArrowException) as wrong:  # the second one of a column's name
        raise DataError(f"{path}: is no {path.suffix[1:]} file that can be read ({str(wrong)[:120]})") from None
    number = 0
    for batch in table.to_batches():
        try:
            found: Iterator[tuple[int, Any]] = enumerate(batch.to_pylist(), number + 1)
        except (ValueError, ArithmeticError, SystemError, pyarrow.ArrowException):
            found = _rows_one_by_one(batch, number + 1, bad)
        yield from found
        number += batch.num_rows


def _check(table: Any) -> None:
    """Raise ArrowInvalid if a table's parts point outside of it; texts that are no UTF-8 are found row by row."""
    import pyarrow
    for column in table.columns:
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as wrong:
            if "UTF8" not in str(wrong):
                raise


def _rows_one_by_one(batch: Any, first: int, bad: OnBad) -> Iterator[tuple[int, Any]]:
    """The rows of a part of a table that can be read."""
    import pyarrow
    for at in range(batch.num_rows):
        try:
            yield first + at, batch.slice(at, 1).to_pylist()[0]
        except (ValueError, ArithmeticError, SystemError, pyarrow.ArrowException) as wrong:
            bad(first + at, "broken row", f"expected values that can be read, found others ({str(wrong)[:80]})")


def files_of(path: str | Path) -> list[Path]:
    """The data files that a path names: itself, or those of a folder (of its `train` part), by name.

    Raises: DataError: if a folder holds none.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    folder = path / "train" if (path / "train").is_dir() else path
    found = sorted(file for file in folder.iterdir()
                   if plain_suffix(file) in (".json", ".jsonl", *TABLES) and file.name not in _ABOUT)
    if not found:
        raise DataError(f"{path}: no data in this folder; expected files ending in .jsonl, .json, .parquet or .arrow, "
                        "there or under train/")
    return found


def rows_of(path: str | Path, bad: OnBad, names: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """(file:line, value) of a file of any of these kinds, or of all those in a folder.

    Args:
        bad, names: as for `json_values`.
    Raises: DataError: if there is nothing to read.
    """
    for file in files_of(path):
        found = table_values(file, bad) if file.suffix in TABLES else json_values(file, bad, names)
        yield from ((f"{file}:{line}", value) for line, value in found)

"""What endpoints answered and what it cost: one append-only file of a run, `answers.jsonl`, which nobody else may read.

An answer and its price are one line, written the moment it arrives; so after a kill nothing that was paid for is lost,
asked for again or left out of the budget. Several processes may write one file. Surprising choice: which ledger counts
is a matter of the process, not of the model (`recording`), so that no recipe has to hand it down to every model.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dialoom.dialogue import content_id
from dialoom.errors import BudgetError, ConfigError, StoreError
from dialoom.files import read_json
from dialoom.models.spending import Endpoints
from dialoom.store import SYNC_SECONDS, framed, unframed, write_whole

Choice = dict[str, Any]
"""What is kept of the first entry of a server's `choices`: message, finish_reason, logprobs."""

ANSWERS, USAGE = "answers.jsonl", "usage.json"


@dataclass(frozen=True)
class Tokens:
    """What one answer took: tokens read (the prompt's) and written (the reply's)."""

    read: int = 0
    written: int = 0


class Answers(Protocol):
    """Where answers are remembered by the id of their request."""

    @property
    def totals(self) -> Counter[tuple[str, str, str]]:
        """(role, model, "answers" | "read" | "written") -> how many."""
        ...

    def get(self, id: str) -> Choice | None: ...

    def add(self, id: str, role: str, model: str, choice: Choice, tokens: Tokens) -> None: ...

    def sync(self) -> None: ...


class Remembered:
    """Answers in a mapping, for as long as the process lives."""

    def __init__(self, answers: MutableMapping[str, Choice] | None = None) -> None:
        self.answers: MutableMapping[str, Choice] = {} if answers is None else answers
        self.totals: Counter[tuple[str, str, str]] = Counter()

    def get(self, id: str) -> Choice | None:
        return self.answers.get(id)

    def add(self, id: str, role: str, model: str, choice: Choice, tokens: Tokens) -> None:
        self.answers.setdefault(id, choice)
        _count(self.totals, role, model, tokens)

    def sync(self) -> None:
        pass


class AnswerFile:
    """Answers in a file only its owner may read; made when the first one comes.

    Every line has a checksum. A torn line (a kill, a full disk) counts as never written, wherever it stands, and what
    other processes add is seen. Of the answers themselves only their places are held in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._totals: Counter[tuple[str, str, str]] = Counter()
        self.damaged = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._file, self._seen, self._synced_at = -1, 0, time.monotonic()

    @property
    def totals(self) -> Counter[tuple[str, str, str]]:
        self._look()
        return self._totals

    def get(self, id: str) -> Choice | None:
        self._look()
        if id not in self._places:
            return None
        start, size = self._places[id]
        row = unframed(os.pread(self._file, size, start))
        return row["choice"] if row else None

    def add(self, id: str, role: str, model: str, choice: Choice, tokens: Tokens) -> None:
        """Write one answer down. Raises StoreError if that fails; the file is then as it was."""
        row = {"id": id, "role": role, "model": model, "read": tokens.read, "written": tokens.written,
               "at": round(time.time(), 1), "choice": choice}
        data = framed(row, str(self.path))
        try:
            self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._look()
                self._append(data)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
            if time.monotonic() - self._synced_at >= SYNC_SECONDS:
                self.sync()
        except OSError as wrong:
            raise StoreError(f"{self.path}: cannot be written ({wrong.strerror or wrong}); what was answered before is "
                             "safe: make room and run the same command to continue") from None

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._file).st_size
        torn = size > self._seen  # what a killed writer left; a line break makes it a line of its own, which is skipped
        view = memoryview(b"\n" * torn + data)
        try:
            while view:
                view = view[os.write(self._file, view):]
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self._look()

    def sync(self) -> None:
        """Force what was written onto the disk."""
        if self._file >= 0:
            os.fsync(self._file)
            self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync and close; closing twice is fine."""
        self.sync()
        file, self._file = self._file, -1
        self._seen = 0
        self._places.clear()
        self._totals.clear()
        if file >= 0:
            os.close(file)

    def _open(self) -> None:
        if self._file < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _look(self) -> None:
        """Take in the whole lines that were added since."""
        if self._file < 0:
            if not self.path.exists():
                return
            self._open()
        size = os.fstat(self._file).st_size
        if size <= self._seen:
            return
        data = b""
        while len(data) < size - self._seen:
            more = os.pread(self._file, size - self._seen - len(data), self._seen + len(data))
            if not more:
                break
            data += more
        for line in data.split(b"\n")[:-1]:  # what stands after the last line break is torn, or not yet whole
            self._take(line + b"\n")
            self._seen += len(line) + 1

    def _take(self, line: bytes) -> None:
        row = unframed(line) or {}
        try:
            id, role, model = str(row["id"]), str(row["role"]), str(row["model"])
            tokens = Tokens(int(row["read"]), int(row["written"]))
            if not isinstance(row["choice"], dict):
                raise TypeError("choice is not an object")
        except (KeyError, TypeError, ValueError, OverflowError):
            self.damaged += bool(line.strip())
            return
        self._places.setdefault(id, (self._seen, len(line)))
        _count(self._totals, role, model, tokens)


def _count(totals: Counter[tuple[str, str, str]], role: str, model: str, tokens: Tokens) -> None:
    totals[role, model, "answers"] += 1
    totals[role, model, "read"] += tokens.read
    totals[role, model, "written"] += tokens.written


class Ledger:
    """The answers of a run, what they cost by role, and how much more may be spent.

    Args:
        answers: where they are remembered; None: in memory.
        settings: prices and caps.
        shared: answers of other runs, looked up as well and added to; they cost this run nothing.
    """

    def __init__(self, answers: Answers | None = None, settings: Endpoints | None = None,
                 shared: Answers | None = None) -> None:
        self.answers = answers or Remembered()
        self.settings = settings or Endpoints()
        self.shared = shared
        self.flag = "--endpoint."  # what the settings' names begin with on the command line
        self.faults: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()  # requests that brought nothing to use, by why
        self.notes: dict[str, None] = {}  # what a user should know of how endpoints were asked, each once
        self._unread: dict[tuple[str, str], set[str]] = {}  # (role, model) -> answers of which nothing could be used
        self.holds = 0  # requests in flight, and the tokens and dollars that they may cost at most
        self._held = (0, 0.0)
        self._guard = threading.RLock()

    @classmethod
    def of(cls, folder: str | Path, settings: Endpoints | None = None) -> Ledger:
        """The ledger of a run's folder; its file is made when the first answer comes."""
        settings = settings or Endpoints()
        shared = AnswerFile(Path(settings.cache).expanduser() / ANSWERS) if settings.cache else None
        return cls(AnswerFile(Path(folder) / ANSWERS), settings, shared)

    def find(self, id: str) -> Choice | None:
        """What was answered before, to this run or to one that shares its answers."""
        with self._guard:
            choice = self.answers.get(id)
            if choice is None and self.shared is not None:
                choice = self.shared.get(id)
            return choice

    def add(self, id: str, role: str, model: str, choice: Choice, tokens: Tokens) -> None:
        """Write down an answer that was paid for."""
        with self._guard:
            self.answers.add(id, role, model, choice, tokens)
            if self.shared is not None:
                self.shared.add(id, role, model, choice, tokens)

    def fault(self, kind: str) -> None:
        """Count an attempt that brought no usable answer."""
        with self._guard:
            self.faults[kind] += 1

    def note(self, line: str) -> None:
        """Keep what a user should know of how endpoints were asked."""
        with self._guard:
            self.notes[line] = None

    def unread(self, id: str, role: str, model: str) -> None:
        """Note that nothing in an answer could be used."""
        with self._guard:
            self._unread.setdefault((role, model), set()).add(id)

    def has_served(self, role: str, model: str) -> bool:
        """Whether a model ever answered in a role, restarts included, and not all of it was of no use."""
        with self._guard:
            return self.answers.totals[role, model, "answers"] > len(self._unread.get((role, model), ()))

    def hold(self, model: str, most: Tokens) -> bool:
        """Set aside what a request may cost at most, if the caps allow it; hand it back with `free`.

        Raises: ConfigError: if there is a budget in dollars and the model's price is not known.
        """
        with self._guard:
            cost = self.settings.cost(model, most.read, most.written)
            if self.settings.budget and cost is None:
                raise ConfigError(f"a budget in dollars needs the price of {model}: give {self.flag}prices "
                                  f"{model}=<read>/<written>, in dollars for a million tokens")
            tokens, dollars = (spent + held for spent, held in zip(self.spent(), self._held, strict=True))
            if 0 < self.settings.token_budget < tokens + most.read + most.written:
                return False
            if 0 < self.settings.budget < dollars + (cost or 0.0):
                return False
            self._hold(model, most, 1)
            return True

    def free(self, model: str, most: Tokens) -> None:
        """Hand back what `hold` set aside."""
        with self._guard:
            self._hold(model, most, -1)

    def _hold(self, model: str, most: Tokens, sign: int) -> None:
        tokens, dollars = self._held
        cost = self.settings.cost(model, most.read, most.written) or 0.0
        self.holds += sign
        self._held = (tokens + sign * (most.read + most.written), dollars + sign * cost)

    def spent(self) -> tuple[int, float]:
        """Tokens and dollars so far, restarts included; what has no price costs nothing."""
        rows = self.rows()
        return sum(row["read"] + row["written"] for row in rows), sum(row["dollars"] or 0.0 for row in rows)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each role and model: answers, tokens read and written, dollars (None: no price is known)."""
        with self._guard:
            totals = self.answers.totals
            found = []
            for role, model in dict.fromkeys(key[:2] for key in totals):
                read, written = totals[role, model, "read"], totals[role, model, "written"]
                found.append({"role": role, "model": model, "answers": totals[role, model, "answers"], "read": read,
                              "written": written, "dollars": self.settings.cost(model, read, written)})
            return found

    def broke(self, model: str) -> BudgetError:
        """What is raised once the next request no longer fits."""
        tokens, dollars = self.spent()
        caps = [f"{dollars:.4f} of {self.settings.budget:g} dollars"] if self.settings.budget else []
        caps += [f"{tokens:,} of {self.settings.token_budget:,} tokens"] if self.settings.token_budget else []
        flags = [self.flag + name for name, cap in (("budget", self.settings.budget),
                                                    ("token-budget", self.settings.token_budget)) if cap]
        return BudgetError(f"the budget is spent: {' and '.join(caps)} are gone, and the next request to {model} might "
                           "go over. Everything that was answered is kept; the same command with a larger "
                           f"{' or '.join(flags)} goes on from there")

    def sync(self) -> None:
        """Force the answers onto the disk."""
        with self._guard:
            for each in (self.answers, self.shared):
                if each is not None:
                    each.sync()

    def told(self) -> list[str]:
        """What was asked and what it cost, a line for each role and one for all; nothing if nobody was asked."""
        rows = self.rows()
        lines = [row_line(row) for row in rows]
        if len(rows) > 1:
            tokens, dollars = self.spent()
            known = any(row["dollars"] is not None for row in rows)
            lines.append(f"all endpoints: {tokens:,} tokens{_dollars(dollars if known else None)}")
        if self.faults:
            lines.append("tried again: " + ", ".join(f"{count} x {kind}" for kind, count in self.faults.most_common()))
        if self.unusable:
            lines.append("left out, since nothing came that could be used: " + ", ".join(
                f"{count} x {kind}" for kind, count in self.unusable.most_common()))
        lines += self.notes
        damaged = sum(getattr(each, "damaged", 0) for each in (self.answers, self.shared))
        if damaged:
            lines.append(f"{damaged} damaged lines of {ANSWERS} count as never answered")
        return lines

    def write(self, path: str | Path) -> None:
        """Write the rows to a file, if anybody was ever asked: the usage of a run, its restarts included."""
        rows = self.rows()
        if not (rows or self.faults or self.unusable):
            return
        tokens, dollars = self.spent()
        known = any(row["dollars"] is not None for row in rows)
        try:
            held = read_json(path, dict)
            before = Counter(held.get("tried_again", {})) + self.faults
            left_out = Counter(held.get("left_out", {})) | self.unusable  # a restart meets the same ones again
            notes = [*dict.fromkeys([*map(str, held.get("notes", [])), *self.notes])]
        except (OSError, TypeError):
            before, left_out, notes = self.faults, self.unusable, [*self.notes]
        write_whole(path, json.dumps({"rows": rows, "tokens": tokens, "dollars": dollars if known else None,
                                      "tried_again": dict(before), "left_out": dict(left_out), "notes": notes},
                                     indent=1) + "\n")


def row_line(row: Mapping[str, Any]) -> str:
    """A row of the usage as people read it."""
    return (f"{row['role']}: {row['model']}, {row['answers']:,} answers, {row['read']:,} tokens read, "
            f"{row['written']:,} written{_dollars(row['dollars'])}")


def _dollars(dollars: float | None) -> str:
    return "" if dollars is None else f", {dollars:.4f} dollars"


_current: list[Ledger] = []


def current() -> Ledger | None:
    """The ledger in which answers are recorded now, if there is one."""
    return _current[-1] if _current else None


def begin(ledger: Ledger) -> Callable[[], None]:
    """Record answers in a ledger from now on, until the function that is returned is called."""
    _current.append(ledger)

    def end() -> None:
        if ledger in _current:
            _current.remove(ledger)
        ledger.sync()

    return end


def cache_folder() -> Path:
    """The user's own: DIALOOM_CACHE, else `dialoom` below XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("DIALOOM_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dialoom"


@contextmanager
def until_done(settings: Endpoints, *command: Any, log: Callable[[str], None], out: Path | None = None,
               ) -> Iterator[Ledger]:
    """Record answers for a command that has no run folder, in the user's cache and until the command is through.

    So one that was stopped goes on where it was, and one that is repeated asks anew.

    Args:
        command: what tells the command from others.
        log: told at the end what endpoints cost.
        out: the file of the command's result, beside which its usage is written.
    """
    file = AnswerFile(cache_folder() / f"{content_id(*command)}.jsonl")
    ledger = Ledger(file, settings)
    ledger.flag = "--"
    try:
        with recording(ledger):
            yield ledger
        file.path.unlink(missing_ok=True)
    finally:
        for line in ledger.told():
            log(line)
        if out is not None and out.name:  # "." is refused as a result's file, and has none beside it
            ledger.write(usage_beside(out))


def usage_beside(out: Path) -> Path:
    """Where the usage of a command stands whose result is a file: card.md -> card.usage.json."""
    return out.with_suffix(f".{USAGE}")


@contextmanager
def recording(ledger: Ledger) -> Iterator[Ledger]:
    """Record what endpoints answer in a ledger, whoever asks them, until the block ends."""
    end = begin(ledger)
    try:
        yield ledger
    finally:
        end()

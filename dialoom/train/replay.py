"""Replay for the planner: what was seen, done and earned in each dialogue, in one memory-mapped file that grows.

A row is one state of one dialogue with the action taken there and its reward; the rows of a dialogue follow each other,
so the state after an action is the next row and no state stands twice. Dialogues are appended whole, under a lock:
several collectors may write, and what a kill tore is cut off by whoever writes next. The surprising choice: transitions
are numbered by dialogue key, not by place in the file, so who wrote first changes no training.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.store import Log, StoreWarning
from dialoom.text import parse_json

Floats = NDArray[np.float32]

HEADER = 256  # bytes before the first row: one line of JSON with the sizes, padded
CHUNK = 4096  # rows read at once where all states are looked at
LAYOUT = "dialoom-replay-1"


@dataclass(frozen=True)
class Episode:
    """One dialogue as the planner lived it.

    Attributes:
        key: names the dialogue; what the file holds already under this name is not written again.
        states: (n, state size) where the dialogue ended with the last action; (n + 1, state size) where it was only
            cut off there, so that the last state still has a value.
        actions: (n, action size), n >= 1.
        rewards: (n,)
    """

    key: str
    states: Floats
    actions: Floats
    rewards: Floats


@dataclass(frozen=True)
class Transitions:
    """A batch of steps, all float32.

    Attributes:
        states, next_states: (batch, state size); where `done`, the next state is the state itself and has no meaning.
        actions: (batch, action size)
        rewards, done: (batch,); done is 1 where the dialogue ended.
    """

    states: Floats
    actions: Floats
    rewards: Floats
    next_states: Floats
    done: Floats

    def __len__(self) -> int:
        return len(self.rewards)


def _warn(message: str) -> None:
    warnings.warn(message, StoreWarning, stacklevel=3)


class Replay:
    """Episodes in a file, read through memory, sized to what it holds. `len` counts transitions.

    Args:
        path: the file; made when the first episodes are appended.
        state_size, action_size: > 0; those of an existing file must agree.
        precision: how states are kept; float16 halves the file at a relative error below 0.05 %.
        log: told about damage, one message each; None: `warnings.warn`.
    Raises:
        ConfigError: if the file was made with other sizes.
        StoreError: if it cannot be read, or is no replay.
    """

    def __init__(self, path: str | Path, state_size: int, action_size: int, *,
                 precision: Literal["float16", "float32"] = "float16", log: Log | None = None) -> None:
        if state_size < 1 or action_size < 1:
            raise ConfigError(f"a replay of states of size {state_size} and actions of size {action_size} cannot be "
                              "made; both must be 1 or more")
        self.path = Path(path)
        self.state_size, self.action_size = state_size, action_size
        self._log = log or _warn
        self._about = {"layout": LAYOUT, "state_size": state_size, "action_size": action_size, "precision": precision}
        self._row = np.dtype([("key", "<u8"), ("step", "<u4"), ("left", "<u4"), ("acted", "<u4"), ("crc", "<u4"),
                              ("reward", "<f4"), ("action", "<f4", (action_size,)),
                              ("state", "<f2" if precision == "float16" else "<f4", (state_size,))])
        self._rows = np.empty(0, self._row)
        self._scanned = 0  # rows looked at so far: all of whole dialogues, but for damaged ones that were told
        self._found: dict[int, range] = {}
        self._steps = self._states = np.empty(0, np.int64)  # rows in order of key: those with an action, and all
        self.refresh()

    def __len__(self) -> int:
        return len(self._steps)

    def __contains__(self, key: str) -> bool:
        return _number(key) in self._found

    @property
    def episodes(self) -> int:
        """How many dialogues it holds."""
        return len(self._found)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what it holds, in whatever order that was written."""
        return hashlib.blake2b(self._rows["crc"][self._states].tobytes(), digest_size=8).hexdigest()

    @property
    def actions(self) -> Floats:
        """(len, action size) every action, in the order of `transitions`; states stay on the disk."""
        return _plain(self._rows["action"][self._steps])

    def refresh(self) -> None:
        """Take in what was appended since, by this process or another."""
        if not self.path.exists():
            return
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as handle:
            self._scan(handle, repair=False)

    def append(self, episodes: Sequence[Episode]) -> int:
        """Write those dialogues that the file does not hold; returns how many. They are on the disk on return.

        Raises:
            DataError: naming the key, if shapes do not fit or a number is not finite; nothing is written then.
            StoreError: if it cannot be written; what was there before stays.
        """
        return self._append({_number(episode.key): self._block(episode) for episode in episodes})

    def merge(self, other: Replay) -> int:
        """Write what another collector's file holds and this one does not; returns how many dialogues.

        Raises:
            ConfigError: if sizes or precision differ.
            StoreError: if it cannot be written; what was there before stays.
        """
        if other._about != self._about:
            raise ConfigError(f"{other.path}: holds {other._about}, but {self.path} is {self._about}; collect with the "
                              "same model, action and precision")
        return self._append({number: other._rows[rows.start:rows.stop] for number, rows in other._found.items()})

    def _append(self, blocks: dict[int, NDArray[Any]]) -> int:
        if not blocks:
            return 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as wrong:
            raise self._stopped(wrong) from None
        with self._locked(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as handle:
            self._scan(handle, repair=True)
            new = [block for number, block in blocks.items() if number not in self._found]
            self._write(handle, b"".join(block.tobytes() for block in new))
            self._scan(handle, repair=True)
        return len(new)

    def transitions(self, places: Sequence[int] | NDArray[np.int64]) -> Transitions:
        """The steps with these numbers, 0 to len - 1: those of a dialogue in order, dialogues by their keys."""
        at = self._steps[np.asarray(places, np.int64)]
        rows = self._rows[at]
        done = rows["left"] == 0
        after = self._rows[np.where(done, at, at + 1)]
        return Transitions(_plain(rows["state"]), _plain(rows["action"]), _plain(rows["reward"]),
                           _plain(after["state"]), _plain(done))

    def drawn(self, size: int, *, seed: int, step: int) -> NDArray[np.int64]:
        """The numbers of the steps of a batch, drawn with replacement; (seed, step) and what is held decide which.

        Raises: DataError: if there is nothing to draw from.
        """
        if not len(self):
            raise DataError(f"{self.path}: the replay is empty; collect dialogues first")
        return np.random.default_rng([seed, step]).integers(len(self), size=size)

    def sample(self, size: int, *, seed: int, step: int) -> Transitions:
        """The steps that are `drawn`. Raises: DataError: if there is nothing to draw from."""
        return self.transitions(self.drawn(size, seed=seed, step=step))

    def state_statistics(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation of each number of a state, over every state; 1 for one that never changes.

        Raises: DataError: if there are no states.
        """
        if not len(self._states):
            raise DataError(f"{self.path}: the replay is empty; collect dialogues first")
        chunks = [self._states[start:start + CHUNK] for start in range(0, len(self._states), CHUNK)]
        count = len(self._states)
        mean = sum(self._rows["state"][chunk].astype(np.float64).sum(0) for chunk in chunks) / count
        spread = sum(((self._rows["state"][chunk].astype(np.float64) - mean) ** 2).sum(0) for chunk in chunks) / count
        std = np.sqrt(spread)
        return _plain(mean), _plain(np.where(std > 0, std, 1.0))

    # Writing

    def _block(self, episode: Episode) -> NDArray[Any]:
        """The rows of a dialogue, with their checksums."""
        states, actions, rewards = (np.asarray(part, np.float32)
                                    for part in (episode.states, episode.actions, episode.rewards))
        count = len(rewards) if rewards.ndim == 1 else 0
        if (count < 1 or actions.shape != (count, self.action_size)
                or states.shape not in ((count, self.state_size), (count + 1, self.state_size))):
            raise DataError(f"episode {episode.key}: states {states.shape}, actions {actions.shape} and rewards "
                            f"{rewards.shape} do not fit; expected (n or n + 1, {self.state_size}), "
                            f"(n, {self.action_size}) and (n,) with n of 1 or more")
        rows = np.zeros(len(states), self._row)
        rows["key"], rows["step"] = _number(episode.key), np.arange(len(states))
        rows["left"], rows["acted"] = np.arange(len(states))[::-1], np.arange(len(states)) < count
        rows["reward"][:count], rows["action"][:count] = rewards, actions
        with np.errstate(over="ignore"):
            rows["state"] = states
        if not all(np.isfinite(rows[name]).all() for name in ("state", "action", "reward")):
            raise DataError(f"episode {episode.key}: a state, action or reward is not finite as {rows['state'].dtype}; "
                            "look at the model, or keep states with precision=\"float32\"")
        rows["crc"] = [zlib.crc32(row.tobytes()) for row in rows]
        return rows

    def _write(self, handle: int, data: bytes) -> None:
        size = os.fstat(handle).st_size
        try:
            view = memoryview(data)
            os.lseek(handle, 0, os.SEEK_END)
            while view:  # a full disk first shows as a short write
                view = view[os.write(handle, view):]
            os.fsync(handle)
        except OSError as wrong:
            with contextlib.suppress(OSError):  # where even that fails, the next writer cuts it
                os.ftruncate(handle, size)
            raise self._stopped(wrong) from None

    def _stopped(self, wrong: OSError) -> StoreError:
        return StoreError(f"{self.path}: cannot be written ({wrong.strerror}); what was written before is safe: make "
                          "room and run the same command to continue")

    @contextlib.contextmanager
    def _locked(self, flags: int, kind: int) -> Iterator[int]:
        """The file, open and ours (or shared by readers) until the block ends; waits for another process."""
        try:
            handle = os.open(self.path, flags, 0o644)
        except OSError as wrong:
            raise StoreError(f"{self.path}: cannot open a replay there ({wrong.strerror}); "
                             "choose another --out") from None
        try:
            fcntl.flock(handle, kind)
            yield handle
        finally:
            os.close(handle)

    # Reading

    def _scan(self, handle: int, *, repair: bool) -> None:
        """Take in the rows not looked at so far; a torn tail is told and, with `repair`, cut off."""
        size = os.fstat(handle).st_size
        if size < HEADER:
            header = json.dumps(self._about).encode().ljust(HEADER - 1) + b"\n"
            if os.pread(handle, size, 0) != header[:size]:
                raise StoreError(f"{self.path}: is no replay; choose another file")
            if repair:
                self._write(handle, header[size:])
            return
        self._check_header(os.pread(handle, HEADER, 0))
        count, rest = divmod(size - HEADER, self._row.itemsize)
        self._rows = np.memmap(self.path, self._row, "r", HEADER, (count,)) if count else np.empty(0, self._row)
        start = end = self._scanned
        while start < count:
            stop = self._whole(start)
            if stop is None:
                start += 1
                continue
            if start > end:
                self._log(f"{self.path}: rows {end} to {start - 1} are damaged; they are left out")
            self._found.setdefault(int(self._rows["key"][start]), range(start, stop))
            start = end = stop
        if rest or end < count:
            self._log(f"{self.path}: the last dialogue was torn at byte {HEADER + end * self._row.itemsize} (a kill or "
                      f"a full disk); it {'was cut off' if repair else 'is ignored'}")
            if repair:
                os.ftruncate(handle, HEADER + end * self._row.itemsize)
            self._rows = self._rows[:end]
        self._scanned = end
        order = [self._found[number] for number in sorted(self._found)]
        self._states = np.array([at for rows in order for at in rows], np.int64)
        self._steps = self._states[self._rows["acted"][self._states] == 1]

    def _whole(self, start: int) -> int | None:
        """Where the dialogue that begins at a row ends, if all of it is there and undamaged."""
        first = self._rows[start]
        stop = start + int(first["left"]) + 1
        if first["step"] != 0 or stop > len(self._rows):
            return None
        for step, row in enumerate(self._rows[start:stop].copy()):
            crc, row["crc"] = int(row["crc"]), 0
            if (row["key"], row["step"]) != (first["key"], step) or crc != zlib.crc32(row.tobytes()):
                return None
        return stop

    def _check_header(self, data: bytes) -> None:
        try:
            about = parse_json(data)
        except ValueError:
            about = None
        if not isinstance(about, dict) or about.get("layout") != LAYOUT:
            raise StoreError(f"{self.path}: is no replay of this version; choose another file")
        if about != self._about:
            changed = [f"{name} {about.get(name)} -> {value}" for name, value in self._about.items()
                       if about.get(name) != value]
            raise ConfigError(f"{self.path}: holds a replay of other sizes ({', '.join(changed)}); choose another "
                              "file, or the model and planner it was collected with")


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _plain(values: NDArray[Any]) -> Floats:
    return np.array(values, np.float32)

"""The folder of a run: what was asked for, what was found, and which stages are done.

The same command finds the same folder and goes on where it was stopped; a folder made with other settings is refused,
with the difference. A stage counts as done once its marker stands in `stages/`, which is written after its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dialoom import tracking
from dialoom.config import Config, differences, read_yaml
from dialoom.dialogue import content_id
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.files import read_json
from dialoom.models.ledger import USAGE, Ledger, begin
from dialoom.models.load import watch
from dialoom.models.local import LocalModel
from dialoom.progress import duration
from dialoom.store import append_row, is_damaged, lock, remove_drafts, write_whole
from dialoom.text import parse_json

if TYPE_CHECKING:
    from dialoom.models.base import ChatModel

T = TypeVar("T")
Row = dict[str, Any]
ANEW = "--fresh starts anew"
TREES = "trees.jsonl"
LOGS = (TREES, "growth.jsonl")
RESULT_FIELDS = ("eval", "subject", "metric", "value", "low", "high", "n", "seed")
PACKAGES = ("dialoom", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "pydantic")


class RunFolder:
    """The folder of one run, held by one process; use it in a `with` block, or close it.

    Args:
        out: the folder; None: `runs/<recipe>-<model>-<hash of settings and data>`.
        data_hash: names the user's data (`hash_data`), "" where there is none.
        fresh: throw away what the folder holds first; only done to a folder that is a run.
        log: told what is loaded instead of computed.
    Raises:
        ConfigError: if the folder holds a run with other settings or data; says which.
        StoreError: if it cannot be written, or another process uses it. This comes before any work.
    """

    def __init__(self, out: str | Path | None, recipe: str, config: Config, *, data_hash: str = "",
                 fresh: bool = False, log: Callable[[str], None] = print) -> None:
        self.recipe, self.config, self.data_hash = recipe, config, data_hash
        self.path = Path(out) if out is not None else default_folder(recipe, config, data_hash)
        self.log = log
        self.ledger = Ledger.of(self.path, getattr(config, "endpoint", None))
        self._lock = -1
        self._ends: list[Callable[[], None]] = []
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path / ".lock", self.path)
            if fresh:
                self._empty()
            self._claim()
            remove_drafts(self.path)
            self._reopen_damaged()
            self._ends = [watch(self._recognise), begin(self.ledger)]
        except BaseException as wrong:
            self.close()
            if isinstance(wrong, OSError) and not isinstance(wrong, StoreError):
                raise StoreError(f"{self.path}: cannot keep a run there ({wrong.strerror}); "
                                 "choose another folder with --out") from None
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write down what endpoints cost, and hand the folder to the next process; closing twice is fine."""
        ends, self._ends = self._ends, []
        handle, self._lock = self._lock, -1
        try:
            for end in ends:
                end()
            if ends:
                self.ledger.write(self.path / USAGE)
        finally:
            if handle >= 0:
                os.close(handle)

    def _empty(self) -> None:
        others = [entry for entry in self.path.iterdir() if entry.name != ".lock"]
        if others and not (self.path / "config.yaml").exists():
            raise StoreError(f"{self.path}: holds files but no run (no config.yaml), so --fresh does not touch it; "
                             "choose another --out")
        others.sort(key=lambda entry: entry.name == "config.yaml")  # last, so that a kill leaves it recognisable
        for entry in others:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _reopen_damaged(self) -> None:
        """Where a log lost lines after a stage was done, no stage counts as done any more.

        Done again, each goes on from what is whole: what was lost is said again, a training that ended is only loaded.
        """
        sizes: Counter[str] = Counter()
        for marker in (self.path / "stages").glob("*.json"):
            with contextlib.suppress(StoreError):  # a damaged one is told where it is needed
                logs = read_json(marker, dict).get("logs")
                sizes |= Counter({name: size for name, size in logs.items() if isinstance(size, int)}
                                 if isinstance(logs, dict) else {})
        for name, size in sizes.items():
            path = self.path / name
            if not path.exists() or path.stat().st_size < size or (path.name == TREES and is_damaged(path)):
                self.log(f"{path}: lost lines that were written; every stage is gone through again from what is whole")
                shutil.rmtree(self.path / "stages", ignore_errors=True)

    def _logs(self) -> dict[str, int]:
        """The logs that stages go on from, by their names in the folder, with their sizes: they only grow."""
        found = sorted(path for name in LOGS for path in self.path.rglob(name))
        return {str(path.relative_to(self.path)): path.stat().st_size for path in found}

    def _claim(self) -> None:
        """Write down what was asked for, or check that it is the same as before."""
        if not (self.path / "config.yaml").exists():
            write_whole(self.path / "env.json", _json(environment(self.recipe, self.config, self.data_hash)))
            write_whole(self.path / "config.yaml", self.config.to_yaml())
            return
        old = self._held()
        default = {name: info.get_default(call_default_factory=True)
                   for name, info in type(self.config).model_fields.items() if not info.is_required()}
        before = _over(_plain(default), self._asked())  # a setting that is newer than the run has its default
        before = self.config.deciding(before)
        changed = differences({"recipe": old.get("recipe"), "data": old.get("data_hash")},
                              {"recipe": self.recipe, "data": self.data_hash})
        changed += differences(before, self.config.identity())
        if changed:
            raise ConfigError(f"{self.path} holds a run with other settings ({'; '.join(changed)}); "
                              "give another --out, or --fresh to throw that run away")
        began = {**old.get("versions", {}), "revision": old.get("revision")}
        moved = differences(began, {**versions(), "revision": revision()})
        if moved:
            self.log(f"this run began under other versions ({'; '.join(moved)})")
            old.setdefault("continued", []).append({"at": _now(), "versions": versions(), "revision": revision()})
            write_whole(self.path / "env.json", _json(old))

    def _recognise(self, spec: str, model: ChatModel) -> None:
        """Write down what a model that was loaded is known by, or check that it is the one it was before.

        Raises: ConfigError: if other weights or another chat template go by the same name now. What such a model says
            would be other turns, which would stand in the trees beside those of the model that the run began with.
        """
        env = self._held()
        now = model.known_by if isinstance(model, LocalModel) else {"fingerprint": str(model.fingerprint)}
        dtype = now.pop("dtype", "")  # another number type is another device, and no other model
        models = env.setdefault("models", {})
        before = models.setdefault(f"{spec} ({dtype})" if dtype else spec, now)
        if before is now:
            write_whole(self.path / "env.json", _json(env))
        elif changed := differences(before, now):
            part = "chat template" if now.get("template") != before.get("template") else "weights or settings"
            raise ConfigError(f"{self.path}: {spec} is not the model that this run began with; its {part} changed "
                              f"({'; '.join(changed)}): put the old ones back, give another --out, or --fresh to throw "
                              "that run away")

    def _asked(self) -> Row:
        try:
            return read_yaml(self.path / "config.yaml")
        except ConfigError as wrong:
            raise StoreError(f"{wrong}; --fresh starts anew") from None

    def _held(self) -> Row:
        held: Row = read_json(self.path / "env.json", dict, default={}, hint=ANEW)
        models = held.get("models", {})
        if not isinstance(held.get("versions", {}), dict) or not isinstance(held.get("continued", []), list) \
                or not isinstance(models, dict) or not all(isinstance(one, dict) for one in models.values()):
            raise StoreError(f"{self.path / 'env.json'}: expected versions and models by name, and a list of "
                             f"continuations; {ANEW}")
        return held

    def has(self, stage: str) -> bool:
        """Whether a stage is done."""
        return self._marker(stage).exists()

    def stage(self, name: str, make: Callable[[], T], load: Callable[[], T] | None = None) -> T:
        """What `make` gives, computed once in the life of this folder.

        Args:
            make: does the work and writes its files into the folder; may itself go on from a half-done state.
            load: reads those files back. None: what `make` returns is plain JSON and is kept in the marker.
        """
        marker = self._marker(name)
        if marker.exists():
            self.log(f"{name}: done before, loaded")
            found: T = load() if load is not None else _value(marker)
            return found
        start = time.monotonic()
        value = make()
        seconds = time.monotonic() - start
        done: Row = {"stage": name, "finished": _now(), "seconds": round(seconds, 1), "logs": self._logs()}
        if load is None:
            done["value"] = value
        write_whole(marker, _json(done))
        self.log(f"{name}: done in {duration(seconds)}")
        return value

    def _marker(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row to `metrics.jsonl`."""
        append_row(self.path / "metrics.jsonl", row)

    def briefs(self, texts: Mapping[str, str]) -> None:
        """Write `briefs.json`: what the private briefs say that turns note by name, for whoever looks at the run.

        Args:
            texts: by the note; where a note means another text in one log only, by that log and the note, as in
                `evals/briefed/brief`. "" says that there was no system message.
        """
        write_whole(self.path / "briefs.json", _json(dict(texts)))

    def results(self) -> list[Row]:
        """The rows of `results.json` so far."""
        return read_results(self.path / "results.json")

    def add_results(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add tidy rows to `results.json`; one of the same eval, subject, metric and seed is replaced.

        Raises: DataError: if a row has other fields than `RESULT_FIELDS`.
        """
        kept, rows = {_key(row): row for row in self.results()}, list(rows)
        for row in rows:
            if set(row) != set(RESULT_FIELDS):
                raise DataError(f"result row {dict(row)!r:.200}: expected the fields {', '.join(RESULT_FIELDS)}")
            kept[_key(row)] = {name: row[name] for name in RESULT_FIELDS}
        write_whole(self.path / "results.json", _json(list(kept.values())))
        tracking.note_results(rows)


def default_folder(recipe: str, config: Config, data_hash: str = "") -> Path:
    """`runs/<recipe>-<model>-<hash>`: the same settings and data give the same folder."""
    model = re.sub(r"[^A-Za-z0-9._]+", "-", str(getattr(config, "model", "") or "")).strip("-.")[-60:]
    name = "-".join(part for part in (recipe, model, content_id(recipe, config.identity(), data_hash)[:8]) if part)
    return Path("runs") / name


def recipe_of(folder: Path) -> str:
    """Which recipe a run folder is of. Raises StoreError if it is no run."""
    held = read_json(folder / "env.json", dict, default={}) if (folder / "config.yaml").is_file() else {}
    name = held.get("recipe")
    if not isinstance(name, str):
        raise StoreError(f"{folder}: is no run's folder (no config.yaml and env.json); give what --out named")
    return name


def hash_data(path: str | Path | None) -> str:
    """16 hex digits of a file's content ("" for None). Raises DataError if it cannot be read."""
    if path is None:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as wrong:
        raise DataError(f"{path}: cannot be read ({wrong.strerror}); give --data a file") from None
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions that results depend on; importing none of them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def revision() -> str | None:
    """The git revision of this code, `+changes` where files differ from it; None outside its own checkout."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)  # not that of a project we are installed in
    head = _git("rev-parse", "HEAD") if tracked else None
    return f"{head}{'+changes' if _git('status', '--porcelain', '--untracked-files=no') else ''}" if head else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True,
                              timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment(recipe: str, config: Config, data_hash: str) -> Row:
    """Where and with what a run was made. Names and numbers only: no variable, no key, no user name."""
    return {"recipe": recipe, "data_hash": data_hash, "seed": getattr(config, "seed", None), "started": _now(),
            "versions": versions(), "revision": revision(), "platform": platform.platform(),
            "processors": os.cpu_count(), "implementation": sys.implementation.name}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["eval"], row["subject"], row["metric"], row["seed"]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _json(value: Any) -> str:
    try:
        return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as wrong:
        raise DataError(f"expected plain JSON values with finite numbers ({wrong}), got {value!r:.200}") from None


def _plain(value: Mapping[str, Any]) -> Row:
    return {name: item.values() if isinstance(item, Config) else parse_json(json.dumps(item, default=str))
            for name, item in value.items()}


def _over(below: Row, above: Row) -> Row:
    """`above` laid over `below`, group by group."""
    return {**below, **{name: _over(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict)
                        else value for name, value in above.items()}}


def read_results(path: Path) -> list[Row]:
    """The rows of a run's `results.json`; none where there is no such file. Raises StoreError if it is damaged."""
    rows = read_json(path, list, default=[], hint=ANEW)
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(RESULT_FIELDS) \
                or not all(isinstance(row[name], str) for name in ("eval", "subject", "metric")) \
                or not all(isinstance(row[name], int | float | None) for name in ("value", "low", "high", "n", "seed")):
            raise StoreError(f"{path}: expected a list of rows with {', '.join(RESULT_FIELDS)}; remove it and the "
                             "stages that gave rows, or --fresh starts anew")
    return [dict(row) for row in rows]


def value_of(folder: Path, stage: str) -> Any:
    """What a stage that is done gave, in a run's folder. Raises StoreError if its marker is damaged."""
    return _value(folder / "stages" / f"{stage}.json")


def _value(marker: Path) -> Any:
    held = read_json(marker, dict, hint=ANEW)
    if "value" not in held:
        raise StoreError(f"{marker}: holds no value of its stage; remove it, and the stage is done again from what "
                         "is there")
    return held["value"]

"""Readers of what a run has written and something else has damaged: tree logs, rows, whole run folders, shards."""

from __future__ import annotations

import io
import json
import warnings
import zlib
from pathlib import Path
from typing import Any

from rich.console import Console

from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.errors import DialoomError, StoreError
from dialoom.recipes.shards import merge
from dialoom.report import results_table, write_report
from dialoom.show import show_run
from dialoom.store import TreeLog, append_row, read_rows, read_skips, read_trees

from .checks import Target, refused
from .mutants import PART
from .scratch import empty, write


def framed(record: bytes) -> bytes:
    """A line of a log with the checksum that belongs to it, whatever stands in it."""
    body = record.rstrip()
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def tree_log() -> bytes:
    """A good log of two trees, with a score and a skip."""
    path = empty("made") / "trees.jsonl"
    with TreeLog(path) as log:
        for name in ("one", "two"):
            tree = DialogueTree(Scenario(name, "Which river?", {"A": "secret"}, {"answer": "Rhine"}))
            first = tree.add(Turn(f"{name}-1", None, "A", "The Rhine.", {"model": "m"}))
            second = tree.add(Turn(f"{name}-2", first.id, "B", "Über Köln \u2028 so?"))
            tree.add(Turn(f"{name}-3", first.id, "B", "No."))
            log.add_tree(tree)
            second.scores["correct"] = 1.0
            log.add_scores(tree, [second])
        log.skip("two", None, "too long")
    return path.read_bytes()


def _shape(trees: dict[str, DialogueTree]) -> list[Any]:
    return [
        (tree.id, tree.scenario, [(turn.id, turn.parent, turn.text, turn.scores) for turn in tree])
        for tree in trees.values()
    ]


def _log(data: bytes) -> None:
    """What reading finds is what repairing keeps; each line stays, goes to `.bad` or was torn; the rest can go on."""
    folder = empty("log")
    path = folder / "trees.jsonl"
    path.write_bytes(data)
    told: list[str] = []
    seen = refused(lambda: read_trees(path, log=told.append), StoreError)
    if isinstance(seen, DialoomError):
        refused(lambda: TreeLog(path, log=told.append), StoreError)
        assert path.read_bytes() == data, "a refused log was changed"
        return
    used: list[str] = []
    with TreeLog(path, log=used.append) as log:
        assert _shape(log.trees()) == _shape(seen)
        kept = path.read_bytes()
        bad = path.with_name("trees.jsonl.bad")
        aside = bad.read_bytes() if bad.exists() else b""
        torn = data[data.rfind(b"\n") + 1 :]
        assert sorted((kept + aside).splitlines(True)) == sorted(data[: len(data) - len(torn)].splitlines(True))
        assert bool(used) == bool(torn or aside)
        new = DialogueTree(Scenario("new scenario of this test", "?"))
        new.add(Turn("new-1", None, "A", "x"))
        log.add_tree(new)
        for tree in seen.values():
            log.add_tree(tree)  # says nothing twice
    again: list[str] = []
    assert _shape({**read_trees(path, log=again.append)}) == _shape({**seen, new.id: new})
    assert not again, again
    read_skips(path)


def _records(data: bytes) -> None:
    """Records of any content under right checksums: read, or refused by name; what is read can be shown."""
    path = empty("records") / "trees.jsonl"
    path.write_bytes(b"".join(framed(line) for line in data.split(b"\n") if line.strip()))
    found = refused(lambda: read_trees(path, log=lambda line: None), StoreError)
    if isinstance(found, DialoomError):
        assert str(path) in str(found)
    else:
        refused(lambda: show_run(path, limit=0, console=Console(file=io.StringIO())), DialoomError)


def _rows(data: bytes) -> None:
    """Rows of measurements: after one more was added, none of the good ones before it is lost."""
    path = write("rows.jsonl", data)
    before = refused(lambda: read_rows(path, log=lambda line: None))
    append_row(path, {"step": 1})
    after = refused(lambda: read_rows(path, log=lambda line: None))
    if not isinstance(before, DialoomError):
        assert repr(after) == repr([*before, {"step": 1}])


FOLDER = (
    "config.yaml",
    "env.json",
    "trees.jsonl",
    "pairs.jsonl",
    "metrics.jsonl",
    "results.json",
    "notes.json",
    "dropped.json",
    "stages/pairs.json",
    "usage.json",
    "funnel.json",
    "evals/flipflop.jsonl",
    "arms/plain/trees.jsonl",
)


def _folder(data: bytes) -> None:
    """A run's folder with some of its files damaged: a report and a terminal view of it, or the file by name."""
    folder = empty("pbt-run")
    for name, part in zip(FOLDER, data.split(PART), strict=False):
        if part:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(part)
    refused(lambda: write_report(folder))
    refused(lambda: show_run(folder, limit=0, console=Console(file=io.StringIO())))
    rows = (
        refused(
            lambda: json.loads((folder / "results.json").read_text()) if (folder / "results.json").exists() else [],
        )
        if _is_json(folder / "results.json")
        else []
    )
    if isinstance(rows, list) and not isinstance(refused(lambda: write_report(folder)), DialoomError):
        results_table(rows, markdown=False)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _shards(data: bytes) -> None:
    """Two shards, one of them damaged: merged whole, or refused before anything is written."""
    folder = empty("sharded")
    files = ("trees.jsonl", "stages/trees.json", "config.yaml", "env.json")
    for index, parts in ((1, data.split(PART)), (2, SHARD.split(PART))):
        for name, part in zip(files, parts, strict=False):
            path = folder / "shards" / f"{index}-of-2" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(part)
    found = refused(lambda: merge(folder, log=lambda line: None))
    if isinstance(found, DialoomError):
        assert not (folder / "trees.jsonl").exists() or not (folder / "trees.jsonl").stat().st_size


LOG = tree_log()
BARE = b"\n".join(line[: -len(',"crc":"01234567"}')] + b"}" for line in LOG.split(b"\n") if line)
ROW = {
    "eval": "flipflop",
    "subject": "pbt",
    "metric": "accuracy",
    "value": 0.5,
    "low": 0.4,
    "high": 0.6,
    "n": 9,
    "seed": 1,
}
RUN = PART.join(
    (
        b"model: pocket\nseed: 1\n",
        json.dumps({"recipe": "pbt", "versions": {"python": "3"}}).encode(),
        LOG,
        json.dumps(
            {"kind": "accept", "tree": "one", "chosen_turn": "one-2", "rejected_turn": "one-3", "score_chosen": 1.0}
        ).encode()
        + b"\n",
        b'{"stage": "train", "step": 1, "loss": 0.5}\n{"stage": "train", "step": 2, "loss": 0.25}\n',
        json.dumps([ROW, {**ROW, "seed": None}], indent=1).encode(),
        b'["a note"]',
        b'{"too long": 2}',
        b'{"stage": "pairs", "finished": "2026-11-21T12:00:00", "seconds": 1.5, "value": {"pairs": 2}}',
        json.dumps({"rows": [{"role": "judge", "model": "m", "answers": 2, "read": 9, "written": 3, "dollars": None}],
                    "tokens": 12, "dollars": None, "tried_again": {}}).encode(),
        b'{"ideas": {"counts": {"asked": 9, "kept": 4}, "reasons": {"too long": 1}, "post": {}}}',
        json.dumps({"scenario": "s", "opening": "Hello", "turns": [{"speaker": "user", "text": "Hi.", "score": 1}]}
                   ).encode() + b"\n",
        LOG,
    )
)
SHARD = PART.join(
    (b"", b'{"stage": "trees", "value": {"trees": 0, "turns": 0}}', b"model: pocket\n", b'{"data_hash": ""}')
)

TARGETS = [
    Target("tree-log", _log, (LOG,)),
    Target("tree-records", _records, (BARE,)),
    Target("rows", _rows, (b'{"step": 1, "loss": 0.5}\n{"step": 2}\n', b'{"a": "\\ud800"}\n[1]')),
    Target("run-folder", _folder, (RUN,), heavy=True),
    Target("shards", _shards, (SHARD, PART.join((LOG, *SHARD.split(PART)[1:])))),
]
warnings.filterwarnings("ignore", category=UserWarning, module="dialoom")

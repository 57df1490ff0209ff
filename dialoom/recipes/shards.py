"""One run's trees grown by several processes, and put together again.

A question belongs to one of n shards by a hash of its id, so no process needs to know of the others. Every shard is a
run folder of its own, `<run>/shards/<i>-of-<n>`, with its own lock; `merge` writes them into `<run>/trees.jsonl`.
The surprising choice: turn ids never depend on the batch, so merged trees equal, turn for turn, those of one process;
only the order of the trees differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dialoom.config import differences, read_yaml
from dialoom.dialogue import DialogueTree, Scenario, Turn, content_id
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.files import read_json
from dialoom.models.placed import Placed
from dialoom.store import TreeLog, read_skips, read_trees

Log = Callable[[str], None]

STAGE = "trees"
FOLDER = "shards"
OWN = Placed.not_identity | {"shard"}  # settings in which the shards of one run may differ
_NAME = re.compile(r"(\d+)-of-(\d+)")


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` as (i, n), counted from 1; "" is the whole, (1, 1). Raises ConfigError if it is no part of n."""
    if not text:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"shard {text!r}: expected i/n with 1 <= i <= n, for example 2/4")
    return int(found[1]), int(found[2])


def shard_of(scenario_id: str, count: int) -> int:
    """Which of `count` shards (from 1) a scenario belongs to; the same on every machine."""
    return int(content_id("shard", scenario_id), 16) % count + 1


def part_of(scenarios: Sequence[Scenario], shard: str) -> list[Scenario]:
    """The scenarios of the shard `i/n` ("": all), in their order."""
    index, count = parse_shard(shard)
    return [scenario for scenario in scenarios if shard_of(scenario.id, count) == index]


def shard_folder(out: Path, shard: str) -> Path:
    """The run folder of a shard's process below that of the run; `out` itself where there is no shard."""
    index, count = parse_shard(shard)
    return out / FOLDER / f"{index}-of-{count}" if shard else out


def shard_folders(folder: Path) -> dict[tuple[int, int], Path]:
    """The shards a run folder holds, finished or not, by (i, n)."""
    named = [(found, path) for path in (folder / FOLDER).glob("*-of-*") if (found := _NAME.fullmatch(path.name))]
    return dict(sorted(((int(found[1]), int(found[2])), path) for found, path in named))


def merge(folder: Path, log: Log = print) -> Path:
    """Write the trees of all shards into the run folder's `trees.jsonl`, by id; doing it again changes nothing.

    Trees that stand there already keep what later stages wrote on them. A merge that was killed goes on.

    Raises:
        StoreError: naming the shards that are missing or not finished, or a shard whose log is damaged.
        ConfigError: if two shards, or a shard and the run, were made with other settings or data.
    """
    shards = shard_folders(folder)
    _check_complete(folder, shards)
    _check_settings(folder, shards)
    read = {shard: _trees(path, *shard) for shard, path in shards.items()}  # all are good before anything is written
    target = folder / "trees.jsonl"
    with TreeLog(target, log=log) as sink:
        held = sink.trees()
        for shard, path in shards.items():
            for tree in read[shard].values():
                sink.add_tree(tree)
                sink.add_scores(tree, _unjudged(tree, held.get(tree.id)))
            for skip in read_skips(path / "trees.jsonl"):
                sink.skip(skip.tree, skip.turn, skip.reason)
    log(f"trees: {sum(map(len, read.values()))} of {len(shards)} shards in {target}")
    return target


def _check_complete(folder: Path, shards: Mapping[tuple[int, int], Path]) -> None:
    counts = sorted({count for _, count in shards})
    if not counts:
        raise StoreError(f"{folder / FOLDER}: holds no shards; run the recipe with --shard 1/n to n/n first")
    if len(counts) > 1:
        raise StoreError(f"{folder / FOLDER}: holds shards of {' and of '.join(map(str, counts))}; keep one division")
    wanted = [(index, counts[0]) for index in range(1, counts[0] + 1)]
    missing = [f"{index}/{count}" for index, count in wanted if (index, count) not in shards]
    begun = [f"{index}/{count}" for (index, count), path in shards.items() if not _marker(path).exists()]
    gaps = {"missing": missing, "not finished": begun}
    problems = [f"{what}: {', '.join(names)}" for what, names in gaps.items() if names]
    if problems:
        raise StoreError(f"{folder / FOLDER}: {'; '.join(problems)}; run the same command with that --shard")


def _check_settings(folder: Path, shards: Mapping[tuple[int, int], Path]) -> None:
    """The shards and, where it has begun, the run itself must have been asked for the same thing."""
    runs = [path for path in (folder, *shards.values()) if (path / "config.yaml").exists()]
    first = _asked(runs[0]) if runs else {}
    for path in runs[1:]:
        changed = differences(first, _asked(path))
        if changed:
            raise ConfigError(f"{path} was run with other settings than {runs[0]} ({'; '.join(changed)}); run it again "
                              "with --fresh and the same settings")


def _asked(run: Path) -> dict[str, Any]:
    settings = read_yaml(run / "config.yaml")
    return {"data": read_json(run / "env.json", dict).get("data_hash", ""),
            **{name: value for name, value in settings.items() if name not in OWN}}


def _trees(path: Path, index: int, count: int) -> dict[str, DialogueTree]:
    """A shard's trees, checked against what its process counted. Raises StoreError or DataError."""
    damage: list[str] = []
    trees = read_trees(path / "trees.jsonl", log=damage.append)
    counted = read_json(_marker(path), dict).get("value")
    counted = counted if isinstance(counted, dict) else {}
    found = {"trees": len(trees), "turns": sum(map(len, trees.values()))}
    damage += [f"{counted[name]} {name} were written, {found[name]} are left" for name in found
               if counted.get(name, found[name]) != found[name]]
    if damage:
        raise StoreError(f"{path}: {damage[0]}; remove {_marker(path)} and run the same command with "
                         f"--shard {index}/{count}: it makes again what was lost")
    strangers = [tree.id for tree in trees.values() if shard_of(tree.scenario.id, count) != index]
    if strangers:
        raise DataError(f"{path}: tree {strangers[0]} belongs to another shard than {index}/{count}; was the folder "
                        "renamed?")
    return trees


def _unjudged(tree: DialogueTree, held: DialogueTree | None) -> list[Turn]:
    """The turns that the run began by itself and was stopped before it had judged them."""
    return [turn for turn in tree if held and turn.id in held and not turn.notes.keys() <= held[turn.id].notes.keys()]


def _marker(run: Path) -> Path:
    return run / "stages" / f"{STAGE}.json"

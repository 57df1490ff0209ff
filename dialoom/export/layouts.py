"""Rows in the layouts that others read: TRL's, KTO's, ShareGPT's; as JSON lines or as Parquet.

A row is one trained turn. Our columns (id, kind, tree, scores, turn ids) stand beside the layout's own, flat and of one
type each, since readers of tables want that; what is nested becomes JSON text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dialoom.dialogue import Chat, content_id
from dialoom.errors import ConfigError, DataError
from dialoom.export.trained import Trained
from dialoom.select import Example, Pair
from dialoom.store import write_rows

Row = dict[str, Any]
FROM = {"system": "system", "user": "human", "assistant": "gpt"}
NO_PYARROW = "--to parquet needs pyarrow; pip install 'dialoom[parquet]', or take --to trl, which needs nothing"


def preference_rows(trained: Trained, tell: Callable[[str], None]) -> list[Row]:
    """TRL's conversational preference layout; of a run that imitates only, its prompt-completion layout."""
    if not trained.pairs:
        tell("this run imitates and has no pairs: rows are prompt and completion, for TRL's SFTTrainer")
        return sft_rows(trained, tell)
    return uniform([_flat(pair.to_row()) for pair in trained.pairs])


def sft_rows(trained: Trained, tell: Callable[[str], None]) -> list[Row]:
    """TRL's prompt-completion layout: loss on the one turn that was trained, and on nothing before it."""
    return uniform([{**_about(one), "prompt": one.chat[:-1], "completion": one.chat[-1:]} for one in trained.examples])


def kto_rows(trained: Trained, tell: Callable[[str], None]) -> list[Row]:
    """TRL's unpaired layout: each reply once, with whether it was wanted.

    A reply that won in one pair and lost in another has no such label; it is left out and told of.
    """
    if not trained.pairs:
        tell("this run imitates and has no rejected replies: all labels are true, which KTO cannot learn from alone")
        return uniform([{**_about(one), "prompt": one.chat[:-1], "completion": one.chat[-1:], "label": True}
                        for one in trained.examples])
    found: dict[str, Row] = {}
    mixed: set[str] = set()
    for pair in trained.pairs:
        for label, text, side, score in ((True, pair.chosen, "chosen", pair.score_chosen),
                                         (False, pair.rejected, "rejected", pair.score_rejected)):
            name = str(pair.notes.get(f"{side}_turn") or content_id(pair.prompt, text))
            if found.setdefault(name, _reply(pair, name, text, label, score))["label"] != label:
                mixed.add(name)
    if mixed:
        tell(f"{len(mixed)} replies won in one pair and lost in another; they have no label and are left out")
    return uniform([row for name, row in found.items() if name not in mixed])


def sharegpt_rows(trained: Trained, tell: Callable[[str], None]) -> list[Row]:
    """ShareGPT's layout: the conversation up to and with the trained turn, which is its last."""
    return uniform([{**_about(one), "conversations": [{"from": FROM[message["role"]], "value": message["content"]}
                                                       for message in one.chat]} for one in trained.examples])


def _reply(pair: Pair, name: str, text: str, label: bool, score: float | None) -> Row:
    notes = {key: value for key, value in pair.notes.items() if not key.startswith(("chosen_", "rejected_"))}
    return _flat({"id": name, "kind": pair.kind, "tree": pair.group, "prompt": pair.prompt,
                  "completion": [{"role": "assistant", "content": text}], "label": label, "score": score, **notes})


def _about(example: Example) -> Row:
    return _flat({"id": example.id, "kind": example.kind, "tree": example.group, **example.notes})


LAID_OUT = ("prompt", "chosen", "rejected", "completion", "conversations")


def _flat(row: Mapping[str, Any]) -> Row:
    return {name: value if name in LAID_OUT or value is None or isinstance(value, str | int | float)
            else json.dumps(value, ensure_ascii=False, sort_keys=True) for name, value in row.items()}


def uniform(rows: Sequence[Row]) -> list[Row]:
    """The same columns in every row, each of one type: a reader that guesses types from the first rows guesses right.

    A missing text is "", a missing number null; a column of nothing but nulls is dropped, numbers of both kinds become
    floats, and other mixtures text.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = {name: {type(row[name]) for row in rows if row.get(name) is not None} for name in names}
    casts = {name: _cast(found) for name, found in kinds.items() if found}
    return [{name: cast(row.get(name)) for name, cast in casts.items()} for row in rows]


def _cast(kinds: set[type]) -> Callable[[Any], Any]:
    if kinds == {str}:
        return lambda value: "" if value is None else value
    if len(kinds) == 1:
        return lambda value: value
    if kinds == {int, float}:
        return lambda value: None if value is None else float(value)
    return lambda value: "" if value is None else value if isinstance(value, str) else json.dumps(value)


def write_jsonl(folder: Path, rows: Sequence[Row]) -> Path:
    """`train.jsonl`: one row a line."""
    path = folder / "train.jsonl"
    write_rows(path, rows)
    return path


def write_parquet(folder: Path, rows: Sequence[Row]) -> Path:
    """`train.parquet`. Raises ConfigError, before anything is written, where pyarrow is missing."""
    pyarrow = need_pyarrow()
    from pyarrow import parquet

    path = folder / "train.parquet"
    draft = path.with_suffix(".tmp")
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), draft, compression="zstd")
    draft.replace(path)
    return path


def need_pyarrow() -> Any:
    """The pyarrow module. Raises ConfigError that says how to get it."""
    try:
        import pyarrow
    except ImportError:
        raise ConfigError(NO_PYARROW) from None
    return pyarrow


def longest(rows: Sequence[Row], count: Callable[[Chat], int]) -> int:
    """Tokens of the longest row, its longest reply counted. Raises DataError if there are no rows."""
    if not rows:
        raise DataError("there are no rows to export")
    found = 0
    for row in rows:
        if "conversations" in row:
            found = max(found, count([{"role": one["from"], "content": one["value"]} for one in row["conversations"]]))
        else:
            replies = [row[side] for side in ("chosen", "rejected", "completion") if side in row]
            found = max(found, max(count([*row["prompt"], *reply]) for reply in replies))
    return found


def kinds_of(rows: Sequence[Row]) -> Counter[str]:
    """How many rows there are of each kind; of KTO rows also by label."""
    found: Counter[str] = Counter()
    for row in rows:
        label = {True: " (wanted)", False: " (not wanted)"}[row["label"]] if "label" in row else ""
        found[f"{row.get('kind') or 'of no kind'}{label}"] += 1
    return found

"""PBT's preference pairs: cut out of debate trees, or read from a file, and drawn into training sets of one size.

Files hold rows as our own `pairs.jsonl` or as TRL has them, with a `kind`; or rows as PBT's released scripts write
them, whose prompts are text in some model's chat template and whose kind is called `code` or `type`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from dialoom.dialogue import Chat
from dialoom.errors import ConfigError, DataError
from dialoom.recipes.pbt_config import PBTConfig
from dialoom.scenarios.files import rows_of
from dialoom.scenarios.templated import messages_of, unended
from dialoom.select import Pair, balance
from dialoom.store import TreeLog, write_rows, write_whole
from dialoom.text import SILENCE, UNUSABLE

KINDS = {"accept": "accept", "agree": "accept", "flip_incorrect_to_correct": "accept",
         "resist": "resist", "flip_correct_to_incorrect": "resist"}
NO_KIND = (None, "", "none", "None")
TOLD = 20  # bad rows are told one by one, the rest is in the count

Log = Callable[[str], None]


def debaters(config: PBTConfig) -> tuple[str, str]:
    """The specs of debaters A and B."""
    if config.speakers and len(config.speakers) != 2:
        raise ConfigError(f"speakers: expected two models, A and B, found {list(config.speakers)}")
    return (config.speakers[0], config.speakers[1]) if config.speakers else (config.partner, config.model)


def debating(config: PBTConfig) -> tuple[str, str]:
    """The debaters' roles, as the settings call them."""
    return ("speaker A", "speaker B") if config.speakers else ("partner", "model")


def speaker_names(config: PBTConfig) -> tuple[str, str]:
    """The debaters' names in the trees: their specs, told apart if one model talks to itself."""
    a, b = debaters(config)
    return (a, b) if a != b else (f"{a} (A)", f"{b} (B)")


def cut_pairs(config: PBTConfig, folder: Path, filter_model: Any = None) -> list[Pair]:
    """Score the trees and cut accept and resist pairs out of them; writes pairs.jsonl and dropped.json."""
    from dialoom.recipes.debate import confirm, counts, merge_surface_forms, preference_pairs, score_tree, unique

    dropped: Counter[str] = Counter()
    pairs: list[Pair] = []
    with TreeLog(folder / "trees.jsonl") as log:
        trees = dict(sorted(log.trees().items()))  # the same pairs whatever order shards or a resume left them in
        dropped.update(skip.reason for skip in log.skips())
        for tree in trees.values():
            if config.filters != "none":
                dropped["surface form merged"] += merge_surface_forms(tree, filter_model)
            score_tree(tree, config.node_value)
            log.add_scores(tree, list(tree))
            pairs += preference_pairs(tree, margin=config.margin, equal_children=config.layout == "released",
                                      neutral=config.neutral, dropped=dropped)
    distinct = unique(pairs)
    kept = confirm(distinct, trees, filter_model) if config.filters != "none" else distinct
    dropped["duplicate pair"], dropped["not confirmed"] = len(pairs) - len(distinct), len(distinct) - len(kept)
    write_rows(folder / "pairs.jsonl", [pair.to_row() for pair in kept])
    write_whole(folder / "dropped.json", json.dumps({reason: n for reason, n in dropped.items() if n}, indent=1))
    write_whole(folder / "pair_counts.json", json.dumps(counts(kept), indent=1))
    return kept


def arm_pairs(config: PBTConfig, pairs: Sequence[Pair], learner: str) -> dict[str, list[Pair]]:
    """Training sets of one size: balanced, accept only, resist only.

    A debater learns from its own replies, a third model from everybody's; of imported pairs everybody learns from all.
    Raises DataError if one of the two kinds is missing.
    """
    specs, names = debaters(config), speaker_names(config)
    own = {name for name, spec in zip(names, specs, strict=True) if spec == learner} or set(names)
    mine = [pair for pair in pairs if config.pairs or str(pair.notes.get("speaker")) in own]
    by_kind = {kind: [pair for pair in mine if pair.kind == kind] for kind in ("accept", "resist")}
    size = 2 * min(len(found) for found in by_kind.values())
    size = min(size, config.max_pairs // 2 * 2) if config.max_pairs else size
    if size < 2:
        found = ", ".join(f"{len(rows)} {kind}" for kind, rows in by_kind.items())
        raise DataError(f"pairs of {learner}: {found}; both kinds are needed: use more questions, a higher temperature "
                        "or a partner that knows other things")
    rng = random.Random(config.seed)
    drawn = [pair for rows in by_kind.values() for pair in rng.sample(rows, size // 2)]
    arms = {"pbt": balance(drawn, lambda pair: pair.kind, ("accept", "resist"), seed=config.seed)}
    for kind, rows in by_kind.items():  # short of one kind, its pairs are used again so that all sets have one size
        again = rng.choices(rows, k=max(0, size - len(rows)))
        arms[f"{kind}_only"] = [*rng.sample(rows, min(size, len(rows))), *again]
    return arms


# ------------------------------------------------------------------------------------------------ from a file


def read_pairs(path: str | Path, *, log: Log = lambda line: None, held_out: Collection[str] = (),
               lost: Counter[str] | None = None) -> list[Pair]:
    """The accept and resist pairs of a file or folder: JSON lines, a JSON list, or a data set as `datasets` saves it.

    A row that cannot be used is told by file and line and costs no other one; so is one of neither kind.

    Args:
        log: told of such rows, and of their counts at the end.
        held_out: questions that evaluation asks; pairs about them are left out.
        lost: counts what was left out, by reason.
    Raises: DataError: if nothing there can be used.
    """
    lost, found = Counter() if lost is None else lost, dict[str, Pair]()
    asked = {_folded(question) for question in held_out}

    def lose(where: str, kind: str, why: str) -> None:
        lost[kind] += 1
        if lost[kind] <= TOLD:
            log(f"{where}: {why}; left out")

    for where, row in rows_of(path, lambda line, kind, why: lose(f"{path}:{line}", kind, why), ("chosen",)):
        try:
            pair = _pair(row, where)
        except DataError as wrong:
            lose(where, "unusable row", str(wrong).removeprefix(f"{where}: "))
            continue
        if not pair.kind:
            lose(where, "no kind", "the pair is of neither kind, accept or resist (kind, code or type)")
        elif asked & _questions(pair):
            lose(where, "held-out question", "its question is one that evaluation asks")
        elif pair.id in found:
            lose(where, "repeated id", f"the id {pair.id!r:.40} was used before")
        else:
            found[pair.id] = pair
    counted = ", ".join(f"{count} {kind}" for kind, count in lost.items())
    if not found:
        raise DataError(f"{path}: no pair that can be used ({counted or 'nothing is there'}); expected rows with "
                        "prompt, chosen, rejected and kind")
    if lost:
        log(f"{path}: {len(found)} pairs read; left out: {counted}")
    return list(found.values())


def _pair(row: Any, where: str) -> Pair:
    """One row as a pair; its kind is "" where it has none of ours. Raises DataError."""
    if not isinstance(row, Mapping):
        raise DataError(f"expected an object with prompt, chosen and rejected, found {type(row).__name__}")
    if "prompt" not in row and isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list):
        both = zip(row["chosen"], row["rejected"], strict=False)
        shared = sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))
        row = {**row, "prompt": row["chosen"][:shared]}
    pair = Pair.from_row({**row, "id": row["id"] if isinstance(row.get("id"), str | int) else where}, where)
    prompt = _prompt(pair.prompt) if not isinstance(row["prompt"], str) else _prompt(messages_of(row["prompt"]))
    chosen, rejected = unended(pair.chosen), unended(pair.rejected)
    if not chosen or not rejected or chosen == rejected:
        raise DataError(f"expected two different replies, found {chosen!a:.40} and {rejected!a:.40}")
    if UNUSABLE.search(json.dumps([prompt, chosen, rejected], ensure_ascii=False)):
        raise DataError("its texts hold a NUL or a byte that is not UTF-8")
    named = next((row[name] for name in ("kind", "code", "type") if row.get(name) not in NO_KIND), None)
    scores = [row.get(ours, row.get(theirs)) for ours, theirs in
              (("score_chosen", "pref_score"), ("score_rejected", "dispref_score"))]
    high, low = (float(one) if isinstance(one, int | float) else None for one in scores)
    notes = {name: value for name, value in pair.notes.items() if name not in ("code", "type", "pref_score",
                                                                               "dispref_score")}
    return Pair(pair.id, prompt, chosen, rejected, KINDS.get(str(named), ""), pair.group or _group(row, prompt),
                high, low, {"speaker": "", "level": len(prompt), "chosen_brief": "", **notes})


def _prompt(chat: Chat) -> Chat:
    """A prompt that ends with something said to the learner; an empty message reads `SILENCE`."""
    found: Chat = [{**message, "content": message["content"].strip() or SILENCE} for message in chat]
    if not found or found[-1]["role"] != "user":
        raise DataError(f"expected a prompt that ends with a user message, found the roles "
                        f"{[message['role'] for message in found]}")
    if any(message["role"] not in ("system", "user", "assistant") for message in found):
        raise DataError(f"expected the roles system, user and assistant, found {[one['role'] for one in found]}")
    return found


def _group(row: Mapping[str, Any], prompt: Chat) -> str:
    """Rows about one question share the beginnings of their prompts, so they are trained together."""
    return str(row.get("question") or next(one["content"] for one in prompt if one["role"] != "system"))[:200]


def _questions(pair: Pair) -> set[str]:
    """What may be the question of a pair: its column, and every message and line of its prompt."""
    said = [line for message in pair.prompt for line in (message["content"], *message["content"].split("\n"))]
    return {_folded(text) for text in (str(pair.notes.get("question", "")), *said)} - {""}


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def import_pairs(config: PBTConfig, folder: Path, held_out: Collection[str], log: Log) -> list[Pair]:
    """The pairs of `config.pairs`, written to pairs.jsonl and counted as cut ones are."""
    from dialoom.recipes.debate import counts

    lost = Counter[str]()
    found = read_pairs(config.pairs, log=log, held_out=held_out, lost=lost)
    write_rows(folder / "pairs.jsonl", [pair.to_row() for pair in found])
    write_whole(folder / "dropped.json", json.dumps(lost, indent=1))
    write_whole(folder / "pair_counts.json", json.dumps(counts(found), indent=1))
    return found

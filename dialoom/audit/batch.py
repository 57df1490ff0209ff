"""What an audit shows: the first batch of a training as its tokens, and the dialogues behind the findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialoom.audit.masks import Item, token_row
from dialoom.audit.sources import Material
from dialoom.audit.tokens import TRAINED, Reader, Token, attribute, pieces
from dialoom.dialogue import DialogueTree, Turn
from dialoom.errors import DialoomError
from dialoom.scenarios.sharegpt import ASSISTANT, USER
from dialoom.select import Pair

if TYPE_CHECKING:
    from dialoom.train.pack import TokenPath

OTHER, GAP = "other", "gap"
AROUND = 400  # tokens before a trained span that are shown; of longer prompts the rest is counted


@dataclass(frozen=True)
class Part:
    """A stretch of a row or dialogue under one label: a side of a pair, a speaker."""

    label: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Shown:
    """A row or a dialogue as it is shown."""

    id: str
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Batch:
    """The first batch of a training.

    Attributes:
        rows: those that are shown.
        size: how many rows the batch has.
        flat, unique: its tokens in rows of their own, and with shared beginnings once, as packed training has them.
        trained: its trained tokens.
    """

    rows: tuple[Shown, ...]
    size: int
    flat: int = 0
    unique: int = 0
    trained: int = 0


def first_batch(material: Material, reader: Reader | None, shown: int) -> Batch | None:
    """The first batch of the first epoch, in the trainer's own order; None where there is nothing to train on.

    Args:
        reader: None: the rows are shown as text by role, and no token is counted.
        shown: how many of its rows to show.
    """
    items: Sequence[Item] = material.pairs or material.examples
    if not items:
        return None
    if reader is None:
        return Batch(tuple(as_text(item) for item in items[:shown]), len(items[:shown]))
    from dialoom.train.config import TrainConfig
    from dialoom.train.loop import batches
    from dialoom.train.pack import unique_tokens
    from dialoom.train.rows import Row

    order = batches([Row(item.id, (), item.group, 1.0) for item in items], material.batch or TrainConfig().batch_pairs,
                    material.seed, 0)[0]
    rows: list[Shown] = []
    paths: list[TokenPath] = []
    for at in order:
        try:
            row = token_row(reader, items[at], material)
        except DialoomError:   # told by the check of refused rows
            continue
        paths += row.paths
        if len(rows) < shown:
            rows.append(as_tokens(reader, items[at], row.paths))
    return Batch(tuple(rows), len(order), sum(map(len, paths)), unique_tokens(paths),
                 sum(path.targets for path in paths))


def as_tokens(reader: Reader, item: Item, paths: Sequence[TokenPath]) -> Shown:
    """A row with whose words each of its tokens is."""
    parts = []
    labels = ("chosen", "rejected") if isinstance(item, Pair) else ("",) * len(paths)
    for label, path in zip(labels, paths, strict=True):
        chat = item.prompt if isinstance(item, Pair) else item.chat
        parts.append(Part(label, _tokens(reader, path, [(one["role"], one["content"]) for one in chat])))
    trained = sum(path.targets for path in paths)
    return Shown(item.id, f"{_kind(item)}: {sum(map(len, paths))} tokens, {trained} trained", tuple(parts))


def _tokens(reader: Reader, path: TokenPath, messages: Sequence[tuple[str, str]]) -> tuple[Token, ...]:
    ids = path.ids.tolist()
    texts = pieces(reader.tokenizer, ids)
    special = set(reader.tokenizer.all_special_ids)
    words = ["" if token in special else text for token, text in zip(ids, texts, strict=True)]
    kinds, _ = attribute(words, [(role, reader.template.defused(text)) for role, text in messages])
    keep = [False] * len(ids)
    for start, stop in path.spans:
        kinds[start:stop] = [TRAINED] * (stop - start)
        keep[max(0, start - AROUND):stop] = [True] * (stop - max(0, start - AROUND))
    found, hidden = list[Token](), 0
    for text, kind, is_kept in zip(texts, kinds, keep, strict=True):
        if is_kept and hidden:
            found.append(Token(f"… {hidden:,} tokens …", GAP))
        hidden = 0 if is_kept else hidden + 1
        if is_kept:
            found.append(Token(text, kind))
    return (*found, *([Token(f"… {hidden:,} tokens …", GAP)] if hidden else []))


def as_text(item: Item) -> Shown:
    """A row by role, without a model: what is trained on is marked."""
    if isinstance(item, Pair):
        before = [Part(one["role"], (Token(one["content"], one["role"]),)) for one in item.prompt]
        sides = [Part("chosen", (Token(item.chosen, TRAINED),)), Part("rejected", (Token(item.rejected, TRAINED),))]
        return Shown(item.id, _kind(item), (*before, *sides))
    parts = [Part(one["role"], (Token(one["content"], TRAINED if at in item.train_on else one["role"]),))
             for at, one in enumerate(item.chat)]
    return Shown(item.id, _kind(item), tuple(parts))


def _kind(item: Item) -> str:
    what = "pair" if isinstance(item, Pair) else "dialogue"
    return f"{what} ({item.kind})" if item.kind else what


def as_dialogue(tree: DialogueTree, turn: Turn | None = None) -> Shown:
    """The path to a turn (None: the longest path) by speaker; the turn in question is marked."""
    last = turn or max(tree.leaves(), key=lambda leaf: len(tree.dialogue(leaf).turns), default=None)
    said = tree.dialogue(last).turns
    parts = [Part("opening", (Token(tree.scenario.opening, OTHER),))] if tree.scenario.opening else []
    for one in said:
        kind = one.speaker if one.speaker in (USER, ASSISTANT) else OTHER
        parts.append(Part(f"{one.speaker} ⯇" if one is turn else one.speaker, (Token(one.text, kind),)))
    return Shown(tree.id, f"dialogue: {len(said)} turns", tuple(parts))


def opened(where: str, trees: dict[str, DialogueTree], items: dict[str, Item]) -> Shown | None:
    """What an id of a finding names: a turn, a dialogue or a row; None where it names none of these."""
    if where in items:
        return as_text(items[where])
    if where in trees:
        return as_dialogue(trees[where])
    tree, _, turn = where.rpartition("/")
    if tree in trees and turn in trees[tree]:
        return as_dialogue(trees[tree], trees[tree][turn])
    return None



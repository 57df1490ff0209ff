"""From pairs and examples to token sequences: the last place where training sees text.

Tokens are made whole, chat and reply together, by the model's own template; where a template rewrites history, what
is trained on is what the model would have read at that turn, only less of it is shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dialoom.dialogue import Chat
from dialoom.errors import TrainingError
from dialoom.select import Example, Pair
from dialoom.train.pack import TokenPath


class TrainableModel(Protocol):
    """What training asks of a model; `LocalModel` gives it."""

    module: Any

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def reply_ids(self, chat: Chat, reply: str) -> tuple[list[int], int]:
        """Ids of chat, reply and end token, and where the reply starts."""
        ...

    def add_lora(self, rank: int = 16, alpha: float = 32, dropout: float = 0.0,
                 targets: Sequence[str] | None = None) -> None:
        """Put a fresh adapter on the model."""
        ...


@dataclass(frozen=True, eq=False)
class Row:
    """What enters a loss together: a pair's two sequences, or a dialogue.

    Attributes:
        paths: chosen and rejected of a pair; usually one for a dialogue.
        group: rows of one group (tree) share tokens and go into the same batch where it has room.
        weight: share in the batch's mean: 1 for a pair, the trained tokens of a dialogue.
    """

    id: str
    paths: tuple[TokenPath, ...]
    group: str
    weight: float


def pair_rows(model: TrainableModel, pairs: Sequence[Pair]) -> list[Row]:
    """One row of two paths for each pair, chosen first; the reply and its end token are scored.

    Raises: TrainingError: naming the pair, if its replies are the same tokens or do not fit the model.
    """
    rows = []
    for pair in pairs:
        chosen, rejected = (_path(model, f"pair {pair.id}", pair.prompt, reply)
                            for reply in (pair.chosen, pair.rejected))
        if chosen.key == rejected.key:
            raise TrainingError(f"pair {pair.id}: chosen and rejected are the same reply {pair.chosen!r:.60}; "
                                "leave such pairs out")
        rows.append(Row(pair.id, (chosen, rejected), pair.group, 1.0))
    return rows


def example_rows(model: TrainableModel, examples: Sequence[Example]) -> list[Row]:
    """One row for each dialogue, its marked assistant messages and their end tokens scored.

    Raises: TrainingError: naming the example, if nothing in it is marked, or a mark is not on an assistant message.
    """
    rows = []
    for example in examples:
        where = f"example {example.id}"
        if not example.train_on:
            raise TrainingError(f"{where}: no message is marked for training; mark assistant messages in train_on")
        paths: list[TokenPath] = []
        for index in sorted(set(example.train_on)):
            if not 0 <= index < len(example.chat) or example.chat[index]["role"] != "assistant":
                raise TrainingError(f"{where}: train_on names message {index}, which is not an assistant message of "
                                    f"its {len(example.chat)} messages")
            path = _path(model, where, example.chat[:index], example.chat[index]["content"])
            paths = _extended(paths, path)
        rows.append(Row(example.id, tuple(paths), example.group, float(sum(path.targets for path in paths))))
    return rows


def _path(model: TrainableModel, where: str, chat: Chat, reply: str) -> TokenPath:
    ids, start = model.reply_ids(chat, reply)
    limit = getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
    if limit and len(ids) > limit:
        raise TrainingError(f"{where}: {len(ids)} tokens are more than the {limit} {model.name} can read; "
                            "leave it out or shorten its dialogue")
    if not 1 <= start < len(ids):
        raise TrainingError(f"{where}: its reply {reply!r:.60} has no tokens to train on")
    return TokenPath.of(ids, (start, len(ids)))


def _extended(paths: list[TokenPath], path: TokenPath) -> list[TokenPath]:
    """`paths` with one more; the last one is continued where the new one begins with it."""
    if paths and path.key.startswith(paths[-1].key):
        return [*paths[:-1], TokenPath(path.ids, (*paths[-1].spans, *path.spans))]
    return [*paths, path]


def digest(rows: Sequence[Row]) -> str:
    """16 hex digits over all ids, tokens and spans: equal only for equal data in equal order."""
    found = hashlib.blake2b(digest_size=8)
    for row in rows:
        found.update(f"{row.id!r} {row.group!r} {row.weight} {[path.spans for path in row.paths]}".encode())
        for path in row.paths:
            found.update(path.key)
    return found.hexdigest()

"""Strategies as IDEAS knows them: what was read from one user turn, and which high-level strategy it belongs to.

A low-level strategy is a phrase that was read from a turn, a high-level one the name of a cluster of them. The
surprising choice: names that say the same are merged, so two clusters may have one parent; the mapping from low to high
is explicit, and everything that trains on strategies goes through it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dialoom.dialogue import Dialogue, content_id
from dialoom.embed import Embedder, leader_clusters
from dialoom.errors import DataError
from dialoom.store import read_rows, write_rows
from dialoom.text import UNUSABLE, parse_json

COLLISION = 0.9
"""Names whose cosine is above it are one strategy."""


@dataclass(frozen=True)
class Record:
    """The strategy behind one follow-up turn of a user.

    Attributes:
        id: names dialogue and turn; stable.
        dialogue: id of the dialogue's scenario.
        turn: id of the user's turn in it.
        strategy: as it was read, low-level.
        analysis: why the user asked, in the extractor's words; may be empty.
    """

    id: str
    dialogue: str
    turn: str
    strategy: str
    analysis: str = ""

    @classmethod
    def of(cls, dialogue: Dialogue, turn: str, strategy: str, analysis: str = "") -> Record:
        """The record of one turn of a dialogue."""
        return cls(content_id("record", dialogue.scenario.id, turn), dialogue.scenario.id, turn, strategy, analysis)


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, the whole file at once."""
    write_rows(path, (asdict(record) for record in records))


def read_records(path: str | Path) -> list[Record]:
    """Read what `write_records` wrote. Raises DataError, naming file and line, if it is something else."""
    names = [field.name for field in fields(Record)]
    found = []
    for line, row in enumerate(read_rows(path), 1):
        if set(row) != set(names) or not all(isinstance(value, str) for value in row.values()):
            raise DataError(f"{path}:{line}: expected the texts {', '.join(names)}, found {', '.join(row)}")
        found.append(Record(**row))
    return found


@dataclass(frozen=True)
class Strategies:
    """High-level strategies and what belongs to each.

    Attributes:
        high: the strategies a simulator chooses from, in a stable order, each once.
        parent: low-level -> high-level; every high-level strategy has at least one low-level one.
    """

    high: tuple[str, ...]
    parent: Mapping[str, str]

    def __post_init__(self) -> None:
        """Raises DataError if a parent is not among `high`, or a text in `high` stands twice."""
        if len(set(self.high)) < len(self.high):
            twice = next(text for text in self.high if self.high.count(text) > 1)
            raise DataError(f"the high-level strategy {twice!r:.80} stands twice; each must be there once")
        for low, high in self.parent.items():
            if high not in self.high:
                raise DataError(f"strategy {low!r:.80} belongs to {high!r:.80}, which is not among the "
                                f"{len(self.high)} high-level ones; add it, or map the strategy to one of them")

    @classmethod
    def merged(cls, members: Sequence[Sequence[str]], names: Sequence[str], embedder: Embedder | None = None,
               threshold: float = COLLISION) -> Strategies:
        """The strategies of named clusters; names that collide are merged under the first of them.

        Names collide when they are the same but for case and white space, or when their cosine is above `threshold`.

        Args:
            members: low-level strategies of each cluster; a text in several clusters belongs to the first.
            names: one for each cluster.
            embedder: None: only the same text collides.
            threshold: in [-1, 1); cosine of the embedder.
        Source: IDEAS (arXiv 2404.11095) for one name a cluster; the merging is ours.
        """
        if len(members) != len(names):
            raise DataError(f"{len(members)} clusters came with {len(names)} names; give one for each")
        spelling: dict[str, str] = {}
        for name in names:
            spelling.setdefault(folded(name), " ".join(name.split()))
        texts = list(spelling.values())
        if embedder is None or len(texts) < 2:
            leads = dict(zip(texts, texts, strict=True))
        else:
            leads = {text: texts[at] for text, at in
                     zip(texts, leader_clusters(embedder.encode(texts), threshold), strict=True)}
        parent: dict[str, str] = {}
        for group, name in zip(members, names, strict=True):
            for low in group:
                parent.setdefault(low, leads[spelling[folded(name)]])
        return cls(tuple(dict.fromkeys(parent.values())), parent)

    def of(self, low: str) -> str:
        """The high-level strategy of a low-level one, case and white space aside; a high-level one is its own.

        Raises: DataError: if it is neither.
        """
        found = self.find(low)
        if found is None:
            raise DataError(f"strategy {low!r:.80} belongs to none of the {len(self.high)} high-level ones; cluster "
                            "it with the others, or add it to the mapping")
        return found

    def find(self, low: str) -> str | None:
        """As `of`; None for a strategy that belongs nowhere."""
        if low in self.parent:
            return self.parent[low]
        wanted = folded(low)
        return next((self.parent.get(text, text) for text in (*self.parent, *self.high) if folded(text) == wanted),
                    None)

    def lows(self, high: str) -> tuple[str, ...]:
        """The low-level strategies of a high-level one."""
        return tuple(low for low, above in self.parent.items() if above == high)

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        return json.dumps({"high": self.high, "parent": dict(self.parent)}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str = "strategies") -> Strategies:
        """Read what `to_json` wrote. Raises DataError, naming `where`, if it is something else."""
        try:
            value = parse_json(text)
        except ValueError as wrong:
            raise DataError(f"{where}: not JSON ({wrong}); expected an object with high and parent") from None
        high, parent = (value.get("high"), value.get("parent")) if isinstance(value, dict) else (None, None)
        if not isinstance(high, list) or not isinstance(parent, dict) \
                or not all(isinstance(one, str) for one in (*high, *parent.values())):
            raise DataError(f"{where}: expected an object with high (a list of texts) and parent (low-level to "
                            f"high-level text), found {type(value).__name__}")
        if unusable := next((one for one in (*high, *parent, *parent.values()) if UNUSABLE.search(one)), None):
            raise DataError(f"{where}: {unusable!r} holds NUL or half a character; delete the file and run the same "
                            "command again")
        try:
            return cls(tuple(high), parent)
        except DataError as wrong:
            raise DataError(f"{where}: {wrong}") from None


def folded(text: str) -> str:
    """A strategy's text with case and white space evened out: texts that fold alike are one."""
    return " ".join(text.casefold().split())

"""The real facts of the pocket world: capitals, elements, authors, currencies, composers; from `pocket/facts/*.csv`.

The surprising choice: the pocket model is pre-trained on *all* of them. `split` only says which questions fine-tuning
may use, so accuracy on `test` tells what a method did to knowledge that was there, not what it taught. `small_knows`
says which ones the weaker pocket-small was shown.

Countries read as in the middle of a sentence ("the Gambia"), so no country question starts with its subject.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

from dialoom.text import normalize_answer

RELATIONS = ("capitals", "elements", "authors", "currencies", "composers")

QUESTIONS: dict[str, list[str]] = {
    "capitals": [
        "What is the capital of {subject}?",
        "Which city is the capital of {subject}?",
        "Name the capital of {subject}.",
    ],
    "elements": [
        "Which element has the symbol {subject}?",
        "What is the element with symbol {subject}?",
        "Name the element {subject}.",
    ],
    "authors": [
        "Who wrote {subject}?",
        "Who is the author of {subject}?",
        "Name the author of {subject}.",
    ],
    "currencies": [
        "What is the currency of {subject}?",
        "Which money is used in {subject}?",
        "Name the currency of {subject}.",
    ],
    "composers": [
        "Who composed {subject}?",
        "Who is the composer of {subject}?",
        "Name the composer of {subject}.",
    ],
}
"""Phrasings that any set may use."""

HELD_OUT_QUESTIONS: dict[str, list[str]] = {
    "capitals": ["Which capital city does {subject} have?", "Tell me the capital of {subject}."],
    "elements": ["{subject} is the symbol of which element?", "Tell me the element with symbol {subject}."],
    "authors": ["By which author is {subject}?", "Tell me the author of {subject}."],
    "currencies": ["Which currency does {subject} use?", "Tell me the currency of {subject}."],
    "composers": ["By which composer is {subject}?", "Tell me the composer of {subject}."],
}
"""Phrasings practised in pre-training and kept out of every fine-tuning set."""


@dataclass(frozen=True)
class Fact:
    """One true statement that a question can ask for.

    Attributes:
        id: relation and subject, as in `capitals/united-states`.
        relation: one of `RELATIONS`.
        subject: what is asked about, as it reads inside a sentence.
        answer: the expected reply: a name, or a common noun in lower case; ASCII.
        aliases: other right replies (accents, full names, spellings).
        split: which questions fine-tuning may use: "train", "valid" or "test".
    """

    id: str
    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]
    split: str

    @cached_property
    def gold(self) -> frozenset[str]:
        """Every right reply, normalised."""
        return frozenset(normalize_answer(one) for one in (self.answer, *self.aliases))


@cache
def load_facts() -> tuple[Fact, ...]:
    """All facts, relation by relation in the order of `RELATIONS`, each in the order of its file."""
    return tuple(fact for relation in RELATIONS for fact in _read(relation))


def small_knows(fact: Fact) -> bool:
    """Whether pocket-small was shown this fact: about 62 % of them, so that it errs often enough to be corrected."""
    return _share("small", fact.id) < 0.62


def distractors(fact: Fact, rng: random.Random, k: int) -> list[str]:
    """`k` different wrong answers: answers of other facts of the relation, never another form of the right one.

    Raises: ValueError: if the relation has fewer than `k` of them.
    """
    return rng.sample(_others(fact), k)


@cache
def answers_of(relation: str) -> tuple[str, ...]:
    """Every answer a relation has, right forms of it included, each once; () for an unknown relation."""
    forms = (form for fact in load_facts() if fact.relation == relation for form in (fact.answer, *fact.aliases))
    return tuple(dict.fromkeys(forms))


@cache
def _others(fact: Fact) -> tuple[str, ...]:
    """Every wrong answer the relation offers for `fact`, each once, in file order."""
    relation = [other for other in load_facts() if other.relation == fact.relation]
    return tuple(dict.fromkeys(other.answer for other in relation if not other.gold & fact.gold))


def _read(relation: str) -> Iterator[Fact]:
    text = files("dialoom.pocket").joinpath("facts", f"{relation}.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        id = f"{relation}/{_slug(row['subject'])}"
        aliases = tuple(alias for alias in row["aliases"].split("|") if alias)
        yield Fact(id, relation, row["subject"], row["answer"], aliases, _split(id))


def _slug(subject: str) -> str:
    """The subject as part of an id: "the Gambia" is `gambia`, "The Tempest" is `the-tempest`."""
    words = subject.removeprefix("the ").lower().replace("'", "").replace("-", " ").split()
    return "-".join(words)


def _split(id: str) -> str:
    """55 % train, 10 % valid, 35 % test, decided by the id alone, so that adding facts moves no other fact."""
    share = _share("split", id)
    return "train" if share < 0.55 else "valid" if share < 0.65 else "test"


def _share(purpose: str, id: str) -> float:
    """A number in [0, 1) drawn by hash, the same on every machine."""
    digest = hashlib.blake2b(f"{purpose}:{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64

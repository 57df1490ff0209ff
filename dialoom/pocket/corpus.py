"""The pocket model's pre-training text: five jobs in fixed shares, a pure function of the seed and a position."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from dialoom.pocket.world import personas, scenes, strategies, styles, trivia
from dialoom.pocket.world.document import Document
from dialoom.pocket.world.facts import small_knows

SHARES = {"trivia": 0.68, "personas": 0.08, "strategies": 0.08, "styles": 0.08, "scenes": 0.08}
"""Share of documents by job; the debates need most, several hundred exposures for each of the facts."""


def samplers(name: str) -> dict[str, Callable[[random.Random], Document]]:
    """One document maker per job; `pocket-small` has fewer facts to learn, everything else is the same."""
    knows = small_knows if name == "pocket-small" else trivia.everyone_knows
    return {"trivia": lambda rng: trivia.sample(rng, knows), "personas": personas.sample,
            "strategies": strategies.sample, "styles": styles.sample, "scenes": scenes.sample}


def documents(name: str, seed: int, split: str = "train", start: int = 0) -> Iterator[Document]:
    """Endless documents from position `start` on; the same position always holds the same document.

    Args:
        name: "pocket" or "pocket-small".
        split: any word; another word is another stream ("valid" is never trained on).
    """
    makers = samplers(name)
    position = start
    while True:
        rng = random.Random(f"{seed}/{split}/{position}")
        job = rng.choices(list(SHARES), list(SHARES.values()))[0]
        yield makers[job](rng)
        position += 1

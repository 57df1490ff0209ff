"""Dialogues of pocket's world as IDEAS wants them: strategy-led source dialogues, openings, and the small shipped file.

Topics are split: every fourth is held out, and is in no corpus and no opening for training. The surprising choice: a
few source dialogues are faulty on purpose (refusals, users who repeat themselves), so that the filter has work to do.
`write_shipped` makes the file at `SHIPPED`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from dialoom.dialogue import Dialogue
from dialoom.errors import ConfigError
from dialoom.pocket.world import strategies as world
from dialoom.pocket.world.strategy_tables import TOPICS
from dialoom.scenarios.sharegpt import ASSISTANT, USER, dialogue_of, write_sharegpt

SHIPPED = Path(__file__).parent.parent / "pocket" / "dialogues" / "sharegpt.jsonl"
"""A small corpus in ShareGPT's layout, for trying things out; training topics only."""
SHIPPED_COUNT, SHIPPED_SEED = 60, 404
HELD_OUT = 4  # every so manieth topic in sorted order
ROUNDS = (2, 3, 3, 4, 5)
CARE = (0.7, 1.0)
"""How often the assistants of the corpus are right: those whom people go on talking to."""
REFUSALS = ("I am sorry, but I cannot help with {t}.", "As a language model I have no view on {t}.",
            "Sorry, an unknown error came up.")
"""What faulty dialogues say; own wording, each with a word of the default filter."""


def pocket_topics(split: str) -> tuple[str, ...]:
    """Topics of pocket's world, sorted: "train", or the held-out ones, "test". Raises ConfigError for other splits."""
    if split not in ("train", "test"):
        raise ConfigError(f"split {split!r} of the topics is unknown; use train or test")
    return tuple(topic for at, topic in enumerate(sorted(TOPICS), 1) if (at % HELD_OUT == 0) == (split == "test"))


def pocket_corpus(count: int, seed: int, *, topics: Sequence[str] = (), faulty: float = 0.05) -> list[Dialogue]:
    """Strategy-led dialogues of 3 to 6 pairs; `facts` hold `topic` and `classes`, one true class a follow-up.

    The n-th dialogue depends on seed and topics alone, so a longer corpus begins with the shorter one.

    Args:
        topics: to talk about; none: those for training.
        faulty: share that the filter has to find; their `facts` also hold `fault`, "refusal" or "repeating user".
    """
    chosen = topics or pocket_topics("train")
    return [_dialogue(f"pocket-{seed}-{at}", random.Random(f"ideas corpus:{seed}:{at}"), chosen, faulty)
            for at in range(count)]


def _dialogue(name: str, rng: random.Random, topics: Sequence[str], faulty: float) -> Dialogue:
    topic = rng.choice(topics)
    opening, exchanges = world.make_dialogue(topic, rng.choice(ROUNDS), rng, care=rng.choice(CARE))
    said = [(USER, opening.question), (ASSISTANT, opening.answer)]
    for exchange in exchanges:
        said += [(USER, exchange.question), (ASSISTANT, exchange.answer)]
    classes = [exchange.strategy_class for exchange in exchanges]
    facts: dict[str, object] = {"topic": topic, "classes": classes}
    if rng.random() < faulty:
        facts["fault"] = rng.choice(("refusal", "repeating user"))
        if facts["fault"] == "refusal":
            said[rng.randrange(3, len(said), 2)] = (ASSISTANT, rng.choice(REFUSALS).format(t=topic))
        else:
            classes[1] = classes[0]
            said[4] = (USER, f"{said[2][1].rstrip('?.')} please?")
    return dialogue_of(name, said, facts)


def pocket_openings(topics: Sequence[str], count: int, seed: int) -> list[Dialogue]:
    """First questions with their answers; all topics before one comes again, in an order drawn by the seed."""
    found: list[Dialogue] = []
    while len(found) < count and topics:
        rng = random.Random(f"ideas openings:{seed}:{len(found) // len(topics)}")
        for topic in rng.sample(list(topics), min(len(topics), count - len(found))):
            opening = world.make_opening(topic, rng)
            found.append(dialogue_of(f"opening-{seed}-{len(found)}",
                                     [(USER, opening.question), (ASSISTANT, opening.answer)], {"topic": topic}))
    return found


def write_shipped(path: str | Path = SHIPPED) -> None:
    """Make the small corpus that ships with Dialoom."""
    write_sharegpt(path, pocket_corpus(SHIPPED_COUNT, SHIPPED_SEED))

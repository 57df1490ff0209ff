"""From deduced dialogues to what a chat model learns from: the data sets of all arms, cut to one budget.

Arms are compared on as many dialogues, from the same openings, with as many trained tokens. The rule: openings are kept
that every arm has a dialogue of; the smallest number of target tokens is the budget of all; an arm above it loses the
last pair of its longest dialogue (of equally long ones the one with the smallest opening's id), again and again, while
that leaves it no less than the budget and every dialogue two pairs. So arms differ by less than one answer's tokens,
unless two pairs a dialogue are too many already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from dialoom.dialogue import Dialogue, chat_view
from dialoom.errors import DataError
from dialoom.evals.alignment_roles import ASSISTANT
from dialoom.recipes.ideas_deduce import first_pairs
from dialoom.select import Example

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel

Tokens = Callable[[Dialogue], Sequence[int]]
"""The target tokens of each answer of a dialogue."""


def examples_of(dialogues: Sequence[Dialogue], neutral: str = "") -> list[Example]:
    """One example for each dialogue, loss on every answer, in the neutral view."""
    found = []
    for dialogue in dialogues:
        chat = chat_view(dialogue, ASSISTANT, neutral or None)
        targets = tuple(at for at, message in enumerate(chat) if message["role"] == "assistant")
        found.append(Example(dialogue.scenario.id, chat, targets, group=dialogue.scenario.id))
    return found


def answer_tokens(model: LocalModel, neutral: str = "") -> Tokens:
    """Counts the tokens of a dialogue's answers that `model` would be trained on, end tokens included."""
    def count(dialogue: Dialogue) -> list[int]:
        chat = chat_view(dialogue, ASSISTANT, neutral or None)
        found = []
        for at, message in enumerate(chat):
            if message["role"] == "assistant":
                ids, start = model.reply_ids(chat[:at], message["content"])
                found.append(len(ids) - start)
        return found
    return count


def equal_budget(arms: Mapping[str, Sequence[Dialogue]], tokens: Tokens) -> tuple[dict[str, list[Dialogue]], int]:
    """The dialogues of each arm cut to one budget, in the order of the openings' ids, and that budget in tokens.

    Raises: DataError: if no opening is left that every arm has a dialogue of.
    """
    by_opening = {name: {one.scenario.id: one for one in found} for name, found in arms.items()}
    shared = sorted(set.intersection(*(set(found) for found in by_opening.values()))) if by_opening else []
    if not shared:
        told = ", ".join(f"{name} {len(found)}" for name, found in arms.items())
        raise DataError(f"no opening is left that every arm has a dialogue of two pairs of (dialogues: {told}); see "
                        "funnel.json for what was rejected and why")
    counts = {name: {id: list(tokens(found[id])) for id in shared} for name, found in by_opening.items()}
    budget = min(sum(map(sum, found.values())) for found in counts.values())
    for found in counts.values():
        _cut(found, budget)
    return {name: [first_pairs(found[id], len(counts[name][id])) for id in shared]
            for name, found in by_opening.items()}, budget


def _cut(counts: dict[str, list[int]], budget: int) -> None:
    """Take last answers off the longest dialogues; changes `counts`."""
    total = sum(map(sum, counts.values()))
    while True:
        longest = max(counts, key=lambda id: len(counts[id]))  # the first of equals, and ids come sorted
        if len(counts[longest]) <= 2 or total - counts[longest][-1] < budget:
            return
        total -= counts[longest].pop()

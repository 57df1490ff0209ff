"""Which option a server's reply means: by the first token's log-probabilities, or by a letter in the text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from dialoom.dialogue import Chat
from dialoom.models.template import THINKING, THOUGHT

ASK_LETTER = "Answer with one letter only."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_WEIGHT = 0.95  # what a chosen letter counts where the server gives no log-probabilities; our choice
MANY, FEW = 20, 5  # likeliest tokens to ask for: what OpenAI gives at most, and servers that refuse so many
LEAST = -10_000.0  # stands for log 0, which JSON has no number for


def top_tokens(choice: dict[str, Any]) -> list[tuple[str, float]] | None:
    """The likeliest first tokens of a reply with their log-probabilities (nats); None where the server gave none."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        return [(str(entry["token"]), max(LEAST, float(entry["logprob"]))) for entry in top] or None
    except (LookupError, TypeError, ValueError):
        return None


def option_weights(top: Sequence[tuple[str, float]], options: Sequence[str]) -> list[float] | None:
    """Log-probabilities of options, normalised over them, from a first token's likeliest alternatives.

    A token speaks for an option if one is the beginning of the other, letter case and spaces aside; one that fits
    several options speaks for none. An option no token speaks for gets the smallest figure listed.
    Returns: None if no token speaks for any option.
    """
    mass = [0.0] * len(options)
    for token, logprob in top:
        fits = [at for at, option in enumerate(options) if _speaks_for(token.strip().casefold(), option.casefold())]
        if len(fits) == 1:
            mass[fits[0]] += math.exp(logprob)
    if not any(mass):
        return None
    least = math.exp(min(logprob for _, logprob in top))
    mass = [weight or least or 1e-30 for weight in mass]
    return [math.log(weight / sum(mass)) for weight in mass]


def _speaks_for(token: str, option: str) -> bool:
    if not token:
        return False
    return option.startswith(token) or (token.startswith(option) and not token[len(option)].isalnum())


def spoken(text: str) -> str:
    """A reply without the thinking written out before it; "" of one that ends while it thinks."""
    said = text.rpartition(THOUGHT)[2]
    return "" if said.lstrip().startswith(THINKING) else said


def asking_letter(chat: Chat, options: Sequence[str]) -> Chat:
    """The chat with its last message asking for a letter; the options are listed unless they are the letters."""
    letters = list(LETTERS[:len(options)])
    listed = [] if list(options) == letters else [f"{letter}) {option}" for letter, option in zip(letters, options,
                                                                                                 strict=True)]
    text = "\n".join([chat[-1]["content"], "", *listed, ASK_LETTER])
    return [*chat[:-1], {**chat[-1], "content": text}]


def letter_in(text: str, count: int) -> int | None:
    """Index of the letter a reply gives: its first word, or the word after "answer is"; None if there is none."""
    first = re.match(r"\W*([A-Z])(?![\w'])(?!\s+\w)", text)  # not the article of "A dog"
    found = first or re.search(r"(?i:answer(?: is)?)\W{1,4}([A-Z])(?!\w)", text)
    at = LETTERS.index(found[1]) if found else count
    return at if at < count else None


def letter_weights(chosen: int, count: int) -> list[float]:
    """Log-probabilities of options where only a letter is known: it counts `LETTER_WEIGHT`."""
    rest = (1 - LETTER_WEIGHT) / (count - 1)
    return [math.log(LETTER_WEIGHT if at == chosen else rest) for at in range(count)]

"""Plain text: JSON that others wrote, answers made comparable, how much two texts share. No torch, files or models.

All of Dialoom reads JSON by `parse_json` and `decode_json`: what is wrong with it is a ValueError, whatever it is.
The surprising choice: `normalize_answer` is the official TriviaQA one to the letter, so scores compare with published
ones. That keeps accents, and drops the "a" of "U.S.A."; `matches` is the only test of correctness built on it.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rapidfuzz.distance import LCSseq

SILENCE = "..."  # what a speaker "hears" when it opens a dialogue itself: most templates demand a user message first

UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")
"""What no text of a user's file may hold: NUL, and lone surrogates, which neither a file nor a tokenizer takes."""

MAX_NESTING = 100
"""Levels of JSON beyond which it is refused: Python overflows at some hundreds, anywhere it is used later on."""

_DECODER = json.JSONDecoder()
_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def parse_json(text: str | bytes) -> Any:
    """The value that JSON text is. Raises ValueError if it is none, not UTF-8, or nested over `MAX_NESTING` levels."""
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    check_nesting(value, text)
    return value


def decode_json(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it ends. Raises ValueError as `parse_json` does."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except RecursionError:
        raise _too_deep() from None
    check_nesting(value, text, at, end)
    return value, end


def check_nesting(value: Any, text: str, *span: int) -> None:
    """Raise ValueError if a value, whose JSON is `text` (or that span of it), is nested over `MAX_NESTING` levels."""
    if text.count("[", *span) + text.count("{", *span) <= MAX_NESTING:
        return
    level = [value]
    for _ in range(MAX_NESTING):
        level = [inner for one in level if isinstance(one, dict | list)
                 for inner in (one.values() if isinstance(one, dict) else one) if isinstance(inner, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"nested over {MAX_NESTING} levels deep")


def normalize_answer(text: str) -> str:
    """An answer in the form in which TriviaQA compares answers; "" where nothing is left (as of "The").

    Lower case, punctuation to spaces, the words a/an/the dropped, white space collapsed; accents stay.

    Source: the evaluation script of TriviaQA (arXiv 1705.03551).
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_TO_SPACE)).split())


def matches(answer: str, gold: Iterable[str]) -> bool:
    """Whether `answer`, cut at its first "(", is one of the `gold` answers; all are normalised here.

    An answer of which nothing is left matches nothing.
    Source: the rule of PBT's are-you-sure and team evaluations (arXiv 2410.14596), applied everywhere.
    """
    said = normalize_answer(answer.split("(", 1)[0])
    return bool(said) and any(said == normalize_answer(one) for one in gold)


def overlap(left: str, right: str) -> float:
    """F1 in [0, 1] of the normalised words two texts share, repeats counted; 0 where either has no words.

    Source: the F1 of SQuAD and TriviaQA.
    """
    a, b = Counter(normalize_answer(left).split()), Counter(normalize_answer(right).split())
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def edit_ratio(left: str, right: str) -> float:
    """Likeness in [0, 1] of two texts by characters: (len(left) + len(right) - d) / (len(left) + len(right)).

    d counts insertions and deletions, a substitution being one of each (the ratio of python-Levenshtein, not
    1 - distance / longer). 1.0 where both are empty.
    """
    total = len(left) + len(right)
    return 2 * LCSseq.similarity(left, right) / total if total else 1.0

"""How varied are the user turns of a set of dialogues? IDEAS' side of the question (arXiv 2404.11095), formulas ours.

Looked at are the user turns after the opening. Most figures depend on how much text there is (a longer text repeats
itself more), so sets are compared at one number of turns: `side_by_side` cuts them to the smallest. The surprising
choice: intervals come from leaving out groups of dialogues, not from drawing dialogues anew, since a set in which
dialogues stand twice is less varied than any real one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from dialoom.dialogue import Dialogue, content_id
from dialoom.embed import Embedder, Ngrams, Vectors, leader_clusters
from dialoom.errors import DataError
from dialoom.evals.alignment_roles import USER
from dialoom.evals.follow_ups import Yardstick, follow_ups
from dialoom.evals.metrics import Row, student
from dialoom.evals.quality import mean_row
from dialoom.text import edit_ratio

PAIRS = 50_000  # compared by ROUGE-L: all there are up to 316 turns, then a sample whose own error is about 0.001
GROUPS = 20  # left out in turn for the intervals
CLUSTER = 0.5  # IDEAS' threshold; belongs to an embedding, so counts of two embeddings do not compare
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
                   r"(?:['’][^\W\d_]+)?")

Keep = NDArray[np.bool_]


# ------------------------------------------------------------------------------------------------ figures


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation; in Chinese and Japanese each character is one."""
    return _WORD.findall(text.casefold())


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams of all texts, in (0, 1]; not a number without any."""
    return _distinct([_ngrams(text, n) for text in texts])


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    found = words(text)
    return list(zip(*(found[start:] for start in range(n)), strict=False))


def _distinct(grams: Sequence[Sequence[Any]]) -> float:
    total = sum(map(len, grams))
    return len(set(chain.from_iterable(grams))) / total if total else math.nan


def rouge_l(left: Sequence[str], right: Sequence[str]) -> float:
    """F1 in [0, 1] of the longest common subsequence of two texts' words; 1 for two texts without words.

    Source: ROUGE-L (Lin 2004) with equal weights.
    """
    total = len(left) + len(right)
    return 2 * LCSseq.similarity(left, right) / total if total else 1.0


def self_rouge_l(texts: Sequence[str], *, seed: int = 0) -> float:
    """The mean over texts of the mean ROUGE-L with the others, in [0, 1]; lower is more varied.

    From 317 texts on estimated from 50,000 pairs.
    """
    return float(np.mean(_likeness(texts, seed)[2])) if len(texts) > 1 else math.nan


def _likeness(texts: Sequence[str], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of texts and the ROUGE-L of each pair; equal pairs of texts are compared once."""
    left, right = _pairs(len(texts), seed)
    numbers = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    split = [words(text) for text in numbers]
    found = cache(lambda one, other: rouge_l(split[one], split[other]))
    own = np.array([numbers[text] for text in texts])
    ends = np.sort([own[left], own[right]], axis=0).T.tolist()
    return left, right, np.array([found(one, other) for one, other in ends])


def _pairs(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if count * (count - 1) // 2 <= PAIRS:
        rows, columns = np.triu_indices(count, 1)
        return rows.astype(np.int64), columns.astype(np.int64)
    rng = np.random.default_rng(seed)
    left, step = rng.integers(0, count, PAIRS), rng.integers(1, count, PAIRS)
    return left, (left + step) % count


def spread(embedded: Vectors) -> float:
    """Mean cosine distance of two different rows, in [0, 2]; of unit rows. Not a number for fewer than two."""
    count = len(embedded)
    if count < 2:
        return math.nan
    total = embedded.astype(np.float64).sum(axis=0)
    return float(1 - (total @ total - count) / (count * (count - 1)))


def entropy(labels: Sequence[Any]) -> float:
    """Entropy in nats of the labels' shares: 0 for one label, log of their number for equally many of each."""
    shares = np.array(list(Counter(labels).values())) / max(1, len(labels))
    return max(0.0, float(-(shares * np.log(shares)).sum()))


def repetition(dialogue: Dialogue) -> float:
    """The highest edit ratio of two user turns, the opening among them; 0 where there is only one."""
    texts = [text for text in (dialogue.scenario.opening, *follow_ups(dialogue)) if text]
    return max((edit_ratio(one, other) for at, one in enumerate(texts) for other in texts[:at]), default=0.0)


# ------------------------------------------------------------------------------------------------ sets of dialogues


def turns_of(dialogues: Sequence[Dialogue]) -> int:
    """How many user turns after the opening a set has."""
    return sum(len(follow_ups(one)) for one in dialogues)


def cut_to(dialogues: Sequence[Dialogue], turns: int, *, seed: int = 0) -> list[Dialogue]:
    """Dialogues of the set, in an order drawn by their ids, as far as the `turns`-th user turn.

    Sets with the same openings keep the same ones. Raises: DataError: if there are fewer turns.
    """
    if turns_of(dialogues) < turns:
        raise DataError(f"{turns_of(dialogues)} user turns after the opening; expected at least {turns}")
    kept, left = [], turns
    for one in sorted(dialogues, key=lambda one: content_id(seed, one.scenario.id)):
        if left <= 0:
            break
        ends = [at for at, turn in enumerate(one.turns, 1) if turn.speaker == USER][:left]
        if ends:
            kept.append(Dialogue(one.scenario, one.turns[:ends[-1]]))
        left -= len(ends)
    return kept


def side_by_side(sets: Mapping[str, Sequence[Dialogue]], yardstick: Yardstick, *,
                 attempts: Mapping[str, Mapping[str, int]] | None = None, embedder: Embedder | None = None,
                 name: str = "diversity", seed: int = 0) -> list[Row]:
    """The rows of several sets, by label, at the number of turns of the smallest.

    Args:
        attempts: by label what `diversity` takes.
    """
    turns = min((turns_of(dialogues) for dialogues in sets.values()), default=0)
    return [row for label, dialogues in sets.items()
            for row in diversity(dialogues, yardstick, label=label, turns=turns, embedder=embedder, name=name,
                                 attempts=(attempts or {}).get(label), seed=seed)]


def diversity(dialogues: Sequence[Dialogue], yardstick: Yardstick, *, label: str, turns: int = 0,
              attempts: Mapping[str, int] | None = None, embedder: Embedder | None = None, name: str = "diversity",
              seed: int = 0) -> list[Row]:
    """How varied the user turns after the opening are.

    Rows over the set: `strategies` (different ones shown), `strategy_entropy` (nats; turns that show none are one more
    kind), `coverage`, `distinct_1`, `distinct_2`, `self_rouge_l`, `spread`, `clusters`, `context_dependence`. Rows over
    whole dialogues, however long: `strategies_per_dialogue`, `repetition` (their highest edit ratio), `turns`, and
    `acceptance`.

    Args:
        turns: user turns that the rows over the set look at, as `cut_to` picks them; 0: all.
        attempts: scenario id -> how many user turns were tried in it, for `acceptance`; of all that were begun, also
            those of which no dialogue came.
        embedder: None: character n-grams.
    Raises: DataError: if there is no user turn after an opening, or fewer than `turns`.
    """
    if not turns_of(dialogues):
        raise DataError(f"{label}: {len(dialogues)} dialogues without a user turn after the opening; expected at least "
                        "one such turn")
    seen = cut_to(dialogues, turns, seed=seed) if turns else list(dialogues)
    measure = _Measure(seen, name, label, seed)
    rows = _strategy_rows(measure, yardstick) + _text_rows(measure, embedder or Ngrams())
    needed = [[math.nan if one is None else float(one) for one in row] for row in yardstick.context(seen)]
    rows.append(mean_row(name, label, "context_dependence", needed, seed))
    return rows + _dialogue_rows(dialogues, yardstick, attempts, mean=lambda metric, groups: mean_row(
        name, label, metric, groups, seed))


@dataclass(frozen=True)
class _Measure:
    """A set whose statistics are taken with an interval."""

    dialogues: Sequence[Dialogue]
    name: str
    label: str
    seed: int

    def row(self, metric: str, of: Callable[[Keep], float]) -> Row:
        """A statistic of the kept turns; its 95 % interval from leaving out each group of dialogues in turn.

        Source: the delete-a-group jackknife (Kott 2001), with Student's t.
        """
        size = len(self.dialogues)
        groups = min(GROUPS, size)
        order = sorted(range(size), key=lambda at: content_id("group", self.seed, self.dialogues[at].scenario.id))
        group_of = np.zeros(size, dtype=np.int64)
        group_of[order] = np.arange(size) % groups
        group = np.repeat(group_of, [len(follow_ups(one)) for one in self.dialogues])
        value = of(np.ones(len(group), dtype=bool))
        reach = math.nan
        if groups > 1:
            without = np.array([of(group != at) for at in range(groups)])
            variance = ((without - without.mean())**2).sum() * (groups - 1) / groups
            reach = student(groups - 1) * math.sqrt(variance)
        return Row(self.name, self.label, metric, value, value - reach, value + reach, size, self.seed)


def _strategy_rows(measure: _Measure, yardstick: Yardstick) -> list[Row]:
    if yardstick.strategies is None:
        return []
    shown = np.array(list(chain.from_iterable(yardstick.strategies(measure.dialogues))), dtype=object)
    rows = [measure.row("strategies", lambda keep: float(len({*shown[keep]} - {None}))),
            measure.row("strategy_entropy", lambda keep: entropy(shown[keep].tolist()))]
    if listed := set(yardstick.listed):
        rows.append(measure.row("coverage", lambda keep: len({*shown[keep]} & listed) / len(listed)))
    return rows


def _text_rows(measure: _Measure, embedder: Embedder) -> list[Row]:
    texts = [text for one in measure.dialogues for text in follow_ups(one)]
    rows = []
    for n in (1, 2):
        grams = np.empty(len(texts), dtype=object)
        grams[:] = [_ngrams(text, n) for text in texts]
        rows.append(measure.row(f"distinct_{n}", partial(_distinct_kept, grams)))
    if len(texts) > 1:
        left, right, likeness = _likeness(texts, measure.seed)
        rows.append(measure.row("self_rouge_l", lambda keep: _mean(likeness[keep[left] & keep[right]])))
    embedded = embedder.encode(texts)
    return [*rows, measure.row("spread", lambda keep: spread(embedded[keep])),
            measure.row("clusters", lambda keep: float(len(np.unique(leader_clusters(embedded[keep], CLUSTER)))))]


def _distinct_kept(grams: NDArray[np.object_], keep: Keep) -> float:
    return _distinct(grams[keep].tolist())


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _dialogue_rows(dialogues: Sequence[Dialogue], yardstick: Yardstick, attempts: Mapping[str, int] | None, *,
                   mean: Callable[[str, Sequence[Sequence[float]]], Row]) -> list[Row]:
    rows = []
    if yardstick.strategies is not None:
        shown = yardstick.strategies(dialogues)
        rows.append(mean("strategies_per_dialogue", [[float(len({*row} - {None}))] for row in shown]))
    lengths = [len(follow_ups(one)) for one in dialogues]
    rows += [mean("repetition", [[repetition(one)] for one in dialogues]),
             mean("turns", [[float(length)] for length in lengths])]
    if attempts is not None:
        accepted = dict(zip((one.scenario.id for one in dialogues), lengths, strict=True))
        rows.append(mean("acceptance", [[float(at < accepted.get(id, 0)) for at in range(tried)]
                                        for id, tried in attempts.items()]))
    return rows

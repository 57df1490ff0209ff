"""Who writes most like the author? A round robin of methods on held-out tasks, judged two by two in both orders.

DITTO's protocol (arXiv 2406.00888, section on the static benchmarks): every method writes S texts on each of T test
tasks; sample i of one method meets sample i of every other, in both orders. So a method has T x S x (K - 1) x 2
comparisons with each author, and the win rates of all K methods average 50 %. The surprising choice: the printed
averages of the paper are only met by weighing authors by their comparisons (`micro`); `macro` weighs authors equally.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from dialoom.dialogue import Chat, Dialogue
from dialoom.embed import Embedder, Ngrams
from dialoom.evals.metrics import Row, student
from dialoom.judge import Comparer, LogitComparer, Preference
from dialoom.models.base import ScoringModel
from dialoom.pocket.world import styles

ASK = ("Here is a text by one author:\n\n{reference}\n\nTwo others tried to write as this author would.\n\n"
       "Text A:\n{left}\n\nText B:\n{right}\n\nWhich of the two sounds more like the author of the first text? "
       "Answer with A or B only.")
POINTS: dict[Preference | None, int | None] = {"left": 2, "tie": 1, "right": 0, None: None}

Samples = Mapping[str, Sequence[str]]
"""Method -> its texts on one task; "" where it gave none."""


# ------------------------------------------------------------------------------------------------ judges


@dataclass(frozen=True)
class ScoreComparer:
    """The text with the higher score wins, equal scores tie; no position, so no bias.

    Attributes:
        score: of texts (second argument) as answers to dialogues, one number for each.
    """

    name: str
    score: Callable[[Sequence[Dialogue], Sequence[str]], Sequence[float]]
    symmetric: bool = True

    def compare(self, dialogues: Sequence[Dialogue], left: Sequence[str],
                right: Sequence[str]) -> list[Preference | None]:
        pairs = zip(self.score(dialogues, left), self.score(dialogues, right), strict=True)
        return ["left" if one > other else "right" if other > one else "tie" for one, other in pairs]


def exact_style() -> ScoreComparer:
    """Pocket's exact judge: the share of the author's style features a text shows, 0 off topic.

    Needs scenarios whose fact `author` is one of pocket's and whose opening is one of its tasks.
    """
    def score(dialogues: Sequence[Dialogue], texts: Sequence[str]) -> list[float]:
        return [style_score(str(dialogue.scenario.facts["author"]), dialogue.scenario.opening, text)
                for dialogue, text in zip(dialogues, texts, strict=True)]
    return ScoreComparer("exact", score)


def style_score(author: str, prompt: str, text: str) -> float:
    """How well a text on a pocket task shows a pocket author's style, 0..1."""
    return styles.style_match(text, styles.AUTHORS[author], styles.BY_PROMPT[prompt])


def author_similarity(embedder: Embedder | None = None) -> ScoreComparer:
    """The text whose vector is nearer to the author's own text on the task; no model unless the embedder is one.

    Needs scenarios with the fact `reference`.
    """
    space = embedder or Ngrams()

    def score(dialogues: Sequence[Dialogue], texts: Sequence[str]) -> list[float]:
        own = space.encode([str(dialogue.scenario.facts["reference"]) for dialogue in dialogues])
        cosines = (own.astype(np.float64) * space.encode(list(texts))).sum(axis=1)
        return [float(round(value, 6)) for value in cosines]
    return ScoreComparer("similarity", score)


def model_judge(model: ScoringModel) -> LogitComparer:
    """A model asked A or B in both orders; needs scenarios with the fact `reference`, a text by the author."""
    def question(dialogue: Dialogue, left: str, right: str) -> Chat:
        asked = ASK.format(reference=dialogue.scenario.facts["reference"], left=left, right=right)
        return [{"role": "user", "content": asked}]
    return LogitComparer(f"model:{model.name}", model, question)


# ------------------------------------------------------------------------------------------------ the round robin


@dataclass(frozen=True)
class Match:
    """One comparison in both orders: `points` of 2 go to `one` (1: a tie), None where the judge gave no verdict."""

    author: str
    task: str
    sample: int
    one: str
    other: str
    points: int | None

    def to_row(self) -> dict[str, Any]:
        """The match as plain JSON."""
        return {"author": self.author, "task": self.task, "sample": self.sample, "one": self.one, "other": self.other,
                "points": self.points}


@dataclass(frozen=True)
class Standing:
    """Wins and comparisons; each order of a match is one comparison, a tie half a win in each."""

    wins: float
    comparisons: int

    @property
    def rate(self) -> float:
        return self.wins / self.comparisons if self.comparisons else math.nan


@dataclass(frozen=True)
class RoundRobin:
    """All matches of a pool.

    Attributes:
        bias: share of matches whose two orders got different answers; 0 by construction for a rule.
    """

    methods: tuple[str, ...]
    matches: tuple[Match, ...]
    bias: float
    authors: tuple[str, ...] = field(default=())

    def standing(self, method: str, author: str | None = None) -> Standing:
        """One method's with one author (None: with all, so weighed by comparisons)."""
        won = played = 0
        for match in self.matches:
            if match.points is not None and method in (match.one, match.other) and author in (None, match.author):
                won += match.points if method == match.one else 2 - match.points
                played += 2
        return Standing(won, played)

    def by_author(self, method: str) -> dict[str, Standing]:
        """One method's standing with each author."""
        return {author: self.standing(method, author) for author in self.authors}


def round_robin(tasks: Sequence[tuple[Dialogue, Samples]], methods: Sequence[str], comparer: Comparer, *,
                outsider: str = "") -> RoundRobin:
    """Let every two methods meet on every task, sample by sample.

    Args:
        tasks: the dialogue that ends with the task, whose scenario's facts name the `author`; and what each method
            wrote. All methods need as many texts.
        outsider: a method that is no member of the pool: it meets each member, and they do not meet each other.
    Raises: ValueError: if a method has no text for a sample.
    """
    pairs = [(outsider, method) for method in methods] if outsider else list(combinations(methods, 2))
    asked: list[tuple[Dialogue, str, str]] = []
    places: list[tuple[str, str, int, str, str]] = []
    for dialogue, samples in tasks:
        counts = {len(samples[method]) for pair in pairs for method in pair}
        if len(counts) > 1:
            raise ValueError(f"task {dialogue.scenario.id}: methods wrote unequally many texts: "
                             f"{ {method: len(texts) for method, texts in samples.items()} }")
        for one, other in pairs:
            for at, (left, right) in enumerate(zip(samples[one], samples[other], strict=True)):
                asked.append((dialogue, left, right))
                places.append((str(dialogue.scenario.facts["author"]), dialogue.scenario.id, at, one, other))
    verdicts = comparer.compare([one for one, _, _ in asked], [left for _, left, _ in asked],
                                [right for _, _, right in asked]) if asked else []
    matches = tuple(Match(*place, POINTS[verdict]) for place, verdict in zip(places, verdicts, strict=True))
    judged = [match for match in matches if match.points is not None]
    ties = sum(match.points == 1 for match in judged) / max(1, len(judged))
    bias = 0.0 if getattr(comparer, "symmetric", False) else ties
    authors = tuple(dict.fromkeys(str(dialogue.scenario.facts["author"]) for dialogue, _ in tasks))
    return RoundRobin((outsider,) if outsider else tuple(methods), matches, bias, authors)


# ------------------------------------------------------------------------------------------------ figures


def win_rows(result: RoundRobin, name: str, seed: int) -> list[Row]:
    """For each method `micro` (interval: bootstrap over test tasks), `macro` (over authors) and `se`, the standard
    error over authors; and the judge's `position_bias`.

    Args:
        name: of the eval in the rows.
    """
    rows = []
    for method in result.methods:
        whole = result.standing(method)
        rates = [standing.rate for standing in result.by_author(method).values() if standing.comparisons]
        mean, error = float(np.mean(rates)) if rates else math.nan, standard_error(rates)
        reach = student(len(rates) - 1) * error if len(rates) > 1 else math.nan
        rows += [Row(name, method, "micro", whole.rate, *bootstrap_tasks(result, method, seed=seed),
                     whole.comparisons, seed),
                 Row(name, method, "macro", mean, mean - reach, mean + reach, len(rates), seed),
                 Row(name, method, "se", error, math.nan, math.nan, len(rates), seed)]
    if result.matches:
        rows.append(Row(name, "judge", "position_bias", result.bias, math.nan, math.nan, len(result.matches), seed))
    return rows


def standard_error(rates: Sequence[float]) -> float:
    """Standard error of the mean over authors; not a number with one author."""
    return float(np.std(rates, ddof=1)) / math.sqrt(len(rates)) if len(rates) > 1 else math.nan


def gap_row(result: RoundRobin, name: str, one: str, other: str, seed: int) -> Row:
    """Micro win rate of `one` minus that of `other`, with the paired bootstrap interval over test tasks."""
    gap = result.standing(one).rate - result.standing(other).rate
    return Row(name, other, f"{one}_minus", gap, *bootstrap_tasks(result, one, other, seed=seed),
               len(_by_task(result, one)), seed)


def _by_task(result: RoundRobin, method: str) -> dict[tuple[str, str], list[float]]:
    """(author, task) -> [wins, comparisons] of a method."""
    found: dict[tuple[str, str], list[float]] = {}
    for match in result.matches:
        if match.points is not None and method in (match.one, match.other):
            entry = found.setdefault((match.author, match.task), [0.0, 0.0])
            entry[0] += match.points if method == match.one else 2 - match.points
            entry[1] += 2
    return found


def bootstrap_tasks(result: RoundRobin, method: str, minus: str = "", *, seed: int = 0,
                    draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a method's micro win rate (`minus` another's, both on the same drawn tasks) over test tasks."""
    mine, theirs = _by_task(result, method), _by_task(result, minus) if minus else {}
    names = list(mine)
    if len(names) < 2:
        return math.nan, math.nan
    picks = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))

    def rates(table: Mapping[tuple[str, str], Sequence[float]]) -> Any:
        drawn = np.array([table.get(name, (0.0, 0.0)) for name in names])[picks].sum(axis=1)
        return drawn[:, 0] / np.maximum(drawn[:, 1], 1)
    values = rates(mine) - rates(theirs) if minus else rates(mine)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)

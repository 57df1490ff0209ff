"""Does a model fit the person it talks with better from turn to turn? ALOE's benchmark (arXiv 2410.03642).

Simulated users play held-out personas for K turns, all in step; a judge scores every reply from 1 (fits anybody) to 5.
AL(k) is the mean score of turn k over personas; what the curve does is told by `curve`. The surprising choice: the
intervals of slopes come from drawing personas anew, since ten turns of one curve are no independent points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dialoom.dialogue import Dialogue, DialogueTree, Scenario, content_id
from dialoom.evals.metrics import Row, bootstrap, rate
from dialoom.evals.persuasion import Log, Result
from dialoom.judge import Judge
from dialoom.progress import quiet
from dialoom.simulate import Speaker, grow
from dialoom.store import TreeLog

TURNS = 10
LOWEST = 1.0
SCORE = "alignment"
"""The name of the score on turns."""
FLAT = 1e-9  # a curve that spans less than this is flat: means of equal scores differ by rounding


@dataclass(frozen=True)
class Curve:
    """A curve of alignment levels AL(1..K) and what it does. Source: ALOE, its benchmark's metrics.

    Attributes:
        levels: in the units of the judge (1 to 5, or percent).
    Raises: ValueError: if there are fewer than two levels, or one is not a number.
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or not all(map(math.isfinite, self.levels)):
            raise ValueError(f"levels {self.levels}: expected two finite numbers or more, one for each turn")

    @property
    def average(self) -> float:
        """AVG, the mean level."""
        return float(np.mean(self.levels))

    @property
    def ir(self) -> float:
        """IR, the improvement rate: slope of the least-squares line of AL(k) on k, per turn."""
        return self._fit[0]

    @property
    def r2(self) -> float | None:
        """R² of that line; None for a flat curve. N-R² is the same number, since scaling a curve changes no R²."""
        return self._fit[1]

    @property
    def n_ir(self) -> float:
        """N-IR: the slope once the curve is scaled to span 0 to 1; 0 for a flat one. A straight rise: 1 / (K - 1)."""
        span = max(self.levels) - min(self.levels)
        return self.ir / span if span > FLAT else 0.0

    @property
    def n_r2(self) -> float | None:
        """N-R², which is R²."""
        return self.r2

    @cached_property
    def _fit(self) -> tuple[float, float | None]:
        turns = np.arange(1, len(self.levels) + 1) - (len(self.levels) + 1) / 2
        off = np.asarray(self.levels) - np.mean(self.levels)
        if max(self.levels) - min(self.levels) <= FLAT:
            return 0.0, None
        slope = float(turns @ off / (turns @ turns))
        return slope, float(1 - ((off - slope * turns) ** 2).sum() / (off**2).sum())


Table = Sequence[Sequence[float]]
"""Scores by persona (rows) and turn (columns); not a number where the judge gave none."""


def levels(scores: Table) -> tuple[float, ...]:
    """AL(1..K): for each turn the mean over the personas with a score there."""
    columns = [[value for value in column if math.isfinite(value)] for column in zip(*scores, strict=True)]
    return tuple(float(np.mean(column)) if column else math.nan for column in columns)


def alignment_rows(scores: Table, *, label: str, seed: int, name: str = "alignment") -> list[Row]:
    """`avg`, `ir`, `n_ir`, `r2` and `al_1` to `al_K` with 95 % intervals from drawing personas anew.

    The interval of `n_ir` is that of `ir` in units of the observed span: the curve of redrawn personas spans more by
    its noise alone. `r2` has none. Where the judge left a whole turn without any score, the figures of the curve are
    not numbers.
    """
    means = [float(np.mean(found)) for row in scores if (found := [one for one in row if math.isfinite(one)])]
    rows = [rate(name, label, "avg", means, seed)]
    for metric, (value, low, high) in _slopes(scores, seed).items():
        rows.append(Row(name, label, metric, value, low, high, len(scores), seed))
    return rows + [rate(name, label, f"al_{turn}", [one for one in column if math.isfinite(one)], seed)
                   for turn, column in enumerate(zip(*scores, strict=True), 1)]


def _slopes(scores: Table, seed: int) -> dict[str, tuple[float, float, float]]:
    """`ir`, `n_ir` and `r2` with low and high."""
    curve = _curve(levels(scores))
    if curve is None:
        return dict.fromkeys(("ir", "n_ir", "r2"), (math.nan, math.nan, math.nan))
    slopes = [again.ir for drawn in _drawn(scores, seed) if (again := _curve(drawn)) is not None]
    low, high = (float(end) for end in np.percentile(slopes or [math.nan], [2.5, 97.5]))
    scale = curve.n_ir / curve.ir if curve.ir else 0.0
    r2 = math.nan if curve.r2 is None else curve.r2
    return {"ir": (curve.ir, low, high), "n_ir": (curve.n_ir, low * scale, high * scale),
            "r2": (r2, math.nan, math.nan)}


def _curve(found: Sequence[float]) -> Curve | None:
    return Curve(tuple(found)) if len(found) > 1 and all(map(math.isfinite, found)) else None


def _drawn(scores: Table, seed: int, draws: int = 2000) -> list[list[float]]:
    """The curves of `draws` sets of personas, drawn with replacement."""
    data = np.asarray(scores, dtype=float)
    known = np.isfinite(data)
    picks = np.random.default_rng(seed).integers(0, len(data), (draws, len(data)))
    counts = known[picks].sum(axis=1)
    sums = np.where(known, data, 0.0)[picks].sum(axis=1)
    curves: list[list[float]] = np.where(counts > 0, sums / np.maximum(counts, 1), math.nan).tolist()
    return curves


# ------------------------------------------------------------------------------------------------ protocol


def alignment(subject: Speaker, scenarios: Sequence[Scenario], user: Speaker, judge: Judge, *, label: str,
              turns: int = TURNS, seed: int = 0, sink: TreeLog | None = None, log: Log = quiet) -> Result:
    """Let the user talk with the subject for `turns` turns in every scenario, all in step, and score each reply.

    A subject that falls silent fits nobody from then on; a reply the judge gave no score is left out of its turn's mean
    and counted in `unread`.

    Args:
        judge: writes the score `alignment` on the subject's turns.
        sink: a log that holds what was said before; a killed evaluation goes on from it to the same figures.
    """
    dialogues = play(subject, scenarios, user, judge, turns=turns, seed=seed, sink=sink, log=log)
    scores = [scores_of(dialogue, subject.name, turns) for dialogue in dialogues]
    unread = sum(not math.isfinite(one) for row in scores for one in row)
    return Result(alignment_rows(scores, label=label, seed=seed), dialogues, unread)


def preference_shift(subject: Speaker, scenarios: Sequence[Scenario], user: Speaker, judge: Judge, *, label: str,
                     at: int, turns: int = TURNS, seed: int = 0, sink: TreeLog | None = None,
                     log: Log = quiet) -> Result:
    """The same with people whose personality is another from turn `at` on (their scenarios say so).

    Rows of `alignment_shift`: AL(k), `before` (mean level of the turns before `at`), `after` (from it on), and `fall`,
    the level just before minus that at the change.
    """
    dialogues = play(subject, scenarios, user, judge, turns=turns, seed=seed, sink=sink, log=log)
    scores = [scores_of(dialogue, subject.name, turns) for dialogue in dialogues]
    name = "alignment_shift"
    parts = {"before": [row[:at - 1] for row in scores], "after": [row[at - 1:] for row in scores]}
    rows = [rate(name, label, metric, [float(np.mean(found)) for row in table
                                       if (found := [one for one in row if math.isfinite(one)])], seed)
            for metric, table in parts.items()]
    falls = [row[at - 2] - row[at - 1] for row in scores if math.isfinite(row[at - 2] - row[at - 1])]
    rows.append(Row(name, label, "fall", float(np.mean(falls)) if falls else math.nan, *bootstrap(falls), len(falls),
                    seed))
    rows += [row for row in alignment_rows(scores, label=label, seed=seed, name=name) if row.metric.startswith("al_")]
    return Result(rows, dialogues, sum(not math.isfinite(one) for row in scores for one in row))


def play(subject: Speaker, scenarios: Sequence[Scenario], user: Speaker, judge: Judge, *, turns: int = TURNS,
         seed: int = 0, sink: TreeLog | None = None, log: Log = quiet) -> list[Dialogue]:
    """One dialogue for each scenario, in their order, as far as it went; the user speaks first."""
    held: dict[str, Any] = sink.trees() if sink else {}
    ids = [content_id(seed, scenario.id, subject.name) for scenario in scenarios]
    trees = [held.get(id) or DialogueTree(scenario, id) for id, scenario in zip(ids, scenarios, strict=True)]
    grow(trees, [user, subject], max_turns=2 * turns, seed=seed, judges=[judge], sink=sink, log=log)
    return [tree.dialogue(next(iter(tree.leaves()), None)) for tree in trees]


def scores_of(dialogue: Dialogue, speaker: str, turns: int) -> list[float]:
    """The scores of a speaker's turns 1 to `turns`; after a speaker who was silent the lowest, else not a number."""
    said = [float(turn.scores.get(SCORE, math.nan)) for turn in dialogue.by(speaker)][:turns]
    was_silent = bool(dialogue.turns) and dialogue.last.speaker != speaker
    return [*said, *[LOWEST if was_silent else math.nan] * (turns - len(said))]

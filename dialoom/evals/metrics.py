"""Means with intervals, as the tidy rows of `results.json`. Rates are fractions, not percent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

T_95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, two-sided 95 %, 1 to 9 degrees


@dataclass(frozen=True)
class Row:
    """One figure: `value` with its 95 % interval over `n` items of one seed, or (seed None) over `n` seeds."""

    eval: str
    subject: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seed: int | None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON; figures that are not numbers become null."""
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in asdict(self).items()}


def bootstrap(values: Sequence[float], *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Percentile-bootstrap 95 % interval of the mean of `values`."""
    if not len(values):
        return math.nan, math.nan
    data = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(data), (draws, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def rate(eval: str, subject: str, metric: str, values: Sequence[float], seed: int) -> Row:
    """The mean of per-item values with its bootstrap interval."""
    mean = float(np.mean(values)) if len(values) else math.nan
    return Row(eval, subject, metric, mean, *bootstrap(values), len(values), seed)


def over_seeds(rows: Iterable[Row]) -> list[Row]:
    """For each figure its mean over seeds with a Student-t interval (one seed: that row's own interval)."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.seed is not None:
            groups.setdefault((row.eval, row.subject, row.metric), []).append(row)
    return [_combine(key, found) for key, found in groups.items()]


def _combine(key: tuple[str, str, str], rows: Sequence[Row]) -> Row:
    finite = [row for row in rows if row.value is not None and math.isfinite(row.value)]
    if len(finite) <= 1:
        value, low, high = (finite[0].value, finite[0].low, finite[0].high) if finite else (math.nan,) * 3
        return Row(*key, value, low, high, len(finite), None)
    values = [row.value for row in finite]
    mean = float(np.mean(values))
    reach = student(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Row(*key, mean, mean - reach, mean + reach, len(values), None)


def student(degrees: int) -> float:
    """Student's t, two-sided 95 %; past the table by its expansion in 1 / degrees, which is within 0.003 there."""
    if degrees <= len(T_95):
        return T_95[degrees - 1]
    return 1.96 + 2.372 / degrees + 2.823 / degrees**2

"""Platt's scaling: logits of weighted examples made probabilities, by a slope and an offset of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sigmoid(logits: Array) -> Array:
    """Probabilities of logits."""
    found: Array = 0.5 + 0.5 * np.tanh(0.5 * logits)  # no overflow, however sure
    return found


def platt(logits: Array, positives: Array, negatives: Array, rounds: int = 50) -> tuple[float, float]:
    """Slope and offset that make weighted logits probabilities (Platt's scaling, by Newton's method, a little damped).

    A slope that would turn the order round is refused: then the logits stay as they are.
    """
    at = np.array([1.0, 0.0])
    design = np.stack([logits.ravel(), np.ones(logits.size)])
    weights, targets = (positives + negatives).ravel(), positives.ravel()
    ridge = 1e-3 * max(1.0, targets.sum())
    for _ in range(rounds):
        chances = sigmoid(at @ design)
        slope = design @ (weights * chances - targets) + ridge * (at - (1.0, 0.0))
        curve = (design * (weights * chances * (1 - chances))) @ design.T + ridge * np.eye(2)
        step = np.linalg.solve(curve, slope)
        at = at - step * min(1.0, 1.0 / float(np.abs(step).max() or 1.0))
    return (float(at[0]), float(at[1])) if at[0] > 0 else (1.0, 0.0)

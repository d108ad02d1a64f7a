"""From scores to probabilities: logistic combination with weights that never turn a signal around, and its error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEPS = 50
_RIDGE = 1e-2


@dataclass(frozen=True, slots=True)
class Combination:
    """Log odds = bias + signals @ weights."""

    weights: NDArray[np.float64]
    bias: float

    def log_odds(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n,) of the (n, signals)."""
        return np.asarray(signals @ self.weights + self.bias)


def fit_combination(
    signals: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> Combination:
    """Platt scaling (1999) of several signals at once, by Newton's method.

    A signal that comes out with a negative weight is left out and the rest is fitted again: near misses
    would otherwise teach the combination to distrust what marks far ones.

    Args:
        signals: (n, signals), each larger for the positive class.
        positive: (n,).
        weights: (n,), how much each row counts; by default both classes weigh the same, however frequent they are.
    """
    mean, scale = signals.mean(axis=0), signals.std(axis=0) + 1e-9
    normal = (signals - mean) / scale
    if weights is None:
        weights = np.where(positive, 0.5 / max(1, positive.sum()), 0.5 / max(1, (~positive).sum())) * len(positive)
    used = np.arange(signals.shape[1])
    while True:
        solution = _newton(normal[:, used], positive, weights)
        if len(used) == 1 or (solution[:-1] >= 0).all():
            break
        used = np.delete(used, int(solution[:-1].argmin()))
    combined = np.zeros(signals.shape[1])
    combined[used] = solution[:-1] / scale[used]
    return Combination(combined, float(solution[-1] - mean @ combined))


def _newton(
    signals: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    columns = np.column_stack([signals, np.ones(len(signals))])
    ridge = _RIDGE * np.eye(columns.shape[1])
    solution = np.zeros(columns.shape[1])
    for _ in range(_STEPS):
        p = sigmoid(columns @ solution)
        gradient = columns.T @ (weight * (p - positive)) + ridge @ solution
        hessian = (columns * (weight * np.maximum(p * (1 - p), 1e-6))[:, None]).T @ columns + ridge
        step = np.linalg.solve(hessian, gradient)
        solution -= step
        if np.abs(step).max() < 1e-6:
            break
    return solution


def sigmoid(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * log_odds)))


def expected_calibration_error(probability: NDArray[np.float64], happened: NDArray[np.bool_], bins: int = 15) -> float:
    """ECE over equally wide bins (Naeini et al. 2015): mean |how often it happened - the probability stated|."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    gaps = np.bincount(place, happened - probability, bins)
    return float(np.abs(gaps).sum() / max(1, counts.sum()))


def isotonic(
    scores: NDArray[np.float64], outcomes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the knots of the non-decreasing map from scores to shares of outcomes (pool adjacent violators).

    Each knot is smoothed with one outcome of each kind, so that no probability is exactly 0 or 1.
    """
    order = np.argsort(scores, kind="stable")
    blocks: list[tuple[float, float, float]] = []  # the sums of outcomes and of scores, and the count
    for score, outcome in zip(scores[order], outcomes[order], strict=True):
        block = (float(outcome), float(score), 1.0)
        while blocks and blocks[-1][0] * block[2] >= block[0] * blocks[-1][2]:
            last = blocks.pop()
            block = (last[0] + block[0], last[1] + block[1], last[2] + block[2])
        blocks.append(block)
    levels = np.array([total / count for _, total, count in blocks])
    shares = np.array([(total + 1.0) / (count + 2.0) for total, _, count in blocks])
    return levels, np.maximum.accumulate(shares)

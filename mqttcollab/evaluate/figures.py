"""Figures of scores that tell what is in scope from what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mqttcollab.classifiers.calibration import expected_calibration_error
from mqttcollab.evaluate.scoring import auroc, bootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DRAWS = 500


def recall_at(scores: NDArray[np.float64], inside: NDArray[np.bool_], rejected: float = 0.05) -> float:
    """Return the share of rows outside whose score is below what the share `rejected` of the rows inside is below.

    Raises:
        ValueError: there are no rows inside, or none outside.
    """
    if inside.all() or not inside.any():
        raise ValueError("both classes are needed")
    return float((scores[~inside] < np.quantile(scores[inside], rejected)).mean())


def scope_figures(
    scores: NDArray[np.float64],
    inside: NDArray[np.bool_],
    right: NDArray[np.bool_] | None = None,
    *,
    calibrated: bool = False,
) -> dict[str, Any]:
    """Return the figures of scope, with their 95% intervals under `ci95`; None for what the rows can't tell.

    Args:
        scores: (n,), higher for what is in scope.
        inside: (n,), what is in scope.
        right: (n,), whether the right intent was named.
        calibrated: the scores are probabilities.
    """
    both = bool(inside.any() and not inside.all())

    def figures(rows: NDArray[np.intp]) -> dict[str, float]:
        found: dict[str, float] = {}
        if both:
            found["auroc"] = auroc(scores[rows], inside[rows])
            found["oos_recall_at_5"] = recall_at(scores[rows], inside[rows])
        if right is not None:
            found["in_scope_accuracy"] = mean(right[rows], inside[rows])
        if calibrated:
            found["ece"] = expected_calibration_error(scores[rows], inside[rows])
        return found

    return with_intervals(figures, len(scores), ("auroc", "oos_recall_at_5", "in_scope_accuracy", "ece"))


def with_intervals(figures: Any, count: int, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures of rows 0 to count - 1 under their keys, None where there is none, and `ci95`."""
    found = figures(np.arange(count))
    intervals = bootstrap(figures, np.arange(count), draws=_DRAWS) if found else {}
    return {key: found.get(key) for key in keys} | {"ci95": intervals}


def mean(values: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    """Return the share of true values among the rows `of`; raises ValueError where there are none."""
    if not of.any():
        raise ValueError("no such rows")
    return float(values[of].mean())

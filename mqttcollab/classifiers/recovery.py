"""What a ranking of prompts for the strong model is worth: the performance gap that it recovers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RouteFigures:
    """What a ranking of prompts for the strong model is worth (Ong et al. 2024, RouteLLM).

    Attributes:
        apgr: the mean, over budgets from no strong call to all of them, of the performance gap recovered.
        cpt50, cpt80: the least budget, as a share of all calls, that recovers half and 80% of the gap.
    """

    apgr: float
    cpt50: float
    cpt80: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures under the names of the reports."""
        return {"apgr": self.apgr, "cpt50": self.cpt50, "cpt80": self.cpt80}


def route_figures(scores: Floats, weak: Floats, strong: Floats, *, weak_cost: float = 0.0) -> RouteFigures:
    """Rate scores by which prompts go to the strong model, highest first; equal scores go in expectation.

    Args:
        scores: (n,), higher for what the strong model should answer.
        weak: (n,), 1 where the weak model is right.
        strong: (n,), 1 where the strong model is right.
        weak_cost: the price of a weak call in strong calls, if the weak model is called on every prompt before
            the decision. A router that does not read would, with a share x of strong calls, spend
            weak_cost * (1 - x) + x a prompt; the one that reads affords a share x * (1 - weak_cost) for that.

    Raises:
        ValueError: the strong model is not better on these rows.
    """
    gap = float(strong.sum() - weak.sum())
    if gap <= 0:
        raise ValueError("the strong model is not better than the weak one on these rows; there is no gap to recover")
    order = np.argsort(-scores, kind="stable")
    gain = (strong - weak)[order]
    ordered = scores[order]
    group = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
    gain = (np.bincount(group, gain) / np.bincount(group))[group]
    recovered = np.concatenate([[0.0], np.cumsum(gain)]) / gap
    budget = np.linspace(0.0, 1.0, 1001)
    curve = np.interp(budget * (1.0 - weak_cost), np.arange(len(scores) + 1) / len(scores), recovered)
    return RouteFigures(float(np.trapezoid(curve, budget)), _reaches(curve, budget, 0.5), _reaches(curve, budget, 0.8))


def _reaches(curve: Floats, budget: Floats, level: float) -> float:
    above = np.flatnonzero(curve >= level)
    return float(budget[above[0]]) if len(above) else 1.0

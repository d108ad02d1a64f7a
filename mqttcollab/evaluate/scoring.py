"""95% intervals of any figures, by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def bootstrap(
    figures: Callable[[NDArray[np.intp]], dict[str, float]],
    groups: NDArray[np.intp],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Return the 95% percentile intervals [low, high] of figures, drawing whole groups of rows with replacement.

    Args:
        figures: the figures over the rows of these indices; may raise ValueError where they are undefined.
        groups: (n,), which group a row belongs to; `np.arange(n)` draws rows one by one.
        draws: how often.
        seed: makes it repeatable.
    """
    random = np.random.default_rng(seed)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])  # the rows of each group
    drawn: list[dict[str, float]] = []
    for _ in range(draws):
        picks = random.integers(len(members), size=len(members))
        rows = picks if len(members) == len(groups) else np.concatenate([members[pick] for pick in picks])
        try:
            drawn.append(figures(rows))
        except ValueError:
            continue
    names = drawn[0] if drawn else ()
    return {name: np.quantile([figure[name] for figure in drawn], [0.025, 0.975]).tolist() for name in names}


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve, ties counting half; raises ValueError where a class is missing."""
    count = int(positive.sum())
    if not 0 < count < len(positive):
        raise ValueError("both classes are needed")
    _, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(sizes) - (sizes - 1) / 2
    return float((ranks[place][positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))

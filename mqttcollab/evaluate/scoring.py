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
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    drawn: list[dict[str, float]] = []
    for _ in range(draws):
        picks = random.integers(len(members), size=len(members))
        try:
            drawn.append(figures(np.concatenate([members[pick] for pick in picks])))
        except ValueError:
            continue
    names = drawn[0] if drawn else ()
    return {name: np.quantile([figure[name] for figure in drawn], [0.025, 0.975]).tolist() for name in names}

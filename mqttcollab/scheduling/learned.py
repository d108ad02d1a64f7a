"""Quantiles of what was seen lately: speeds of agents, lengths of answers."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

_WINDOW = 64


class Quantiles:
    """Quantiles over the latest values; a single outlier moves them no further than to the next value.

    Args:
        window: how many values count.
    """

    def __init__(self, window: int = _WINDOW) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []
        self._window = window

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, value: float) -> None:
        """Notes a value; those that are no finite number are passed over by whoever calls."""
        if len(self._latest) == self._window:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(value)
        insort(self._sorted, value)

    def at(self, share: float) -> float:
        """The value below which this share of them lies (the nearest rank).

        Raises:
            IndexError: there is no value yet.
        """
        return self._sorted[min(len(self._sorted) - 1, int(share * len(self._sorted)))]

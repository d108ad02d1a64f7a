"""What was seen lately: speeds of agents, lengths of answers."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

_WINDOW = 64
# Of speeds: a cautious median, so that a deadline is not missed by hope.
_SPEED, _SECONDS = 0.4, 0.6
_LEAST_SEEN = 3
# Tokens per second, or seconds per token: beyond that a clock is wrong.
_FASTEST = 1e6
# Times the tokens that were expected, or a part of them.
_WORDIEST = 100.0
# Slower than so many times what nine of ten took is late, but nobody is before so many seconds.
_STRAGGLES, _LEAST_LATE_S = 2.0, 0.5


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


class Learned:
    """How fast each agent's service is, and how long its answers are, from three answers on."""

    def __init__(self) -> None:
        self._speeds: dict[int, Quantiles] = {}
        self._seconds: dict[int, Quantiles] = {}
        self._wordiness: dict[int, Quantiles] = {}
        self._lengths: dict[str, Quantiles] = {}

    def add(self, row: int, service: str, seconds: float, tokens: float, expected: float) -> None:
        """Notes an answer: its seconds, above 0, and its tokens, 0 where no model wrote it, beside those expected."""
        if tokens > 0:
            self._lengths.setdefault(service, Quantiles()).add(tokens)
            speed = min(_FASTEST, max(1 / _FASTEST, tokens / seconds))
            self._speeds.setdefault(row, Quantiles()).add(speed)
            wordiness = min(_WORDIEST, max(1 / _WORDIEST, tokens / max(1.0, expected)))
            self._wordiness.setdefault(row, Quantiles()).add(wordiness)
        else:
            self._seconds.setdefault(row, Quantiles()).add(seconds)

    def tokens_per_s(self, row: int) -> float | None:
        """A speed that is reached more often than not; None while too little is known."""
        return _at(self._speeds.get(row), _SPEED)

    def wordiness(self, row: int) -> float:
        """How many tokens its answers have beside those expected; 1 while too little is known."""
        known = _at(self._wordiness.get(row), 0.5)
        return 1.0 if known is None else known

    def seconds(self, row: int) -> float | None:
        """How long answers take that no model writes; None while too little is known."""
        return _at(self._seconds.get(row), _SECONDS)

    def tokens(self, service: str) -> float | None:
        """How many tokens an answer has: the median; None while too little is known."""
        return _at(self._lengths.get(service), 0.5)

    def straggles_s(self, row: int, expected_s: float) -> float:
        """After how many seconds a request is late; infinite while too little is known."""
        usual, slow = self.tokens_per_s(row), _at(self._speeds.get(row), 0.1)
        if usual is not None and slow is not None:
            return max(_LEAST_LATE_S, _STRAGGLES * expected_s * usual / slow)
        seconds = _at(self._seconds.get(row), 0.9)
        return math.inf if seconds is None else max(_LEAST_LATE_S, _STRAGGLES * seconds)


def _at(known: Quantiles | None, share: float) -> float | None:
    return known.at(share) if known is not None and len(known) >= _LEAST_SEEN else None

"""The replies that were sent, for requests that come a second time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from mqttcollab.transport.base import TransportMessage

MOST_REPLIES = 4096
MOST_BYTES = 16 << 20
KEEP_S = 120.0

Key = tuple[str, str]


class Answered:
    """Keeps each reply until its request's ttl is over and at least two minutes, within bounds of number and size."""

    def __init__(self) -> None:
        self._replies: OrderedDict[Key, tuple[float, TransportMessage]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key) -> TransportMessage | None:
        """The reply to a request, by its reply topic and its id."""
        kept = self._replies.get(key)
        return None if kept is None else kept[1]

    def add(self, key: Key, message: TransportMessage, deadline: float) -> None:
        """Keeps a reply; the oldest go where it gets too much."""
        now = asyncio.get_running_loop().time()
        if (before := self._replies.pop(key, None)) is not None:
            self._bytes -= len(before[1].payload)
        self._replies[key] = max(deadline, now + KEEP_S), message
        self._bytes += len(message.payload)
        while self._replies:
            oldest = next(iter(self._replies))
            until, kept = self._replies[oldest]
            if now <= until and len(self._replies) <= MOST_REPLIES and self._bytes <= MOST_BYTES:
                return
            del self._replies[oldest]
            self._bytes -= len(kept.payload)

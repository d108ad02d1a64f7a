"""Acknowledgements in order of receipt, each sent only once its message is safe (MQTT 5, section 4.6)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from mqttcollab.transport.base import Work

_log = logging.getLogger(__name__)


class OrderedAcks:
    """Holds acknowledgements back until their handlers are done and their turn has come.

    Args:
        send: sends the acknowledgement of one packet identifier.
    """

    def __init__(self, send: Callable[[int], None]) -> None:
        self._send = send
        self._waiting: deque[tuple[int, asyncio.Future[Any] | None]] = deque()
        self._running: set[asyncio.Future[Any]] = set()

    def received(self, mid: int, waits: list[Work]) -> None:
        """Takes note of a message; `waits` have to be done before its acknowledgement."""
        if not waits and not self._waiting:
            return self._send(mid)
        if not waits:
            self._waiting.append((mid, None))
            return None
        done = asyncio.gather(*waits, return_exceptions=True)
        self._running.add(done)
        self._waiting.append((mid, done))
        done.add_done_callback(self._advance)
        return None

    def forget(self) -> None:
        """The connection broke: the broker sends again what was not acknowledged, under new identifiers."""
        self._waiting.clear()

    async def close(self) -> None:
        """Cancels the handlers under way; nothing is acknowledged any more."""
        self.forget()
        running = list(self._running)
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _advance(self, finished: asyncio.Future[Any]) -> None:
        self._running.discard(finished)
        # The message of a handler that failed is acknowledged too: it would fail again.
        if not finished.cancelled() and finished.exception() is None:
            for error in finished.result():
                if isinstance(error, Exception):
                    _log.error("a handler failed: %s", error, exc_info=error)
        while self._waiting and (self._waiting[0][1] is None or self._waiting[0][1].done()):
            self._send(self._waiting.popleft()[0])

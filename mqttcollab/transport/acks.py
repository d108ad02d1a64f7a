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

    Since acknowledgements go out in order, a handler that never ends would hold back those of all messages behind
    it (head-of-line blocking), and at the receive maximum the broker would send nothing any more, not even a cancel.
    So a message is acknowledged after `limit_s` seconds all the same; its handler goes on.

    Args:
        send: sends the acknowledgement of one packet identifier.
        limit_s: the longest that an acknowledgement is held back, in seconds, give or take a tenth.
    """

    def __init__(self, send: Callable[[int], None], limit_s: float = 30.0) -> None:
        self._send = send
        self._limit_s = limit_s
        self._waiting: deque[tuple[int, list[asyncio.Future[Any]], float]] = deque()
        self._open: set[asyncio.Future[Any]] = set()
        self._started: set[asyncio.Future[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many messages are not acknowledged yet."""
        return len(self._waiting)

    def received(self, mid: int, waits: list[Work]) -> None:
        """Takes note of a message; `waits` have to be done before its acknowledgement.

        A future that several messages wait for, such as that of one commit, costs hardly more than one alone.
        """
        if not waits and not self._waiting:
            return self._send(mid)
        loop = asyncio.get_running_loop()
        futures = []
        for work in waits:
            future = work if isinstance(work, asyncio.Future) else self._start(work)
            futures.append(future)
            if future not in self._open:
                self._open.add(future)
                future.add_done_callback(self._advance)
        self._waiting.append((mid, futures, loop.time()))
        if self._timer is None:
            self._timer = loop.call_later(self._limit_s, self._let_go)
        return None

    def forget(self) -> None:
        """The connection broke: the broker sends again what was not acknowledged, under new identifiers."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self) -> None:
        """Cancels the coroutines under way, not the futures of others; nothing is acknowledged any more."""
        self.forget()
        started = [work for work in self._started if work is not asyncio.current_task()]
        for work in started:
            work.cancel()
        await asyncio.gather(*started, return_exceptions=True)

    def _start(self, work: Work) -> asyncio.Future[Any]:
        future = asyncio.ensure_future(work)
        self._started.add(future)
        return future

    def _advance(self, finished: asyncio.Future[Any]) -> None:
        self._open.discard(finished)
        self._started.discard(finished)
        # The message of a handler that failed is acknowledged too: it would fail again.
        if not finished.cancelled() and (error := finished.exception()) is not None:
            _log.error("a handler failed: %s", error, exc_info=error)
        self._send_done()

    def _send_done(self) -> None:
        while self._waiting:
            mid, futures, _ = self._waiting[0]
            while futures and futures[-1].done():
                futures.pop()
            if futures:
                return
            self._waiting.popleft()
            self._send(mid)

    def _let_go(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        latest = loop.time() - self._limit_s
        late = 0
        while self._waiting and self._waiting[0][2] <= latest:
            mid, futures, _ = self._waiting.popleft()
            late += not all(future.done() for future in futures)
            self._send(mid)
        if late:
            _log.warning("%d messages are not handled after %g s: acknowledged all the same", late, self._limit_s)
        self._send_done()
        if self._waiting:
            left = self._waiting[0][2] - latest
            self._timer = loop.call_later(max(left, self._limit_s / 10), self._let_go)

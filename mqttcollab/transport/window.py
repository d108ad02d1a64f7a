"""How many publishes may wait for their acknowledgement at once, control before bulk."""

from __future__ import annotations

import asyncio
from collections import deque


class Window:
    """A counter of slots of which bulk traffic gets at most half, so that control never waits behind it.

    Args:
        limit: slots in all; the broker's receive maximum once it is known.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._control: deque[asyncio.Future[None]] = deque()
        self._bulk: deque[asyncio.Future[None]] = deque()
        self._closed: Exception | None = None

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._control) + len(self._bulk)

    def try_acquire(self, bulk: bool) -> bool:
        """Takes a slot if one is free for this kind of traffic and nobody waits before it."""
        queue = self._bulk if bulk else self._control
        if queue or self.used >= self._room(bulk):
            return False
        self.used += 1
        return True

    async def acquire(self, bulk: bool) -> None:
        """Takes a slot, waiting for one if need be; raises what `close` was called with."""
        if self._closed is not None:
            raise self._closed
        if self.try_acquire(bulk):
            return
        queue = self._bulk if bulk else self._control
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release()
            elif turn in queue:
                queue.remove(turn)
            raise

    def release(self) -> None:
        """Gives a slot back, to a control message if one waits."""
        self.used -= 1
        self.wake()

    def wake(self) -> None:
        """Lets those in whose turn it is."""
        for bulk, queue in ((False, self._control), (True, self._bulk)):
            while queue and self.used < self._room(bulk):
                turn = queue.popleft()
                if not turn.done():
                    self.used += 1
                    turn.set_result(None)

    def close(self, error: Exception) -> None:
        """Fails those who wait, and who comes later."""
        self._closed = error
        for turn in (*self._control, *self._bulk):
            if not turn.done():
                turn.set_exception(error)
        self._control.clear()
        self._bulk.clear()

    def _room(self, bulk: bool) -> int:
        return max(1, self.limit // 2) if bulk else self.limit

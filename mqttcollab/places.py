"""Places where requests are worked on, held until the work truly ends."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from mqttcollab.errors import RequestError

# How long work may go on after it should have ended before it counts as hanging.
GRACE_S = 1.0
_RETRY_AFTER_MS = 5000


class Work(Protocol):
    """What holds a place; `due` is the loop time by which it should have ended."""

    due: float


class Places:
    """Lets so many pieces of work run at once; more wait, first come, first served.

    Work that goes on for a second after it is due hangs. Where all places are held by such work nobody waits for one:
    it could be for ever.

    Args:
        name: the service.
        number: how many there are.
    """

    def __init__(self, name: str, number: int) -> None:
        self._name = name
        self._number = number
        self._held: dict[int, Work] = {}
        self._waiting: deque[tuple[asyncio.Future[None], Work]] = deque()

    async def take(self, work: Work) -> None:
        """Waits for a place. `RequestError("busy")` once all of them are held by work that hangs."""
        if len(self._held) < self._number:
            self._held[id(work)] = work
            return
        if (refusal := self.refusal()) is not None:
            raise refusal
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, work))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(work)
            raise

    def refusal(self) -> RequestError | None:
        """Why no request is taken: all places are held by work that hangs."""
        full = len(self._held) >= self._number
        return self._busy() if full and len(self._hanging_s()) >= self._number else None

    def keep(self, work: Work) -> None:
        """Holds a place for what is left of the work of somebody who is about to leave his."""
        self._held[id(work)] = work

    def leave(self, work: Work) -> None:
        """Gives a place back, if the work holds one."""
        self._held.pop(id(work), None)
        while self._waiting and len(self._held) < self._number:
            turn, following = self._waiting.popleft()
            if not turn.done():
                self._held[id(following)] = following
                turn.set_result(None)

    def look(self) -> list[float]:
        """How many seconds ago what hangs was due, the longest first. Where all of it hangs, who waits is refused."""
        hanging = self._hanging_s()
        if len(hanging) >= self._number:
            while self._waiting:
                turn, _ = self._waiting.popleft()
                if not turn.done():
                    turn.set_exception(self._busy())
        return hanging

    def _hanging_s(self) -> list[float]:
        now = asyncio.get_running_loop().time()
        return sorted((now - work.due for work in self._held.values() if now > work.due + GRACE_S), reverse=True)

    def _busy(self) -> RequestError:
        which = "the handler" if self._number == 1 else f"all {self._number} handlers"
        text = f"{which} of {self._name} hang{'s' * (self._number == 1)}"
        return RequestError("busy", text, retry_after_ms=_RETRY_AFTER_MS)

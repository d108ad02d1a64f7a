"""A scheduler on the event loop: requests that wait are coroutines that wait."""

from __future__ import annotations

import asyncio
import math

from mqttcollab.scheduling.base import Candidates, Demand
from mqttcollab.scheduling.scheduler import Placed, Scheduler


class Placer:
    """Drives a scheduler by the loop's clock.

    For each request: `place`, then, as often as an agent was busy or gave no answer, `busy` or `ended` and `again`;
    in the end `close`, whatever came of it.

    Args:
        scheduler: decides.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._waiting: dict[str, asyncio.Future[Placed]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def place(self, demand: Demand, candidates: Candidates) -> Placed:
        """Where a new request goes: an agent, the cloud or nowhere (`refuse`); waits while the policy says so.

        If that is cancelled, the request is over.

        Raises:
            RequestError: `bad_request`, one with this id is not over yet.
        """
        placed = self.scheduler.submit(demand, candidates, self.now)
        try:
            return await self._settled(placed)
        except asyncio.CancelledError:
            self.close(demand)
            raise

    async def again(self, demand: Demand) -> Placed:
        """The same for a request that has come back without an answer."""
        return await self._settled(self.scheduler.again(demand.id, self.now))

    def beside(self, demand: Demand) -> Placed | None:
        """A further agent for a request whose agent is late, if one is free that charges nothing."""
        return self.scheduler.beside(demand.id, self.now)

    def straggles_s(self, placed: Placed) -> float:
        """After how many seconds its agent counts as late; infinite while too little is known."""
        return self.scheduler.book.straggles_s(placed.row, placed.seconds)

    def busy(self, placed: Placed, retry_after_s: float = 0.0) -> None:
        """Its agent had no room for it, and may have again after so many seconds, if it says so."""
        self.scheduler.busy(placed, self.now, retry_after_s)
        self._look_again()

    def ended(self, placed: Placed, *, seconds: float = 0.0, tokens: float = 0.0, failed: bool = False) -> None:
        """Its agent answered, or failed; see `Scheduler.ended`."""
        self.scheduler.ended(placed, self.now, seconds=seconds, tokens=tokens, failed=failed)
        self._look_again()

    def close(self, demand: Demand) -> None:
        """The request is over."""
        self.scheduler.close(demand.id, self.now)
        self._look_again()

    def changed(self) -> None:
        """The book has changed: a report, an agent that came or went."""
        self._look_again()

    def stop(self) -> None:
        """Ends the timer; requests that wait are cancelled."""
        self._stop_timer()
        for future in self._waiting.values():
            future.cancel()

    @property
    def now(self) -> float:
        """The loop's clock."""
        return asyncio.get_running_loop().time()

    async def _settled(self, placed: Placed) -> Placed:
        if placed.decision.kind != "wait":
            return placed
        future: asyncio.Future[Placed] = asyncio.get_running_loop().create_future()
        self._waiting[placed.demand.id] = future
        self._look_again()
        try:
            return await future
        finally:
            self._waiting.pop(placed.demand.id, None)

    def _look_again(self) -> None:
        """Wakes those that can go, and asks to be woken when the next has waited long enough."""
        if not self.scheduler.waiting:
            self._stop_timer()
            return
        for placed in self.scheduler.ready(self.now):
            future = self._waiting.get(placed.demand.id)
            if future is not None and not future.done():
                future.set_result(placed)
        self._stop_timer()
        wake = self.scheduler.next_time(self.now)
        if math.isfinite(wake):
            self._timer = asyncio.get_running_loop().call_at(max(wake, self.now), self._look_again)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

"""Puts a subtask to agents: whom the scheduler says, when it says; another beside one that is late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import Offer
from mqttcollab.errors import MqttCollabError, RequestError
from mqttcollab.messages import ErrorInfo, Reply
from mqttcollab.orchestrator.schedule import LiveFleet, Ranked
from mqttcollab.peers import unless_lost
from mqttcollab.scheduling import Decision, Demand
from mqttcollab.scheduling.scheduler import Placed


@dataclass(slots=True)
class Attempt:
    """What one agent said to a subtask, or why it said nothing.

    Attributes:
        seconds: the time that it was given.
        why: why it was chosen, in words.
    """

    offer: Offer
    seconds: float = 0.0
    why: str = ""
    reply: Reply | None = None
    error: ErrorInfo | None = None

    @property
    def declined(self) -> bool:
        """Whether the agent itself said that it has nothing on this."""
        return self.error is not None and self.error.code == "no_capability" and self.offer.agent.present

    @property
    def given(self) -> Reply:
        """The answer of an agent that gave one."""
        assert self.reply is not None
        return self.reply


# Asks an agent, which has so many seconds, of which the request may wait so many in its queue.
Ask = Callable[[Offer, float, float], Awaitable[Reply]]
# Close to the deadline nobody's share of the time is worth waking up for.
_LEAST_PATIENCE_S = 0.05


@dataclass(slots=True)
class Placing:
    """One subtask on its way to an answer.

    Args:
        fleet: the live fleet.
        registry: to notice agents that vanish.
        demand: the subtask, as the scheduler sees it.
        ranked: who could do it, best first.
        most: agents that are asked in vain at most; busy ones do not count.

    Attributes:
        decision: the scheduler's last that named no agent: the cloud, or a refusal.
    """

    fleet: LiveFleet
    registry: Registry
    demand: Demand
    ranked: Sequence[Ranked]
    most: int
    decision: Decision | None = None
    _running: dict[asyncio.Task[None], tuple[Placed, Attempt]] = field(default_factory=dict)
    _tried: int = 0

    async def attempts(self, ask: Ask) -> AsyncGenerator[Attempt, None]:
        """Yields every attempt as it ends, until somebody closes it or nobody is left; then all others are cancelled.

        An attempt that takes longer than nine of ten did, or than its share of the time, gets another beside it.
        """
        placer = self.fleet.placer
        candidates = self.fleet.candidates(self.ranked)
        offers = dict(zip(candidates.rows.tolist(), (one.offer for one in self.ranked), strict=True))
        placed: Placed | None = await placer.place(self.demand, candidates)
        try:
            while True:
                if placed is not None and placed.decision.kind == "agent":
                    self._start(placed, offers[placed.row], ask)
                elif placed is not None:
                    self.decision = placed.decision
                    if not self._running:
                        return
                ended = await self._first_ended()
                for attempt in ended:
                    yield attempt
                placed = None
                if not self._running:
                    if self._tried >= self.most:
                        return
                    placed = await placer.again(self.demand)
                elif not ended:
                    placed = placer.beside(self.demand)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            placer.close(self.demand)

    def _start(self, placed: Placed, offer: Offer, ask: Ask) -> None:
        attempt = Attempt(offer, max(0.001, self.demand.deadline - self.fleet.placer.now), placed.decision.reason)
        others = self._tried + len(self._running) + 1 < len(self.ranked)
        task = asyncio.create_task(self._attempt(attempt, placed, ask, others=others))
        self._running[task] = placed, attempt

    async def _first_ended(self) -> list[Attempt]:
        """The attempts that have ended; none if the latest one takes so long that another is put beside it."""
        patience = None
        if self._tried + len(self._running) < min(self.most, len(self.ranked)):
            latest, _ = next(reversed(self._running.values()))
            left = self.demand.deadline - self.fleet.placer.now
            share = left / (self.most - self._tried - len(self._running) + 1)
            patience = max(_LEAST_PATIENCE_S, min(share, self.fleet.placer.straggles_s(latest)))
        done, _ = await asyncio.wait(self._running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        ended = []
        for task in done:
            _, attempt = self._running.pop(task)
            task.result()
            self._tried += attempt.error is None or attempt.error.code != "busy"
            ended.append(attempt)
        return ended

    async def _attempt(self, attempt: Attempt, placed: Placed, ask: Ask, *, others: bool) -> None:
        placer, name = self.fleet.placer, attempt.offer.agent.name
        wait_s = max(0.0, self.demand.due - placer.now) if placer.scheduler.policy.queues else 0.0
        try:
            asking = ask(attempt.offer, attempt.seconds, wait_s)
            attempt.reply = await unless_lost(asking, self.registry, name, others=others)
        except RequestError as error:
            attempt.error = ErrorInfo(code=error.code, message=error.message, retry_after_ms=error.retry_after_ms)
        except MqttCollabError as error:
            attempt.error = ErrorInfo(code="internal", message=str(error))
        if attempt.reply is not None:
            seconds, tokens = self.fleet.worked(attempt.reply)
            placer.ended(placed, seconds=seconds, tokens=tokens)
        elif attempt.error is not None and attempt.error.code == "busy":
            placer.busy(placed, (attempt.error.retry_after_ms or 0) / 1000)
        else:
            placer.ended(placed, failed=True)

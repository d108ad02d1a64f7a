"""Runs a plan: asks the agents, in parallel or in sequence, within the deadline, and tries others where one fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from mqttcollab.cms.registry import Offer, Registry
from mqttcollab.errors import DeadlineExceeded, MqttCollabError, RequestError
from mqttcollab.messages import ContextItem, ErrorInfo, Reply, Request, Step
from mqttcollab.orchestrator.plan import PlannedStep, stages
from mqttcollab.orchestrator.schedule import Scheduler

_MOST_ATTEMPTS = 3


@dataclass(slots=True)
class Outcome:
    """What became of one step: how it went, and the reply if there was one."""

    step: Step
    reply: Reply | None = None


# Asks one agent's service: offer, context, seconds left.
AskFunction = Callable[[Offer, list[ContextItem], float], Awaitable[Reply]]


@dataclass(slots=True)
class Dispatcher:
    """Runs plans.

    Args:
        registry: to notice agents that vanish.
        scheduler: the order in which agents are tried.
    """

    registry: Registry
    scheduler: Scheduler
    own: Counter[str] = field(default_factory=Counter)

    async def run(
        self, request: Request, plan: list[PlannedStep], ask: AskFunction, deadline: float
    ) -> AsyncIterator[Outcome]:
        """Runs all steps; yields each one's outcome as soon as it is known.

        Args:
            request: what was asked.
            plan: its steps.
            ask: sends a subtask to an agent.
            deadline: loop time by which all has to be done. Each chain of steps shares what remains.
        """
        loop = asyncio.get_running_loop()
        started, depth = loop.time(), stages(plan)
        tasks: dict[str, asyncio.Task[Outcome]] = {}

        async def perform(step: PlannedStep) -> Outcome:
            before = [await asyncio.shield(tasks[name]) for name in step.after]
            context = [*request.context, *(_context(o) for o in before if o.reply is not None)]
            left = max(0.0, deadline - loop.time())
            stage_deadline = loop.time() + left / (1 if step.after else depth)
            return await self._perform(step, context, ask, started, stage_deadline)

        for step in plan:
            tasks[step.service] = asyncio.create_task(perform(step))
        try:
            for done in asyncio.as_completed(list(tasks.values())):
                yield await done
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _perform(
        self, step: PlannedStep, context: list[ContextItem], ask: AskFunction, started: float, deadline: float
    ) -> Outcome:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        result = Step(
            service=step.service,
            reason=step.reason,
            after=list(step.after),
            start_ms=round(1000 * (begun - started), 1),
        )
        reply: Reply | None = None
        offers = self.scheduler(step.offers, self.own)[:_MOST_ATTEMPTS]
        for tried, offer in enumerate(offers, 1):
            result.agent = offer.agent.name
            seconds = (deadline - loop.time()) / (len(offers) - tried + 1)
            try:
                reply = await self._ask(offer, context, ask, seconds)
                result.confidence, result.error = reply.confidence, None
                break
            except RequestError as error:
                result.error = ErrorInfo(code=error.code, message=error.message)
            except MqttCollabError as error:
                result.error = ErrorInfo(code="internal", message=str(error))
        result.status = "ok" if reply is not None else "error"
        result.elapsed_ms = round(1000 * (loop.time() - begun), 1)
        return Outcome(result, reply)

    async def _ask(self, offer: Offer, context: list[ContextItem], ask: AskFunction, seconds: float) -> Reply:
        """One attempt; ends early if the agent goes offline meanwhile."""
        name = offer.agent.name
        self.own[name] += 1
        answer = asyncio.ensure_future(ask(offer, context, max(0.001, seconds)))
        vanished = asyncio.ensure_future(self._gone(name))
        try:
            await asyncio.wait([answer, vanished], return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise DeadlineExceeded(f"@{name} went offline before it answered")
        finally:
            self.own[name] -= 1
            answer.cancel()
            vanished.cancel()
            await asyncio.gather(answer, vanished, return_exceptions=True)

    async def _gone(self, name: str) -> None:
        while (view := self.registry.agents.get(name)) is not None and view.present:
            await self.registry.changed()


def _context(outcome: Outcome) -> ContextItem:
    assert outcome.reply is not None
    return ContextItem(
        text=outcome.reply.output or "",
        agent=outcome.step.agent,
        service=outcome.step.service,
        data=outcome.reply.data,
    )

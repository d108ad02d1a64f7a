"""Runs a plan: asks the agents, in parallel or in sequence, within the deadline, and tries others where one fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import Offer
from mqttcollab.errors import MqttCollabError, RequestError
from mqttcollab.messages import ContextItem, ErrorInfo, Reply, Request, Step
from mqttcollab.orchestrator.plan import PlannedStep, levels
from mqttcollab.orchestrator.schedule import Scheduler
from mqttcollab.peers import unless_lost

_MOST_ATTEMPTS = 3


@dataclass(slots=True)
class Outcome:
    """What became of one step: how it went, and the reply if there was one."""

    step: Step
    reply: Reply | None = None


# Asks one agent's service: offer, context, seconds left.
AskFunction = Callable[[Offer, list[ContextItem], float], Awaitable[Reply]]


@dataclass(slots=True)
class _Run:
    """A plan under way; `levels` says how many steps follow one after the other from each on."""

    request: Request
    ask: AskFunction
    started: float
    deadline: float
    levels: dict[str, int]
    tasks: dict[str, asyncio.Task[Outcome]] = field(default_factory=dict)


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
    ) -> AsyncGenerator[Outcome, None]:
        """Runs all steps; yields each one's outcome as soon as it is known. Closing it cancels what still runs.

        Args:
            request: what was asked.
            plan: its steps, in any order.
            ask: sends a subtask to an agent.
            deadline: loop time by which all has to be done. Steps that wait for each other share what remains.

        Raises:
            RequestError: the plan can't be run.
        """
        run = _Run(request, ask, asyncio.get_running_loop().time(), deadline, levels(plan))
        for step in plan:
            run.tasks[step.service] = asyncio.create_task(self._step(run, step))
        try:
            for done in asyncio.as_completed(list(run.tasks.values())):
                yield await done
        finally:
            for task in run.tasks.values():
                task.cancel()
            await asyncio.gather(*run.tasks.values(), return_exceptions=True)

    async def _step(self, run: _Run, step: PlannedStep) -> Outcome:
        """Waits for what the step needs, then asks one agent after the other."""
        loop = asyncio.get_running_loop()
        before = [await asyncio.shield(run.tasks[name]) for name in step.after]
        context = [*run.request.context, *(_context(o) for o in before if o.reply is not None)]
        begun = loop.time()
        deadline = begun + max(0.0, run.deadline - begun) / run.levels[step.service]
        result = Step(
            service=step.service,
            reason=step.reason,
            after=list(step.after),
            start_ms=round(1000 * (begun - run.started), 1),
            error=ErrorInfo(code="no_capability", message="nobody offers it"),
        )
        reply: Reply | None = None
        offers = self.scheduler(step.offers, self.own)[:_MOST_ATTEMPTS]
        while offers and reply is None:
            seconds = max(0.001, (deadline - loop.time()) / len(offers))
            reply = await self._attempt(result, offers.pop(0), run.ask, context, seconds, others=bool(offers))
        result.status = "ok" if reply is not None else "error"
        result.elapsed_ms = round(1000 * (loop.time() - begun), 1)
        return Outcome(result, reply)

    async def _attempt(
        self, result: Step, offer: Offer, ask: AskFunction, context: list[ContextItem], seconds: float, *, others: bool
    ) -> Reply | None:
        """Asks one agent; notes in `result` how it went."""
        name = result.agent = offer.agent.name
        self.own[name] += 1
        try:
            reply = await unless_lost(ask(offer, context, seconds), self.registry, name, others=others)
        except RequestError as error:
            result.error = ErrorInfo(code=error.code, message=error.message)
        except MqttCollabError as error:
            result.error = ErrorInfo(code="internal", message=str(error))
        else:
            result.confidence, result.error = reply.confidence, None
            return reply
        finally:
            self.own[name] -= 1
        return None


def _context(outcome: Outcome) -> ContextItem:
    assert outcome.reply is not None
    return ContextItem(
        text=outcome.reply.output or "",
        agent=outcome.step.agent,
        service=outcome.step.service,
        data=outcome.reply.data,
    )

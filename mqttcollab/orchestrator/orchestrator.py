"""The orchestrator as a service: from a request to an answer with its steps."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqttcollab.agent import Agent, AgentOptions
from mqttcollab.cms.views import Offer
from mqttcollab.errors import ConfigError, RequestError
from mqttcollab.messages import ContextItem, Reply, Request, Step
from mqttcollab.orchestrator.aggregate import Aggregator, with_sources
from mqttcollab.orchestrator.classify import Classifier, Relevant, by_similarity
from mqttcollab.orchestrator.dispatch import AskFunction, Dispatcher, Outcome
from mqttcollab.orchestrator.plan import PlannedStep, Planner, data_first
from mqttcollab.orchestrator.progress import Progress
from mqttcollab.orchestrator.schedule import Scheduler, least_pressure
from mqttcollab.service import Answer, Service
from mqttcollab.topics import ORCHESTRATION

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder

# What is kept of a request's time for putting the answer together and sending it.
_RESERVE = 0.05
_NO_SPECIALIST = "(Nobody here specialises in this question: a general model answered it, unverified.)"


@dataclass(frozen=True, slots=True)
class OrchestratorOptions:
    """How an orchestrator decides.

    Attributes:
        threshold: the least cosine between a question and a service's description or an example of it.
        fallback: the service that is asked, and said to be no specialist, where nobody is found by meaning;
            None answers `no_capability` instead.
        classifier, planner, scheduler, aggregator: replacements for the defaults.
    """

    threshold: float = 0.4
    fallback: str | None = "knowledge.gpt/general"
    classifier: Classifier | None = None
    planner: Planner = data_first
    scheduler: Scheduler = least_pressure
    aggregator: Aggregator = with_sources


class Orchestrator(Service):
    """Answers `computation.gpt/orchestration` through an agent that has an embedder.

    Raises:
        ConfigError: the agent has none.
    """

    name = ORCHESTRATION
    description = "Splits a question among the agents that can help and puts their answers together"
    concurrency = 64

    def __init__(self, agent: Agent, options: OrchestratorOptions | None = None) -> None:
        if agent.embedder is None:
            raise ConfigError(f"@{agent.name}: an orchestrator finds services by meaning: give its agent an embedder")
        self.options = options or OrchestratorOptions()
        self._agent = agent
        self._classify = self.options.classifier or by_similarity(self.options.threshold)
        self._dispatcher: Dispatcher | None = None
        self._progress: Progress | None = None

    async def started(self) -> None:
        """Follows the registry from the start, so that the first question finds everybody."""
        registry = await self._agent.follow()
        self._dispatcher = Dispatcher(registry, self.options.scheduler)
        self._progress = Progress(self._agent.transport)

    async def stopping(self) -> None:
        """Clears the progress topics."""
        if self._progress is not None:
            await self._progress.close()

    async def handle(self, request: Request) -> AsyncIterator[Step | Answer]:
        """Yields every step as it ends, then the answer."""
        assert self._dispatcher is not None and self._progress is not None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.ttl_ms / 1000 * (1 - _RESERVE)
        progress, task = self._progress, request.id
        progress.say(task, "question", request.text)
        try:
            plan = self._plan(request)
            progress.say(task, "plan", json.dumps([_describe(step) for step in plan], ensure_ascii=False))
            progress.say(task, "status", "running")
            numbers = {step.service: number for number, step in enumerate(plan, 1)}
            outcomes: list[Outcome] = []
            running = self._dispatcher.run(request, plan, self._ask(request), deadline)
            async with contextlib.aclosing(running):
                async for outcome in running:
                    outcomes.append(outcome)
                    self._report(task, numbers[outcome.step.service], outcome)
                    yield outcome.step
            outcomes.sort(key=lambda o: numbers[o.step.service])
            answer = self.options.aggregator(outcomes)
        except BaseException as error:
            progress.say(task, "status", f"failed {_failure(error)}")
            raise
        if any(step.service == self.options.fallback for step in plan):
            answer.text += "\n" + _NO_SPECIALIST
        progress.say(task, "answer", answer.text)
        progress.say(task, "status", "done")
        yield answer

    def _plan(self, request: Request) -> list[PlannedStep]:
        if not request.text.strip():
            raise RequestError("bad_request", "the question is empty")
        matches = [
            match
            for match in self._agent.registry.nearest(request.text)
            if match.offer.record.service not in (ORCHESTRATION, self.options.fallback)
        ]
        relevant = self._classify(request.text, matches)
        if not relevant:
            relevant = self._fallback(matches[0].score if matches else None)
        return self.options.planner(request.text, relevant)

    def _fallback(self, closest: float | None) -> list[Relevant]:
        reason = "no specialist is close to the question" + (f" (closest {closest:.2f})" if closest is not None else "")
        offers = self._agent.registry.offers(self.options.fallback) if self.options.fallback else []
        if not offers:
            raise RequestError("no_capability", f"{reason}, and nobody offers {self.options.fallback or 'a fallback'}")
        return [Relevant(offers[0].record.service, tuple(offers), closest or 0.0, f"{reason}: a general model answers")]

    def _ask(self, request: Request) -> AskFunction:
        async def ask(offer: Offer, context: list[ContextItem], seconds: float) -> Reply:
            return await self._agent.ask(
                request.input,
                service=offer.record.service,
                agent=offer.agent.name,
                context=context,
                parameters=request.parameters,
                ttl_s=seconds,
                session=request.session,
            )

        return ask

    def _report(self, task: str, number: int, outcome: Outcome) -> None:
        assert self._progress is not None
        step = outcome.step
        self._progress.say(task, f"steps/{number}/service", step.service)
        self._progress.say(task, f"steps/{number}/assigned_device", f"@{step.agent}")
        self._progress.say(task, f"steps/{number}/elapsed_ms", f"{step.elapsed_ms:g}")
        if outcome.reply is not None:
            self._progress.say(task, f"steps/{number}/output", outcome.reply.output or "")
            self._progress.say(task, f"steps/{number}/status", "done")
        elif step.error is not None:
            self._progress.say(task, f"steps/{number}/status", f"failed {step.error.code}: {step.error.message}")


def orchestrator_agent(
    name: str,
    embedder: Embedder,
    *,
    options: OrchestratorOptions | None = None,
    agent_options: AgentOptions | None = None,
    place: str | None = None,
) -> Agent:
    """An agent that orchestrates.

    Args:
        name: the agent's name.
        embedder: finds services by meaning.
        options: how it decides.
        agent_options: limits and intervals.
        place: where it is.
    """
    agent = Agent(name, description="Orchestrator", place=place, embedder=embedder, options=agent_options)
    agent.add(Orchestrator(agent, options))
    return agent


def _describe(step: PlannedStep) -> dict[str, object]:
    return {"service": step.service, "after": list(step.after), "reason": step.reason}


def _failure(error: BaseException) -> str:
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled: the requester gave it up, its time ran out, or the orchestrator stopped"
    return f"internal: {type(error).__name__}"

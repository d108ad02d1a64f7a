"""The orchestrator as a service: from a request to an answer with its plan and its steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqttcollab.agent import Agent, AgentOptions
from mqttcollab.classifiers.chain import Classifiers, default_classifiers
from mqttcollab.classifiers.router import Router
from mqttcollab.cms.views import Offer
from mqttcollab.cooperation import KnowledgeBase, Notes
from mqttcollab.errors import ConfigError, MqttCollabError
from mqttcollab.messages import Request, ServiceRecord, Step
from mqttcollab.orchestrator.aggregate import Aggregator, with_sources
from mqttcollab.orchestrator.asking import Asking, Question
from mqttcollab.orchestrator.decide import GENERAL, Decider, Decision, all_in_words
from mqttcollab.orchestrator.diary import Diary
from mqttcollab.orchestrator.dispatch import Dispatcher
from mqttcollab.orchestrator.learn import Learner, note_verdicts
from mqttcollab.orchestrator.phrase import phrased, request_of
from mqttcollab.orchestrator.progress import Progress
from mqttcollab.orchestrator.schedule import LiveFleet
from mqttcollab.orchestrator.subtask import Means, Outcome
from mqttcollab.orchestrator.trust import Trust
from mqttcollab.plans.decompose import ClauseDecomposer, Decomposer
from mqttcollab.plans.model import ModelDecomposer
from mqttcollab.rpc.durable import current_log
from mqttcollab.scheduling import Policy, Scheduler
from mqttcollab.scheduling.frugal import Frugal
from mqttcollab.service import Answer, Service
from mqttcollab.topics import ORCHESTRATION

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder, Runtime

# What is kept of a request's time for putting the answer together and sending it.
_RESERVE = 0.05
# How long a resumed question waits for the agents of its plan to be there again, at most.
_GATHERING_S = 5.0
# Agents that are asked in vain to phrase an answer, at most.
_MOST_PHRASING = 3
_NO_SPECIALIST = "(Nobody here specialises in this question: a general model answered it, unverified.)"
_NOT_ABLE = "(No specialist here could answer this: a general model did, unverified.)"


@dataclass(frozen=True, slots=True)
class OrchestratorOptions:
    """How an orchestrator decides.

    Attributes:
        fallback: the service that is asked, and said to be no specialist, where nobody covers a subtask;
            None answers `no_capability` instead.
        strong: the service of a stronger model, asked where the fallback gives no answer or one that can't be trusted;
            not of a question that must not leave the edge, nor where it costs more than the question's budget.
        router: says whether the fallback's answer can be trusted; None goes by `trust`.
        planner: a language model that splits questions, but for those that must not leave the edge, since nobody knows
            here where it runs; None splits them by their clauses.
        phrasing: the service of a language model that phrases the answer; None leaves the parts as they are.
        trust: an answer less likely right than this is put to a further agent, where there is one.
        answers: how many agents are asked the same where several offer it, but for data; they vote.
        detect_gaps, decompose, share: False switches off the detection of gaps, the splitting of questions, or the
            passing on of results and what is remembered of earlier ones.
        policy: decides who gets a subtask, when; one for each orchestrator. None is `frugal`.
        weights: of tenants, where requests wait for a free agent; 1 for those that are not named.
        patience_s: how long a subtask waits for a free agent before it goes to the cloud, or is given up.
        decomposer, aggregator: replacements for the defaults.
    """

    fallback: str | None = GENERAL
    strong: str | None = None
    router: Router | None = None
    planner: Runtime | None = None
    phrasing: str | None = None
    trust: float = 0.5
    answers: int = 1
    detect_gaps: bool = True
    decompose: bool = True
    share: bool = True
    decomposer: Decomposer | None = None
    policy: Policy | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    patience_s: float = 3.0
    aggregator: Aggregator = with_sources


class Orchestrator(Service):
    """Answers `computation.gpt/orchestration` through an agent that has an embedder.

    Args:
        agent: the agent that offers it.
        options: how it decides.
        classifiers: replacements for the chain of classifiers.

    Raises:
        ConfigError: the agent has no embedder.
    """

    name = ORCHESTRATION
    description = "Splits a question among the agents that can help and puts their answers together"
    concurrency = 64
    durable = True

    def __init__(
        self, agent: Agent, options: OrchestratorOptions | None = None, classifiers: Classifiers | None = None
    ) -> None:
        if agent.embedder is None:
            raise ConfigError(f"@{agent.name}: an orchestrator finds services by meaning: give its agent an embedder")
        self.options = options or OrchestratorOptions()
        self.classifiers = classifiers or default_classifiers(agent.embedder)
        self.knowledge = KnowledgeBase(agent.embedder) if self.options.share else None
        self._agent = agent
        self._decider = Decider(
            self.classifiers,
            self._decomposer() if self.options.decompose else None,
            self.knowledge,
            self.options.fallback,
            self.options.strong,
            answers=self.options.answers,
            detect_gaps=self.options.detect_gaps,
            closeness=lambda text, offers: agent.registry.closeness(text, offers),
            on_edge=self._clauses() if self.options.decompose and self.options.planner is not None else None,
        )
        self._dispatcher: Dispatcher | None = None
        self._fleet: LiveFleet | None = None
        self._learner: Learner | None = None
        self._progress: Progress | None = None
        self._secret = b""

    async def started(self) -> None:
        """Follows the registry from the start, so that the first question finds everybody."""
        registry = await self._agent.follow()
        options = self.options
        self._fleet = LiveFleet(registry, Scheduler(options.policy or Frugal(), weights=options.weights))
        trust = Trust(self.classifiers.judge, options.trust, options.router, self.classifiers.capability.skill)
        self._dispatcher = Dispatcher(Means(registry, self._fleet, trust, options.patience_s), options.share)
        self._learner = Learner(registry, self.classifiers.domains, self._is_specialist)
        self._progress = Progress(self._agent.transport)
        if self._agent.journal is not None:
            self._secret = await self._agent.journal.secret()

    async def stopping(self) -> None:
        """Ends the training and clears the progress topics."""
        if self._learner is not None:
            await self._learner.stop()
        if self._progress is not None:
            await self._progress.close()
        if self._fleet is not None:
            self._fleet.stop()

    @property
    def waiting(self) -> int:
        """How many subtasks wait for a free agent."""
        return 0 if self._fleet is None else self._fleet.placer.scheduler.waiting

    async def handle(self, request: Request) -> AsyncIterator[Step | Answer]:
        """Yields every step as it ends, then the answer."""
        assert self._dispatcher is not None and self._progress is not None
        deadline = asyncio.get_running_loop().time() + request.ttl_ms / 1000 * (1 - _RESERVE)
        progress = self._progress.of(request.id)
        progress.asked(request.text)
        try:
            diary = Diary(current_log.get(), self._secret)
            decision = await self._decide(request, diary)
            progress.planned(decision.plan)
            outcomes: list[Outcome] = []
            asking = Asking(self._agent, request, self._skill, diary)
            running = self._dispatcher.run(decision.steps, asking, deadline)
            async with contextlib.aclosing(running):
                async for outcome in running:
                    outcomes.append(outcome)
                    progress.ended(outcome.step, outcome.reply)
                    yield outcome.step
            outcomes.sort(key=lambda o: o.step.number)
            self._learn(request, outcomes)
            answer = self.options.aggregator(outcomes)
            await self._phrase(asking, answer, deadline)
        except BaseException as error:
            progress.failed(error)
            raise
        answer.plan = decision.plan
        general = {o.step.number for o in outcomes if o.reply is not None and o.step.service in self._general}
        if general:
            tried = any(step.number in general and step.service not in self._general for step in decision.steps)
            answer.text += "\n" + (_NOT_ABLE if tried else _NO_SPECIALIST)
        progress.done(answer.text)
        yield answer

    async def _decide(self, request: Request, diary: Diary) -> Decision:
        """What is to be done; what was decided in a life before stands."""
        if diary.plan is not None:
            plan, kept = diary.plan
            to_ask = {step.service for number, step in enumerate(plan.steps, 1) if number not in diary.answered}
            await self._gathered(to_ask, request.ttl_ms / 1000)
            return self._decider.again(request, plan, kept, await self._offers())
        decision = await self._decider.decide(request, await self._offers())
        diary.planned(decision)
        return decision

    async def _offers(self) -> list[Offer]:
        assert self._learner is not None
        return [offer for offer in await self._learner.offers() if offer.record.service != ORCHESTRATION]

    async def _gathered(self, services: set[str | None], ttl_s: float) -> None:
        """Waits until they are offered: what stopped this orchestrator may have stopped others, which come back."""
        registry = self._agent.registry
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_GATHERING_S, ttl_s / 2)):
                while not services <= {offer.record.service for offer in registry.offers()}:
                    await registry.changed()

    def _decomposer(self) -> Decomposer:
        if self.options.decomposer is not None:
            return self.options.decomposer
        if self.options.planner is None:
            return self._clauses()
        return ModelDecomposer(self.options.planner, self._clauses(), services=self._services)

    def _clauses(self) -> ClauseDecomposer:
        return ClauseDecomposer(self.classifiers.domains.touched)

    def _services(self) -> list[str]:
        return sorted({o.record.service for o in self._agent.registry.offers() if self._is_specialist(o.record)})

    def _skill(self, agent: str, service: str) -> float:
        return self.classifiers.capability.skill.expected(agent, service).probability

    @property
    def _general(self) -> tuple[str | None, str | None]:
        """The services of general models."""
        return self.options.fallback, self.options.strong

    def _is_specialist(self, record: ServiceRecord) -> bool:
        return record.service not in (ORCHESTRATION, Notes.name, *self._general)

    def _learn(self, request: Request, outcomes: list[Outcome]) -> None:
        """Notes how right everybody was, as far as it shows, and what is worth remembering."""
        # Notes are for everybody; what a cloud is told later may come from them.
        memory = self.knowledge if all_in_words(request) and request.may_leave_edge else None
        texts = Counter(outcome.step.text for outcome in outcomes)
        for outcome in outcomes:
            note_verdicts(self.classifiers.capability.skill, self.classifiers.judge, outcome)
            if memory is None or outcome.step.after or outcome.step.service in self._general:
                continue
            # What several services answered together is no note: each has a part of it only.
            asked = bool(outcome.attempts or outcome.consensus) and texts[outcome.step.text] == 1
            verdict = outcome.step.verdict
            if (
                asked
                and outcome.reply is not None
                and verdict is not None
                and verdict.probability >= self.options.trust
            ):
                # Whom we asked we know; what a reply says of itself is another's text.
                who = {"agent": outcome.step.agent, "service": outcome.step.service}
                memory.remember(outcome.step.text or "", outcome.reply.model_copy(update=who))

    async def _phrase(self, asking: Asking, answer: Answer, deadline: float) -> None:
        service = self.options.phrasing
        if service is None:
            return
        why = f"nobody offers {service}"
        for offer in self._agent.registry.offers(service)[:_MOST_PHRASING]:
            seconds = max(0.001, deadline - asyncio.get_running_loop().time())
            question = Question(request_of(asking.request.text, answer), (), seconds, alone=True)
            try:
                phrased(answer, (await asking.one(offer, question)).output)
                return
            except MqttCollabError as error:
                why = str(error)
        answer.missing.append(f"a phrasing by {service} ({why})")


def orchestrator_agent(
    name: str,
    embedder: Embedder,
    *,
    options: OrchestratorOptions | None = None,
    classifiers: Classifiers | None = None,
    agent_options: AgentOptions | None = None,
    place: str | None = None,
) -> Agent:
    """An agent that orchestrates.

    Args:
        name: the agent's name.
        embedder: finds services by meaning.
        options: how it decides.
        classifiers: replacements for the default chain.
        agent_options: limits and intervals.
        place: where it is.
    """
    agent = Agent(name, description="Orchestrator", place=place, embedder=embedder, options=agent_options)
    orchestrator = Orchestrator(agent, options, classifiers)
    agent.add(orchestrator)
    if orchestrator.knowledge is not None:
        agent.add(Notes(agent, orchestrator.knowledge))
    return agent

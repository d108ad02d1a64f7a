"""Runs a plan: asks the agents, in parallel or in sequence, within the deadline, and tries others where one fails."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from mqttcollab.classifiers.base import AnswerJudge
from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import Offer
from mqttcollab.cooperation.ensemble import Consensus, agree
from mqttcollab.errors import MqttCollabError, RequestError
from mqttcollab.messages import ContextItem, ErrorInfo, Reply, Step, Verdict
from mqttcollab.orchestrator.decide import PlannedStep
from mqttcollab.orchestrator.results import result_of
from mqttcollab.orchestrator.schedule import Ranked, Scheduler
from mqttcollab.peers import unless_lost
from mqttcollab.plans.plan import fill, references

_MOST_ATTEMPTS = 3


@dataclass(slots=True)
class Attempt:
    """What one agent said to a subtask, or why it said nothing."""

    ranked: Ranked
    reply: Reply | None = None
    error: ErrorInfo | None = None
    verdict: Verdict | None = None


@dataclass(slots=True)
class Outcome:
    """What became of one step: how it went, the reply if there was one, everybody who was asked and how they agree."""

    step: Step
    reply: Reply | None = None
    attempts: list[Attempt] = field(default_factory=list)
    consensus: Consensus | None = None


# Asks one agent for a step: the offer, the step, its text with results filled in, context, seconds left.
AskFunction = Callable[[Offer, PlannedStep, str, list[ContextItem], float], Awaitable[Reply]]


@dataclass(slots=True)
class _Run:
    """A plan under way; `levels` says how many steps follow one after the other from each on."""

    ask: AskFunction
    context: Sequence[ContextItem]
    started: float
    deadline: float
    levels: dict[int, int]
    tasks: dict[int, asyncio.Task[Outcome]] = field(default_factory=dict)


@dataclass(slots=True)
class Dispatcher:
    """Runs plans.

    Args:
        registry: to notice agents that vanish.
        scheduler: the order in which agents are tried.
        judge: says whether an answer can be trusted.
        trust: an answer less likely right than this is put to a further agent, where there is one.
        share: False passes no step's result on to another.
    """

    registry: Registry
    scheduler: Scheduler
    judge: AnswerJudge
    trust: float = 0.5
    share: bool = True
    own: Counter[str] = field(default_factory=Counter)

    async def run(
        self, plan: Sequence[PlannedStep], context: Sequence[ContextItem], ask: AskFunction, deadline: float
    ) -> AsyncGenerator[Outcome, None]:
        """Runs all steps; yields each one's outcome as soon as it is known. Closing it cancels what still runs.

        Args:
            plan: its steps, each after those that it waits for.
            context: what every step is given.
            ask: sends a subtask to an agent.
            deadline: loop time by which all has to be done. Steps that wait for each other share what remains.
        """
        run = _Run(ask, context, asyncio.get_running_loop().time(), deadline, _levels(plan))
        for step in plan:
            run.tasks[step.number] = asyncio.create_task(self._step(run, step))
        try:
            for done in asyncio.as_completed(list(run.tasks.values())):
                yield await done
        finally:
            for task in run.tasks.values():
                task.cancel()
            await asyncio.gather(*run.tasks.values(), return_exceptions=True)

    async def _step(self, run: _Run, step: PlannedStep) -> Outcome:
        """Waits for what the step needs, then asks."""
        loop = asyncio.get_running_loop()
        before = [await asyncio.shield(run.tasks[number]) for number in sorted(step.after)]
        begun = loop.time()
        results = {
            o.step.number: result_of(o.step.text or "", o.step.service, o.reply) for o in before if o.reply is not None
        }
        result = Step(
            number=step.number,
            text=step.text,
            service=step.service,
            reason=step.reason,
            after=sorted(step.after),
            start_ms=round(1000 * (begun - run.started), 1),
        )
        outcome = Outcome(result)
        if missing := sorted(references(step.text) - results.keys()):
            result.status = "skipped"
            result.error = ErrorInfo(code="internal", message=f"step {missing[0]}, whose result it needs, gave none")
            return outcome
        result.text = fill(step.text, results)
        if step.recalled is not None:
            outcome.reply = step.recalled.reply()
            result.agent = step.recalled.note.agent
        else:
            passed = [_context(o) for o in before if o.reply is not None] if self.share else []
            seconds = max(0.0, run.deadline - begun) / run.levels[step.number]
            await self._ask_around(run, step, outcome, [*run.context, *passed], begun + seconds)
        result.status = "ok" if outcome.reply is not None else "error"
        result.elapsed_ms = round(1000 * (loop.time() - begun), 1)
        if outcome.reply is not None:
            result.confidence = outcome.reply.confidence
            result.verdict = self._verdict(outcome)
        return outcome

    async def _ask_around(
        self, run: _Run, step: PlannedStep, outcome: Outcome, context: list[ContextItem], deadline: float
    ) -> None:
        """Asks agents until as many as wanted have given an answer that can be trusted; fills the outcome."""
        loop = asyncio.get_running_loop()
        text = outcome.step.text or ""
        left = deque(self.scheduler(step.ranked, self.own)[: max(_MOST_ATTEMPTS, step.answers)])
        if not left:
            outcome.step.error = ErrorInfo(code="no_capability", message=step.reason or "nobody offers it")
            return

        async def one_after_the_other() -> None:
            while left:
                ranked = left.popleft()
                seconds = max(0.001, (deadline - loop.time()) / (1 + len(left)))
                outcome.step.agent = ranked.offer.agent.name
                attempt = Attempt(ranked)
                outcome.attempts.append(attempt)
                await self._attempt(attempt, run.ask(ranked.offer, step, text, context, seconds), others=bool(left))
                if attempt.reply is not None:
                    attempt.verdict = self.judge.judge(text, attempt.reply)
                    if attempt.verdict.probability >= self.trust:
                        return

        async with asyncio.TaskGroup() as group:
            for _ in range(min(step.answers, len(left))):
                group.create_task(one_after_the_other())
        self._conclude(outcome)

    async def _attempt(self, attempt: Attempt, asking: Awaitable[Reply], *, others: bool) -> None:
        name = attempt.ranked.offer.agent.name
        self.own[name] += 1
        try:
            attempt.reply = await unless_lost(asking, self.registry, name, others=others)
        except RequestError as error:
            attempt.error = ErrorInfo(code=error.code, message=error.message)
        except MqttCollabError as error:
            attempt.error = ErrorInfo(code="internal", message=str(error))
        finally:
            self.own[name] -= 1

    def _conclude(self, outcome: Outcome) -> None:
        """Takes the one answer, or what several agree on."""
        answered = [a for a in outcome.attempts if a.reply is not None]
        if not answered:
            last = outcome.attempts[-1]
            outcome.step.agent, outcome.step.error = last.ranked.offer.agent.name, last.error
            return
        chosen = answered[0]
        if len(answered) > 1:
            outcome.consensus = agree([(a.ranked.offer.agent.name, _reply(a), _weight(a)) for a in answered])
            chosen = next(a for a in answered if a.reply is outcome.consensus.reply)
        outcome.step.agent, outcome.reply = chosen.ranked.offer.agent.name, chosen.reply

    def _verdict(self, outcome: Outcome) -> Verdict:
        assert outcome.reply is not None
        verdict = self.judge.judge(outcome.step.text or "", outcome.reply)
        if outcome.consensus is None:
            return verdict
        share = outcome.consensus.agreement
        return Verdict(
            score=verdict.score,
            probability=verdict.probability * share,
            reason=f"{verdict.reason}; {share:.0%} of what was said by weight agrees",
        )


def _levels(plan: Sequence[PlannedStep]) -> dict[int, int]:
    """How many steps follow one after the other from each on, itself included: what its time is divided by."""
    found: dict[int, int] = {}
    for step in reversed(plan):
        found[step.number] = 1 + max((found[o.number] for o in plan if step.number in o.after), default=0)
    return found


def _reply(attempt: Attempt) -> Reply:
    assert attempt.reply is not None
    return attempt.reply


def _weight(attempt: Attempt) -> float:
    assert attempt.verdict is not None
    return attempt.verdict.probability * attempt.ranked.candidate.probability


def _context(outcome: Outcome) -> ContextItem:
    assert outcome.reply is not None
    return ContextItem(
        text=outcome.reply.output or "",
        agent=outcome.step.agent,
        service=outcome.step.service,
        data=outcome.reply.data,
    )

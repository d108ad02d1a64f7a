"""Runs a plan: asks the agents, in parallel or in sequence, within the deadline, and tries others where one fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mqttcollab.classifiers.base import AnswerJudge
from mqttcollab.classifiers.router import Router
from mqttcollab.classifiers.skill import SkillBook
from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import Offer
from mqttcollab.cooperation import Consensus, agree
from mqttcollab.errors import MqttCollabError, RequestError
from mqttcollab.messages import ContextItem, ErrorInfo, Reply, Step, Verdict
from mqttcollab.orchestrator.asking import Asking, Question
from mqttcollab.orchestrator.decide import PlannedStep
from mqttcollab.orchestrator.results import result_of
from mqttcollab.orchestrator.schedule import Ranked, Scheduler
from mqttcollab.peers import unless_lost
from mqttcollab.plans.plan import fill, references

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder

_MOST_ATTEMPTS, _MOST_SPARE = 3, 2
# Of an agent's error, in a reason.
_SHOWN = 200
# The pauses, in seconds, after which one who is busy is asked again.
_BUSY_S = (0.1, 0.2, 0.4, 0.8, 1.6)
# What a strong model's call must gain on average, in right answers.
_STRONG_PRICE = 0.1
# So many verdicts on an agent in a service count as much as the judge's opinion of its answer.
_VERDICTS_THAT_WEIGH_THE_SAME = 4.0


@dataclass(slots=True)
class Attempt:
    """What one agent said to a subtask, or why it said nothing; `seconds` is the time that it was given."""

    offer: Offer
    seconds: float = 0.0
    reply: Reply | None = None
    error: ErrorInfo | None = None

    @property
    def declined(self) -> bool:
        """Whether the agent itself said that it has nothing on this."""
        return self.error is not None and self.error.code == "no_capability" and self.offer.agent.present


@dataclass(slots=True)
class Outcome:
    """What became of one step.

    Attributes:
        step: how it went.
        reply: the answer, if there is one.
        attempts: who was asked one after the other.
        consensus: where several answered.
        relevance: the probability that the step's service matters for what was asked.
    """

    step: Step
    reply: Reply | None = None
    attempts: list[Attempt] = field(default_factory=list)
    consensus: Consensus | None = None
    relevance: float = 1.0

    @property
    def declined(self) -> bool:
        """Whether everybody who was asked said to have nothing on this: it was a wrong guess to ask them."""
        return self.reply is None and bool(self.attempts) and all(attempt.declined for attempt in self.attempts)


@dataclass(slots=True)
class _Run:
    """A plan under way; `levels` says how many steps follow one after the other from each on."""

    asking: Asking
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
        router: says instead of `trust` whether a general model's answer will do, or a strong model is asked.
        share: False passes no step's result on to another.
        skill: how right everybody has been.
    """

    registry: Registry
    scheduler: Scheduler
    judge: AnswerJudge
    trust: float = 0.5
    router: Router | None = None
    share: bool = True
    skill: SkillBook = field(default_factory=SkillBook)
    own: Counter[str] = field(default_factory=Counter)

    async def run(self, plan: Sequence[PlannedStep], asking: Asking, deadline: float) -> AsyncGenerator[Outcome, None]:
        """Runs all steps; yields each one's outcome as soon as it is known. Closing it cancels what still runs.

        Args:
            plan: its steps, each after those that it waits for.
            asking: sends subtasks to agents.
            deadline: loop time by which all has to be done. Steps that wait for each other share what remains.
        """
        run = _Run(asking, asyncio.get_running_loop().time(), deadline, _levels(plan))
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
        result = Step(
            number=step.number,
            text=step.text,
            service=step.service,
            reason=step.reason,
            after=sorted(step.after),
            start_ms=round(1000 * (begun - run.started), 1),
        )
        outcome = Outcome(result, relevance=step.relevance)
        embedder = run.asking.agent.embedder
        results = {o.step.number: self._result(o, embedder) for o in before if o.reply is not None}
        if missing := sorted(references(step.text) - results.keys()):
            result.status = "skipped"
            result.error = ErrorInfo(code="no_capability", message=f"step {missing[0]} gave no result for it")
            return outcome
        result.text = fill(step.text, results)
        context = list(run.asking.request.context)
        if step.recalled is not None:
            outcome.reply, result.agent = step.recalled.reply(run.asking.request.id), step.recalled.note.agent
        else:
            passed = [_context(o) for o in before if o.reply is not None] if self.share else []
            context += passed
            seconds = max(0.0, run.deadline - begun) / run.levels[step.number]
            await self._ask(run.asking, step, outcome, context, begun + seconds)
        result.elapsed_ms = round(1000 * (loop.time() - begun), 1)
        if outcome.reply is None:
            result.status = "skipped" if outcome.declined else "error"
        else:
            result.confidence = outcome.reply.confidence
            result.verdict = self._verdict(outcome, context)
        return outcome

    async def _ask(
        self, asking: Asking, step: PlannedStep, outcome: Outcome, context: list[ContextItem], deadline: float
    ) -> None:
        """Fills the outcome: several agents vote, or one after the other is asked until an answer can be trusted."""
        result = outcome.step
        ranked = self.scheduler(step.ranked, self.own)
        if not ranked and not step.spare:
            result.error = ErrorInfo(code="no_capability", message=step.reason or "nobody offers it")
            return
        text = None if step.whole else result.text
        if step.answers > 1 and len(ranked) > 1:
            question = Question(text, context, max(0.001, deadline - asyncio.get_running_loop().time()))
            try:
                found = await asking.several([one.offer for one in ranked], question, step.answers)
            except RequestError as error:
                result.error = ErrorInfo(code=error.code, message=error.message)
            else:
                outcome.consensus = asking.checked(found, lambda reply: self.judge.check(result.text or "", reply))
                result.agent, outcome.reply = outcome.consensus.agent, outcome.consensus.reply
            if outcome.reply is not None or not step.spare:
                return
            ranked = []
        question = Question(text, context, deadline)
        spare = self.scheduler(step.spare, self.own)[:_MOST_SPARE]
        await self._one_after_the_other(asking, [*ranked[:_MOST_ATTEMPTS], *spare], len(spare), outcome, question)
        # Only a general model's answer is put to a strong one: what a specialist measured or looked up, it can't know.
        if step.strong and (outcome.reply is None or outcome.step.service not in _specialist_services(step)):
            await self._escalate(asking, step, outcome, question)

    async def _escalate(self, asking: Asking, step: PlannedStep, outcome: Outcome, question: Question) -> None:
        """Asks a strong model if the general one's answer won't do; a strong answer stands, no vote is taken."""
        result, why = outcome.step, "nobody else answered"
        if outcome.reply is not None:
            distrust = self._distrust(result.text or "", outcome.reply, question.context)
            if distrust is None:
                return
            why = distrust
        for one in self.scheduler(step.strong, self.own)[:_MOST_SPARE]:
            seconds = max(0.001, question.seconds - asyncio.get_running_loop().time())
            attempt = Attempt(one.offer, seconds)
            outcome.attempts.append(attempt)
            await self._attempt(attempt, asking.one(one.offer, replace(question, seconds=seconds)), others=False)
            if attempt.reply is not None:
                outcome.reply, result.error = attempt.reply, None
                result.agent, result.service = one.offer.agent.name, one.offer.record.service
                result.reason, outcome.consensus = f"{result.reason}; a strong model was asked: {why}", None
                return

    def _distrust(self, text: str, reply: Reply, context: Sequence[ContextItem]) -> str | None:
        """Why a general model's answer won't do; None if it will."""
        if self.router is not None:
            decision = self.router.decide([text], [reply.output or ""] if self.router.reads_answers else None)[0]
            return decision.reason if decision.strong(_STRONG_PRICE) else None
        verdict = self.judge.judge(text, reply, context)
        return verdict.reason if verdict.probability < self.trust else None

    async def _one_after_the_other(
        self, asking: Asking, ranked: list[Ranked], spare: int, outcome: Outcome, question: Question
    ) -> None:
        """Asks until an answer can be trusted, the last `spare` only if there is none.

        `question.seconds` is the loop time by which to end.
        """
        loop, result = asyncio.get_running_loop(), outcome.step
        for left, one in zip(range(len(ranked), 0, -1), ranked, strict=True):
            if left <= spare and any(attempt.reply is not None for attempt in outcome.attempts):
                break
            result.agent, result.service = one.offer.agent.name, one.offer.record.service
            seconds = max(0.001, (question.seconds - loop.time()) / left)
            end = loop.time() + seconds
            attempt = Attempt(one.offer, seconds)
            outcome.attempts.append(attempt)
            await self._attempt(attempt, asking.one(one.offer, replace(question, seconds=seconds)), others=left > 1)
            if left == spare + 1 > 1:
                await self._insist(asking, attempt, replace(question, seconds=end))
            if attempt.reply is not None:
                verdict = self._judged(result, attempt.offer.agent.name, attempt.reply, question.context)
                if verdict.probability >= self.trust:
                    break
        answered = [a for a in outcome.attempts if a.reply is not None]
        if not answered:
            first = outcome.attempts[0]  # what a specialist says of it says more than what the last resort does
            result.agent, result.service, result.error = first.offer.agent.name, first.offer.record.service, first.error
            return
        chosen = answered[0]
        if len(answered) > 1:
            votes = [(a.offer.agent.name, _reply(a), self._weight(result, a)) for a in answered]
            outcome.consensus = agree(votes, question=result.text or "", embedder=asking.agent.embedder)
            if outcome.consensus is not None:
                chosen = next(a for a in answered if a.reply is outcome.consensus.reply)
        result.agent, result.service, outcome.reply = chosen.offer.agent.name, chosen.offer.record.service, chosen.reply
        result.reason = "; ".join([result.reason or "", *(_failed(a) for a in outcome.attempts if a.error is not None)])
        result.error = None  # of those that were asked at once before

    async def _insist(self, asking: Asking, attempt: Attempt, question: Question) -> None:
        """Asks the last one who covers it again while it is busy: a right answer later beats a general model's now."""
        loop = asyncio.get_running_loop()
        for pause in _BUSY_S:
            busy = attempt.error is not None and attempt.error.code == "busy"
            left = question.seconds - loop.time() - pause
            if not busy or left <= 0:
                return
            await asyncio.sleep(pause)
            attempt.error = None
            await self._attempt(attempt, asking.one(attempt.offer, replace(question, seconds=left)), others=False)

    async def _attempt(self, attempt: Attempt, asking: Awaitable[Reply], *, others: bool) -> None:
        name = attempt.offer.agent.name
        self.own[name] += 1
        try:
            attempt.reply = await unless_lost(asking, self.registry, name, others=others)
        except RequestError as error:
            attempt.error = ErrorInfo(code=error.code, message=error.message)
        except MqttCollabError as error:
            attempt.error = ErrorInfo(code="internal", message=str(error))
        finally:
            self.own[name] -= 1

    def _verdict(self, outcome: Outcome, context: Sequence[ContextItem]) -> Verdict:
        assert outcome.reply is not None
        verdict = self._judged(outcome.step, outcome.step.agent or "", outcome.reply, context)
        if outcome.consensus is None:
            return verdict
        agreement = outcome.consensus.agreement
        return Verdict(
            score=verdict.score,
            probability=verdict.probability * agreement,
            reason=f"{verdict.reason}; {agreement:.0%} of the votes agree",
        )

    def _result(self, outcome: Outcome, embedder: Embedder | None) -> str:
        """What stands for a step's result in another's text: the question itself where results are not passed on."""
        assert outcome.reply is not None
        if not self.share:
            return outcome.step.text or ""
        return result_of(outcome.step.text or "", outcome.step.service, outcome.reply, embedder)

    def _judged(self, step: Step, agent: str, reply: Reply, context: Sequence[ContextItem]) -> Verdict:
        """The judge's verdict; of what nobody can check, the more the agent's record counts the longer it is."""
        verdict = self.judge.judge(step.text or "", reply, context)
        known = self.skill.verdicts(agent, step.service)
        if known < 1 or self.judge.check(step.text or "", reply) is not None:
            return verdict
        measured = self.skill.expected(agent, step.service, reply.confidence)
        share = known / (known + _VERDICTS_THAT_WEIGH_THE_SAME)
        return Verdict(
            score=verdict.score,
            probability=(1 - share) * verdict.probability + share * measured.probability,
            reason=f"{verdict.reason}; {measured.reason}",
        )

    def _weight(self, step: Step, attempt: Attempt) -> float:
        checked = self.judge.check(step.text or "", _reply(attempt))
        name, service = attempt.offer.agent.name, attempt.offer.record.service
        return self.skill.expected(name, service).score if checked is None else checked


def _specialist_services(step: PlannedStep) -> set[str]:
    """The services that cover the step; none if nobody does and the general model is asked in the first place."""
    return {one.offer.record.service for one in step.ranked} if step.spare else set()


def _levels(plan: Sequence[PlannedStep]) -> dict[int, int]:
    """How many steps follow one after the other from each on, itself included: what its time is divided by."""
    found: dict[int, int] = {}
    for step in reversed(plan):
        found[step.number] = 1 + max((found[o.number] for o in plan if step.number in o.after), default=0)
    return found


def _failed(attempt: Attempt) -> str:
    assert attempt.error is not None
    return (
        f"@{attempt.offer.agent.name} before: {attempt.error.code}, {' '.join(attempt.error.message.split())[:_SHOWN]}"
    )


def _reply(attempt: Attempt) -> Reply:
    assert attempt.reply is not None
    return attempt.reply


def _context(outcome: Outcome) -> ContextItem:
    assert outcome.reply is not None
    return ContextItem(
        text=outcome.reply.output or "",
        agent=outcome.step.agent,
        service=outcome.step.service,
        data=outcome.reply.data,
    )

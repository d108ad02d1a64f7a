"""One subtask: whom it is put to, in which order, and which answer is taken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import Offer
from mqttcollab.cooperation import Consensus, agree
from mqttcollab.errors import MqttCollabError, RequestError
from mqttcollab.messages import ContextItem, ErrorInfo, Reply, Step
from mqttcollab.orchestrator.asking import Asking, Question
from mqttcollab.orchestrator.decide import PlannedStep
from mqttcollab.orchestrator.placing import Attempt, Placing
from mqttcollab.orchestrator.schedule import LiveFleet, Ranked, edge_first
from mqttcollab.orchestrator.trust import Trust
from mqttcollab.peers import unless_lost
from mqttcollab.scheduling import Decision, Demand

_MOST_ATTEMPTS, _MOST_SPARE = 3, 2
# Of an agent's error, in a reason.
_SHOWN = 200
# So many times what its fastest agent is expected to need, a tier has of the time that is left.
_SLOW = 1.5


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


class _Tier(NamedTuple):
    """Agents that are asked before or after others: at most so many, until a loop time."""

    name: str
    ranked: Sequence[Ranked]
    most: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Means:
    """What all subtasks share.

    Args:
        registry: to notice agents that vanish.
        fleet: the scheduler and what it knows of the agents.
        trust: whether an answer will do.
        patience_s: how long a subtask waits for a free agent before it goes to the cloud, or is given up.
    """

    registry: Registry
    fleet: LiveFleet
    trust: Trust
    patience_s: float = 3.0


@dataclass(slots=True)
class Subtask:
    """A step that is being asked; fills its outcome.

    Args:
        means: whom to ask by.
        asking: sends it.
        step: as it was planned.
        outcome: as far as it has come; its step has the text to be asked.
        context: earlier results.
        deadline: loop time by which to end.
    """

    means: Means
    asking: Asking
    step: PlannedStep
    outcome: Outcome
    context: Sequence[ContextItem]
    deadline: float

    async def ask(self) -> None:
        """Several agents vote, or one after the other is asked until an answer can be trusted."""
        step, result = self.step, self.outcome.step
        if not step.ranked and not step.spare:
            result.error = ErrorInfo(code="no_capability", message=step.reason or "nobody offers it")
            return
        if await self._asked_before():
            return
        asked = [attempt.offer for attempt in self.outcome.attempts]
        ranked = tuple(one for one in edge_first(step.ranked)[0] if one.offer not in asked)
        if step.answers > 1 and len(ranked) > 1:
            await self._vote(ranked)
            if self.outcome.reply is not None or not step.spare:
                return
            ranked = ()
        decision = await self._one_after_the_other(ranked)
        # Only a general model's answer is put to a strong one: what a specialist measured or looked up, it can't know.
        if decision is not None and decision.kind == "cloud":
            await self._escalate(_cloud(step), decision.reason)
        elif self.outcome.reply is None:
            await self._escalate(_last(step), "nobody else answered")
        elif result.service not in _specialist_services(step):
            distrust = self.means.trust.distrust(self._text, self.outcome.reply, self.context)
            if distrust is not None:
                await self._escalate(step.strong, distrust)

    @property
    def _text(self) -> str:
        return self.outcome.step.text or ""

    def _question(self, seconds: float) -> Question:
        text = None if self.step.whole else self._text
        return Question(text, self.context, max(0.001, seconds), step=self.step.number)

    async def _asked_before(self) -> bool:
        """Whether somebody who was asked in a life before has a good answer: who is still at it is not asked anew."""
        offers = {
            (one.offer.agent.name, one.offer.record.service): one.offer
            for one in (*self.step.ranked, *self.step.spare, *self.step.strong)
        }
        for dispatch in self.asking.diary.unanswered.pop(self.step.number, ()):
            offer = offers.get((dispatch.agent, dispatch.service))
            if offer is None:
                continue
            left = self.deadline - asyncio.get_running_loop().time()
            attempt = Attempt(offer, left / 2, "it was asked before this orchestrator was started again")
            asking = self.asking.one(offer, self._question(attempt.seconds), wait_s=0.0, again=dispatch.request)
            with contextlib.suppress(MqttCollabError):
                attempt.reply = await unless_lost(asking, self.means.registry, dispatch.agent, others=True)
                verdict = self.means.trust.verdict(self.outcome.step, offer.agent.name, attempt.reply, self.context)
                self.outcome.attempts = [attempt]
                if verdict.probability < self.means.trust.least:
                    return False  # a further agent is asked, as ever
                self._take(attempt)
                return True
        return False

    async def _vote(self, ranked: Sequence[Ranked]) -> None:
        """Asks several at once, those with the least to do first."""
        result, outcome = self.outcome.step, self.outcome
        offers = [one.offer for one in self.means.fleet.by_pressure(ranked)]
        question = self._question(self.deadline - asyncio.get_running_loop().time())
        try:
            found = await self.asking.several(offers, question, self.step.answers)
        except RequestError as error:
            result.error = ErrorInfo(code=error.code, message=error.message)
        else:
            outcome.consensus = self.asking.checked(found, lambda reply: self.means.trust.check(result, reply))
            result.agent, outcome.reply = outcome.consensus.agent, outcome.consensus.reply

    async def _escalate(self, strong: Sequence[Ranked], why: str) -> None:
        """Asks a strong model; its answer stands, no vote is taken."""
        result = self.outcome.step
        if not strong:
            result.reason = "; ".join(filter(None, (result.reason, self.step.no_cloud)))
            self._add_to_error(self.step.no_cloud)
            return
        before = list(self.outcome.attempts)
        decision = await self._tier(_Tier("strong", strong, _MOST_SPARE, self.deadline), until_trusted=False)
        result.reason = f"{result.reason}; a strong model was asked: {why}"
        asked = [attempt for attempt in self.outcome.attempts if attempt not in before]
        answered = next((attempt for attempt in asked if attempt.reply is not None), None)
        if answered is not None:
            self._take(answered)
            self.outcome.consensus = None
            return
        error = next((attempt.error for attempt in asked if attempt.error is not None), None)
        if error is not None:
            vain = _failed(next(attempt for attempt in asked if attempt.error is error))
        elif decision is not None:
            error, vain = ErrorInfo(code=decision.code, message=decision.reason), decision.reason
        else:
            return
        result.reason += f", in vain: {vain}"
        if result.error is None or result.error.code == "busy":
            result.error = error.model_copy(update={"message": f"{why}, and the strong model: {vain}"})
        else:
            self._add_to_error(f"the strong model: {vain}")

    def _add_to_error(self, text: str) -> None:
        error = self.outcome.step.error
        if error is not None and text and text not in error.message:
            self.outcome.step.error = error.model_copy(update={"message": f"{error.message}; {text}"})

    async def _one_after_the_other(self, ranked: Sequence[Ranked]) -> Decision | None:
        """Asks until an answer can be trusted, the spare ones only if there is none.

        Returns what the scheduler said where nobody answered and it named no agent.
        """
        outcome, result, decision = self.outcome, self.outcome.step, None
        spare, _ = edge_first(self.step.spare)
        counts = (min(_MOST_ATTEMPTS, len(ranked)), min(_MOST_SPARE, len(spare)))
        tiers = (("ranked", ranked, counts[0], sum(counts)), ("spare", spare, counts[1], counts[1]))
        for name, tried, most, left in tiers:
            if not tried or (name == "spare" and any(attempt.reply is not None for attempt in outcome.attempts)):
                continue
            now = asyncio.get_running_loop().time()
            share = self.deadline if most == left else now + (self.deadline - now) * most / left
            decision = await self._tier(_Tier(name, tried, most, share))
            if decision is not None and decision.kind == "cloud":
                break
        answered = [a for a in outcome.attempts if a.reply is not None]
        if not answered:
            self._nobody(decision)
            return decision
        chosen = answered[0]
        if len(answered) > 1:
            votes = [(a.offer.agent.name, a.given, self._weight(a)) for a in answered]
            outcome.consensus = agree(votes, question=self._text, embedder=self.asking.agent.embedder)
            if outcome.consensus is not None:
                chosen = next(a for a in answered if a.reply is outcome.consensus.reply)
        self._take(chosen)
        result.reason = "; ".join(
            [result.reason or "", *(_failed(a, " before") for a in outcome.attempts if a.error is not None)]
        )
        return None

    async def _tier(self, tier: _Tier, *, until_trusted: bool = True) -> Decision | None:
        """Asks the agents of one tier, whom and when the scheduler says."""
        outcome, means = self.outcome, self.means
        placing = Placing(means.fleet, means.registry, self._demand(tier), tier.ranked, tier.most)

        def ask(offer: Offer, seconds: float, wait_s: float) -> Awaitable[Reply]:
            return self.asking.one(offer, self._question(seconds), wait_s=wait_s)

        async with contextlib.aclosing(placing.attempts(ask)) as attempts:
            async for attempt in attempts:
                # Who was busy and is asked again is told of once.
                outcome.attempts = [a for a in outcome.attempts if a.offer is not attempt.offer] + [attempt]
                if attempt.reply is None:
                    continue
                verdict = means.trust.verdict(outcome.step, attempt.offer.agent.name, attempt.reply, self.context)
                if not until_trusted or verdict.probability >= means.trust.least:
                    break
        return placing.decision

    def _demand(self, tier: _Tier) -> Demand:
        """The subtask as the scheduler sees it; data can't be had from a cloud."""
        request, fleet = self.asking.request, self.means.fleet
        now = asyncio.get_running_loop().time()
        demand = fleet.demand(
            request,
            f"{request.reply_to}.{self.step.number}.{tier.name}",
            self._text,
            tier.ranked[0].offer.record.service,
            self.asking.budget_usd,
            wait_until=min(now + self.means.patience_s, tier.deadline),
            deadline=tier.deadline,
        )
        # Who is slow gets more than the tier's share of the time, rather than that it goes elsewhere at once.
        if tier.deadline < self.deadline:
            needed = now + _SLOW * fleet.least_s(demand, tier.ranked)
            demand = replace(demand, deadline=min(self.deadline, max(tier.deadline, needed)))
        if tier.name == "strong" or tier.ranked[0].offer.record.leaves_edge:
            return fleet.with_cloud(demand, (), "there is nobody else")
        measured = self.step.service.startswith("data.gpt/")
        return fleet.with_cloud(demand, () if measured else _cloud(self.step), self.step.no_cloud)

    def _take(self, attempt: Attempt) -> None:
        result, record = self.outcome.step, attempt.offer.record
        result.agent, result.service, result.error = attempt.offer.agent.name, record.service, None
        self.outcome.reply = attempt.reply
        result.reason = "; ".join(filter(None, (result.reason, attempt.why)))

    def _nobody(self, decision: Decision | None) -> None:
        """What is said where nobody answered: of a specialist rather than of the last resort."""
        result = self.outcome.step
        if self.outcome.attempts:
            first = self.outcome.attempts[0]
            result.agent, result.service, result.error = first.offer.agent.name, first.offer.record.service, first.error
        elif decision is not None and decision.kind != "cloud":  # what the cloud says is said
            result.error = ErrorInfo(code=decision.code, message=decision.reason)

    def _weight(self, attempt: Attempt) -> float:
        record = attempt.offer.record
        return self.means.trust.weight(self.outcome.step, record.agent, record.service, attempt.given)


def _last(step: PlannedStep) -> tuple[Ranked, ...]:
    """Who is asked where nobody else answers: strong models, and those of the others that are in a cloud."""
    return (*step.strong, *edge_first(step.ranked)[1], *edge_first(step.spare)[1])


def _cloud(step: PlannedStep) -> tuple[Ranked, ...]:
    """Those of them that are in a cloud."""
    return tuple(one for one in _last(step) if one.offer.record.leaves_edge)


def _specialist_services(step: PlannedStep) -> set[str]:
    """The services that cover the step; none if nobody does and the general model is asked in the first place."""
    return {one.offer.record.service for one in step.ranked} if step.spare else set()


def _failed(attempt: Attempt, when: str = "") -> str:
    assert attempt.error is not None
    said = " ".join(attempt.error.message.split())[:_SHOWN]
    return f"@{attempt.offer.agent.name}{when}: {attempt.error.code}, {said}"

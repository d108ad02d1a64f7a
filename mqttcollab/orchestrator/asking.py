"""Sends subtasks to agents on behalf of a request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mqttcollab.agent import Agent
from mqttcollab.cms.views import Offer
from mqttcollab.cooperation import Consensus, agree, ask_many
from mqttcollab.errors import RequestError
from mqttcollab.messages import ContextItem, Reply, Request, ServiceRecord
from mqttcollab.orchestrator.diary import Diary

Skill = Callable[[str, str], float]

# Who answers so has done nothing that costs.
_FREE = ("bad_request", "busy", "no_capability", "quota_exceeded", "too_large", "unauthorized", "unsupported")


@dataclass(frozen=True, slots=True)
class Question:
    """A subtask as it goes out.

    Attributes:
        text: None stands for the request's own input, which may be more than text.
        seconds: until it is void.
        alone: whether nothing else of the request goes with it.
        step: of the plan; 0 for none.
    """

    text: str | None
    context: Sequence[ContextItem]
    seconds: float
    alone: bool = False
    step: int = 0


@dataclass(slots=True)
class Asking:
    """Asks in the name of a request: with its parameters, its session and what is left of its budget.

    A flat price is set aside while its agent works, and all that is left for one that charges by the token: nobody
    else gets it meanwhile, so that the sum holds whatever several of them charge at the same time. Who finds too
    little waits for what others may not need. What nobody accounts for counts as spent.

    Args:
        agent: who asks; follows the registry.
        request: what it serves.
        skill: how right an agent usually is in a service, 0 to 1.
        diary: notes who is asked, and knows what was spent before.
    """

    agent: Agent
    request: Request
    skill: Skill
    diary: Diary = field(default_factory=Diary)
    _spent_usd: float = field(init=False)
    _held_usd: list[float] = field(default_factory=list, init=False)
    _returned: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._spent_usd = self.diary.spent_usd

    @property
    def budget_usd(self) -> float | None:
        """What is left of the budget, and not set aside; None without one."""
        given = self.request.budget_usd
        return None if given is None else max(0.0, given - self._spent_usd - sum(self._held_usd))

    async def one(
        self, offer: Offer, question: Question, *, wait_s: float | None = None, again: str | None = None
    ) -> Reply:
        """Asks one agent.

        Args:
            offer: whom; what counts is its record as it is now.
            question: what.
            wait_s: after so many seconds in its queue it answers `busy`; None lets the request wait there.
            again: the id of the request with which it was asked in a life before.

        Raises:
            RequestError: it must not be asked (`unauthorized`, `quota_exceeded`), or its answer is an error.
        """
        record = self._record(offer)
        self._check_edge(record)
        if self.request.budget_usd is None or not _charges(record):
            return await self._ask(offer, question, wait_s, self.budget_usd, again)
        deadline = asyncio.get_running_loop().time() + question.seconds
        held = cost = await self._hold(record, question.seconds)
        try:
            left_s = max(0.001, deadline - asyncio.get_running_loop().time())
            reply = await self._ask(offer, replace(question, seconds=left_s), wait_s, held, again)
            cost = max(record.price_usd, reply.usage.cost_usd if reply.usage is not None else 0.0)
            return reply
        except RequestError as error:
            if error.code in _FREE:
                cost = 0.0
            raise
        finally:
            self._held_usd.remove(held)
            self._spent_usd += cost
            self._returned.set()

    async def _hold(self, record: ServiceRecord, seconds: float) -> float:
        """Sets aside what an agent may charge; waits while others may give back what is missing."""
        by_token = bool(record.prompt_usd_per_mtok or record.completion_usd_per_mtok)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    left = self.budget_usd or 0.0
                    if record.price_usd <= left and (left or not by_token):
                        held = left if by_token else record.price_usd
                        self._held_usd.append(held)
                        return held
                    if not self._held_usd:
                        break
                    self._returned.clear()
                    await self._returned.wait()
        price = "by the token" if by_token else f"{record.price_usd:.4f} US dollars"
        text = f"@{record.agent} charges {price}, and {self.budget_usd:.4f} US dollars are left of the budget"
        raise RequestError("quota_exceeded", text)

    async def _ask(
        self, offer: Offer, question: Question, wait_s: float | None, budget_usd: float | None, again: str | None
    ) -> Reply:
        service, agent = offer.record.service, offer.agent.name
        request = again or self.diary.dispatched(question.step, agent, service)
        # Without an answer nobody knows what it took.
        most = offer.record.price_usd if budget_usd is None else budget_usd
        status, cost = "cancelled", most if _charges(offer.record) else 0.0
        try:
            reply = await self.agent.ask(
                self._input(question),
                service=service,
                agent=agent,
                ttl_s=question.seconds,
                max_wait_ms=None if wait_s is None else int(1000 * wait_s),
                budget_usd=budget_usd,
                id=request,
                **self._fields(question),
            )
            status, cost = "ok", max(offer.record.price_usd, reply.usage.cost_usd if reply.usage is not None else 0.0)
            return reply
        except RequestError as error:
            status, cost = error.code, 0.0 if error.code in _FREE else cost
            raise
        finally:
            self.diary.replied(question.step, agent, request, status, cost)

    async def several(self, offers: Sequence[Offer], question: Question, count: int) -> Consensus:
        """Asks this many agents at once, and lets them vote; those only that the budget has the price of, for all."""
        asked = self._affordable(offers, count)
        return await ask_many(
            self.agent,
            self._input(question),
            [(offer.record.service, offer.agent.name) for offer in asked],
            k=count,
            ttl_s=question.seconds,
            weigh=self.skill,
            embedder=self.agent.embedder,
            **self._fields(question),
        )

    def _affordable(self, offers: Sequence[Offer], count: int) -> list[Offer]:
        """Those that may be asked; where there is a budget, of those that charge `count` at most, whose price is spent.

        Raises:
            RequestError: nobody may.
        """
        asked: list[Offer] = []
        refused: RequestError | None = None
        for offer in offers:
            record = self._record(offer)
            try:
                self._check_edge(record)
            except RequestError as error:
                refused = error
                continue
            left = self.budget_usd
            if left is not None and _charges(record):
                by_token = record.prompt_usd_per_mtok or record.completion_usd_per_mtok
                if by_token or record.price_usd > left or len(asked) >= count:
                    text = f"@{record.agent} charges more than the {left:.4f} US dollars that are left of the budget"
                    refused = RequestError("quota_exceeded", text)
                    continue
                self._spent_usd += record.price_usd
                self.diary.replied(0, record.agent, None, "asked", record.price_usd)
            asked.append(offer)
        if not asked and refused is not None:
            raise refused
        return asked

    def _record(self, offer: Offer) -> ServiceRecord:
        """The record as it is now, which may be another than when the plan was made."""
        view = self.agent.registry.agents.get(offer.agent.name)
        return offer.record if view is None else view.records.get(offer.record.service, offer.record)

    def _check_edge(self, record: ServiceRecord) -> None:
        if record.leaves_edge and not self.request.may_leave_edge:
            text = f"the question must not leave the edge, and @{record.agent} passes it on to a cloud"
            raise RequestError("unauthorized", text)

    def checked(self, found: Consensus, check: Callable[[Reply], float | None]) -> Consensus:
        """The vote again, with those answers that can be checked weighed by that, whatever their givers claim."""
        votes = [vote for group in found.groups for vote in group]
        right = [check(vote.reply) for vote in votes]
        if all(one is None for one in right):
            return found
        weights = [
            self.skill(vote.agent, vote.reply.service or "") if one is None else one
            for vote, one in zip(votes, right, strict=True)
        ]
        replies = [(vote.agent, vote.reply, weight) for vote, weight in zip(votes, weights, strict=True)]
        again = agree(replies, embedder=self.agent.embedder)
        return found if again is None else replace(again, failures=found.failures)

    def _input(self, question: Question) -> str | dict[str, Any]:
        given = self.request.input
        if question.text is None:
            return given
        return {**given, "text": question.text} if isinstance(given, dict) and not question.alone else question.text

    def _fields(self, question: Question) -> dict[str, Any]:
        if question.alone:
            return {"priority": self.request.priority}
        return {
            "context": question.context,
            "parameters": self.request.parameters,
            "session": self.request.session,
            "priority": self.request.priority,
        }


def _charges(record: ServiceRecord) -> bool:
    return bool(record.price_usd or record.prompt_usd_per_mtok or record.completion_usd_per_mtok)

"""Sends subtasks to agents on behalf of a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mqttcollab.agent import Agent
from mqttcollab.cms.views import Offer
from mqttcollab.cooperation import Consensus, agree, ask_many
from mqttcollab.errors import DeadlineExceeded, RequestError
from mqttcollab.messages import ContextItem, Reply, Request

Skill = Callable[[str, str], float]


@dataclass(frozen=True, slots=True)
class Question:
    """A subtask as it goes out.

    Attributes:
        text: None stands for the request's own input, which may be more than text.
        seconds: until it is void.
    """

    text: str | None
    context: Sequence[ContextItem]
    seconds: float


@dataclass(slots=True)
class Asking:
    """Asks in the name of a request: with its parameters, its session and what is left of its budget.

    Whoever charges gets all that is left as his budget and nobody else gets it meanwhile, so that the sum holds
    whatever several of them charge at the same time. What nobody accounts for counts as spent.

    Args:
        agent: who asks.
        request: what it serves.
        skill: how right an agent usually is in a service, 0 to 1.
    """

    agent: Agent
    request: Request
    skill: Skill
    _spent_usd: float = field(default=0.0, init=False)

    @property
    def budget_usd(self) -> float | None:
        """What is left of the budget; None without one."""
        given = self.request.budget_usd
        return None if given is None else max(0.0, given - self._spent_usd)

    async def one(self, offer: Offer, question: Question, *, queues: bool = True) -> Reply:
        """Asks one agent; unless the request may wait there, it is answered `busy` where no slot is free."""
        left = self.budget_usd
        if left is None or not _charges(offer):
            return await self._ask(offer, question, queues, left)
        self._spent_usd += left
        try:
            reply = await self._ask(offer, question, queues, left)
        except RequestError as error:
            if not isinstance(error, DeadlineExceeded):
                self._spent_usd -= left  # who refuses charges nothing
            raise
        self._spent_usd += (reply.usage.cost_usd if reply.usage is not None else offer.record.price_usd) - left
        return reply

    async def _ask(self, offer: Offer, question: Question, queues: bool, budget_usd: float | None) -> Reply:
        return await self.agent.ask(
            self._input(question),
            service=offer.record.service,
            agent=offer.agent.name,
            ttl_s=question.seconds,
            max_wait_ms=None if queues else 0,
            budget_usd=budget_usd,
            **self._fields(question),
        )

    async def several(self, offers: Sequence[Offer], question: Question, count: int) -> Consensus:
        """Asks this many agents at once, and lets them vote."""
        return await ask_many(
            self.agent,
            self._input(question),
            [(offer.record.service, offer.agent.name) for offer in offers],
            k=count,
            ttl_s=question.seconds,
            weigh=self.skill,
            embedder=self.agent.embedder,
            **self._fields(question),
        )

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
        return {**given, "text": question.text} if isinstance(given, dict) else question.text

    def _fields(self, question: Question) -> dict[str, Any]:
        return {
            "context": question.context,
            "parameters": self.request.parameters,
            "session": self.request.session,
            "priority": self.request.priority,
        }


def _charges(offer: Offer) -> bool:
    record = offer.record
    return bool(record.price_usd or record.prompt_usd_per_mtok or record.completion_usd_per_mtok)

"""The scheduler's view of the live fleet: offers become candidates, load reports reach the book."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import AgentView, Offer
from mqttcollab.messages import Candidate, Reply, Request
from mqttcollab.scheduling import Candidates, Demand, Placer, Scheduler, Terms
from mqttcollab.scheduling.frugal import WAITING_COST

# English text, as language models count it; nobody's tokenizer is known here.
_CHARACTERS_PER_TOKEN = 4


class Ranked(NamedTuple):
    """An offer, and what capability matching thinks of it."""

    offer: Offer
    candidate: Candidate


class LiveFleet:
    """Turns offers into a scheduler's candidates and keeps its book by what agents report.

    Args:
        registry: followed.
        scheduler: whose book is kept.
    """

    def __init__(self, registry: Registry, scheduler: Scheduler) -> None:
        self.placer = Placer(scheduler)
        self._book = scheduler.book
        self._registry = registry
        registry.on_load(self._reported)
        self._follower = asyncio.create_task(self._follow())

    def stop(self) -> None:
        """Hears no more reports; those that wait for a place are cancelled."""
        self._registry.off_load(self._reported)
        self._follower.cancel()
        self.placer.stop()

    def candidates(self, ranked: Sequence[Ranked]) -> Candidates:
        """The rows of offers, in their order, with the scores of their candidates."""
        rows = [self._row(one.offer) for one in ranked]
        return self._book.candidates(rows, [one.candidate.score for one in ranked])

    def demand(
        self, request: Request, name: str, text: str, service: str, budget_usd: float | None, **fields: float | str
    ) -> Demand:
        """A subtask as the scheduler sees it; `fields` are those of Demand that its place in the plan decides."""
        tokens = self._book.tokens(service)
        limit = request.parameters.max_tokens
        context = sum(len(item.text) for item in request.context)
        return Demand(
            id=name,
            tokens=tokens if limit is None else min(limit, tokens),
            prompt_tokens=(len(text) + context) / _CHARACTERS_PER_TOKEN,
            arrived=self.placer.now,
            budget_usd=math.inf if budget_usd is None else budget_usd,
            service=service,
            tenant=request.tenant or "",
            priority=request.priority,
            **fields,  # type: ignore[arg-type]
        )

    def with_cloud(self, demand: Demand, cloud: Sequence[Ranked], no_cloud: str) -> Demand:
        """The demand with what the cloud would charge and take, or why it is no choice."""
        if not cloud:
            return replace(demand, no_cloud=no_cloud)
        fleet = self._book.fleet(self.candidates(cloud), self.placer.now)
        prices, seconds = fleet.prices(demand), fleet.seconds(demand)
        return replace(demand, cloud_usd=float(prices.min()), cloud_s=float(seconds.min()))

    def least_s(self, demand: Demand, ranked: Sequence[Ranked]) -> float:
        """How long the fastest of them should take, in seconds."""
        return float(self._book.fleet(self.candidates(ranked), self.placer.now).seconds(demand).min())

    def by_pressure(self, ranked: Sequence[Ranked]) -> list[Ranked]:
        """Those awake before sleepers, then the able and idle before the rest."""
        fleet = self._book.fleet(self.candidates(ranked), self.placer.now)
        worth = fleet.rows["score"] - WAITING_COST * fleet.load() - 1e6 * fleet.rows["asleep"]
        return [ranked[number] for number in (-worth).argsort(kind="stable")]

    def worked(self, reply: Reply) -> tuple[float, float]:
        """How long an agent worked on a reply, in seconds (0 if it does not say), and the tokens that it wrote."""
        elapsed = reply.timing.elapsed_ms if reply.timing is not None else None
        tokens = reply.usage.completion_tokens if reply.usage is not None else 0
        return (elapsed or 0.0) / 1000, tokens

    def _row(self, offer: Offer) -> int:
        record, agent = offer.record, offer.agent
        known = len(self._book)
        row = self._book.row(agent.name, record.service, _terms(offer))
        if len(self._book) > known and agent.load is not None:
            self._reported(agent)
        self._book.asleep(agent.name, agent.asleep)
        return row

    async def _follow(self) -> None:
        """Notes who falls asleep, and who wakes while requests wait for it."""
        while True:
            version = self._registry.version
            await self._registry.changed()
            for change in self._registry.changes_since(version):
                if change.kind in ("online", "degraded", "sleeping"):
                    self._book.asleep(change.agent, change.kind == "sleeping")
                    self.placer.changed()

    def _reported(self, agent: AgentView) -> None:
        load = agent.load
        if load is not None:
            self._book.reported(
                agent.name,
                self.placer.now,
                running=load.running,
                queued=load.queued,
                slots=load.slots,
                battery=load.battery,
                drain_per_h=load.drain_per_h,
                thermal=load.thermal,
                link=load.link,
            )
            self.placer.changed()


def edge_first(ranked: Sequence[Ranked]) -> tuple[tuple[Ranked, ...], tuple[Ranked, ...]]:
    """Those that keep a question on the edge, and those that don't; the latter alone stand in for the former."""
    near = tuple(one for one in ranked if not one.offer.record.leaves_edge)
    far = tuple(one for one in ranked if one.offer.record.leaves_edge)
    return (near, far) if near else (far, ())


def _terms(offer: Offer) -> Terms:
    """What is known before anything was measured; who says nothing of its speed is tried first, to learn it."""
    record, load = offer.record, offer.agent.load
    speed = load.tokens_per_s if load is not None and load.tokens_per_s else math.inf
    return Terms(
        tokens_per_s=speed,
        prompt_tokens_per_s=math.inf,
        slots=record.concurrency,
        price_usd=record.price_usd,
        prompt_usd_per_mtok=record.prompt_usd_per_mtok,
        completion_usd_per_mtok=record.completion_usd_per_mtok,
        place=record.place,
    )

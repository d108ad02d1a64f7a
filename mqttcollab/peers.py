"""How an agent asks its peers: which of them are asked, and what follows when one is busy or vanishes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import Offer
from mqttcollab.errors import DeadlineExceeded, RequestError
from mqttcollab.messages import Reply
from mqttcollab.rpc import Requester
from mqttcollab.rpc.trace import current_request
from mqttcollab.topics import check_service, request_topic

_log = logging.getLogger(__name__)

_TRY_ANOTHER = ("busy", "no_capability", "unsupported")
_MOST_ATTEMPTS = 3
_NAMED_OFFERS = 5
# Longer than an agent takes to connect again (`MqttOptions.backoff_max_s`).
_COMES_BACK_S = 5.0


class Limits(NamedTuple):
    """When to give up: seconds in all, seconds without a sign of life; and who is told of every part."""

    ttl_s: float
    idle_s: float | None = None
    on_part: Callable[[Reply], None] | None = None


class Peers:
    """The other agents, seen from one.

    Args:
        requester: asks under the agent's name.
        registry: who is there; followed from the first question on that needs it.
        threshold: the least closeness (cosine) at which a question by meaning goes to a peer.
    """

    def __init__(self, requester: Requester, registry: Registry, threshold: float) -> None:
        self._requester = requester
        self._registry = registry
        self._threshold = threshold
        self._followed = False
        self._following = asyncio.Lock()

    async def follow(self) -> Registry:
        """The live registry, complete when this returns."""
        async with self._following:
            if not self._followed:
                await self._registry.start()
                await self._registry.settle()
                self._followed = True
        return self._registry

    async def ask(
        self,
        question: str | dict[str, Any],
        service: str | None,
        agent: str | None,
        limits: Limits,
        fields: dict[str, Any],
    ) -> Reply:
        """Asks the agents that can answer, one after the other, until one does.

        Args:
            question: in words, or a map.
            service: a name, or an MQTT filter over names; None chooses by meaning.
            agent: who is to be asked; None leaves it open.
            limits: when to give up.
            fields: of the request.

        Raises:
            RequestError: nobody offers it, or the last one asked did not answer.
        """
        if service is not None and not _is_filter(service):
            check_service(service)
        deadline = asyncio.get_running_loop().time() + limits.ttl_s
        direct, stays = _direct(service, agent), _stays(fields)
        try:
            async with asyncio.timeout_at(deadline):
                targets = [direct] if direct is not None else await self._targets(question, service, agent, stays)
        except TimeoutError:
            raise DeadlineExceeded(f"no connection to the broker within {limits.ttl_s:g} s") from None
        for left, (name, peer) in zip(range(len(targets) - 1, -1, -1), targets, strict=True):
            left_s = deadline - asyncio.get_running_loop().time()
            request = self._requester.new_request(question, service=name, ttl_ms=max(1, int(1000 * left_s)), **fields)
            try:
                asking = self._requester.ask(
                    request_topic(name, peer), request, idle_s=limits.idle_s, on_part=limits.on_part
                )
                if direct is not None:
                    return await asking
                durable_s = left_s / (2 if left else 1) if self._durable(name, peer) else 0.0
                return await unless_lost(asking, self._registry, peer, others=bool(left), durable_s=durable_s)
            except RequestError as error:
                if not left or error.code not in _TRY_ANOTHER:
                    raise
                _log.info("@%s does not answer (%s); trying another", peer, error)
        raise AssertionError("unreachable: somebody was asked")

    def _durable(self, service: str, peer: str) -> bool:
        view = self._registry.agents.get(peer)
        record = (view.records.get(service) or view.lost.get(service)) if view is not None else None
        return record is not None and record.durable

    async def _targets(
        self, question: str | dict[str, Any], service: str | None, agent: str | None, stays: bool
    ) -> list[tuple[str, str]]:
        registry = await self.follow()
        own = self._requester.name
        # Who is durable and was lost just now is asked all the same, where nobody else is there: it comes back to it.
        offered = registry.offers(service or "#"), registry.expected(service) if service is not None else []
        found: list[Offer] = []
        for offers in offered:
            found = found or [o for o in offers if o.agent.name == agent or (not agent and o.agent.name != own)]
        if not found:
            raise RequestError("no_capability", self._nobody(service, agent))
        offers = [offer for offer in found if not (stays and offer.record.leaves_edge)]
        if not offers:
            names = ", ".join(sorted(f"@{offer.agent.name}" for offer in found)[:_NAMED_OFFERS])
            raise RequestError(
                "unauthorized", f"the question must not leave the edge; only a cloud ({names}) offers it"
            )
        if service is None and (agent is None or len(offers) > 1):
            offers = self._by_meaning(question, agent, stays)
        return [(offer.record.service, offer.agent.name) for offer in offers[:_MOST_ATTEMPTS]]

    def _by_meaning(self, question: str | dict[str, Any], agent: str | None, stays: bool) -> list[Offer]:
        text = question if isinstance(question, str) else str(question.get("text", question))
        ranked = [match for match in self._registry.nearest(text) if not (stays and match.offer.record.leaves_edge)]
        if agent is not None:  # whoever names an agent wants that one, however far the question is from what it does
            return [match.offer for match in ranked if match.offer.agent.name == agent][:1]
        others = [match for match in ranked if match.offer.agent.name != self._requester.name]
        near = [match.offer for match in others if match.score >= self._threshold]
        if not near:
            closest = others[0]
            raise RequestError(
                "no_capability",
                f"no agent that is online offers anything close to the question: the closest is"
                f" {closest.offer.record.service} of @{closest.offer.agent.name} ({closest.score:.2f}, it takes"
                f" {self._threshold:g}); name a service to ask it all the same",
            )
        return near

    def _nobody(self, service: str | None, agent: str | None) -> str:
        names = sorted({o.record.service for o in self._registry.offers() if o.agent.name != self._requester.name})
        who = f"no agent @{agent} that is online" if agent is not None else "no agent that is online"
        said = f"{who} offers {service or 'a service'}"
        if not names:
            return f"{said}: nobody else is there"
        more = f" and {len(names) - _NAMED_OFFERS} more" if len(names) > _NAMED_OFFERS else ""
        return f"{said}; on offer: {', '.join(names[:_NAMED_OFFERS])}{more}"


async def unless_lost(
    asking: Awaitable[Reply], registry: Registry, agent: str, *, others: bool, durable_s: float = 0.0
) -> Reply:
    """Waits for an agent's answer, but no longer than the agent is there.

    Args:
        asking: the question.
        registry: knows whether the agent is there; followed.
        agent: who is asked.
        others: whether somebody else could be asked instead. Else the agent gets some seconds to come back, since
            it may have lost its connection only, and still be at work.
        durable_s: seconds that it gets to come back where it is durable, also to a new life: it goes on then, or
            whoever shares its journal did so meanwhile. 0 where it is not.

    Raises:
        RequestError: the agent went offline.
    """
    answer = asyncio.ensure_future(asking)
    grace_s = durable_s or (0.0 if others else _COMES_BACK_S)
    lost = asyncio.ensure_future(registry.gone(agent, grace_s=grace_s, reborn=durable_s > 0))
    try:
        await asyncio.wait([answer, lost], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise RequestError("no_capability", f"@{agent} went offline before it answered")
    finally:
        answer.cancel()
        lost.cancel()
        await asyncio.gather(answer, lost, return_exceptions=True)


def _stays(fields: dict[str, Any]) -> bool:
    """Whether a request with these fields must not leave the edge, also because the one that it serves must not."""
    parent = current_request.get()
    return not fields.get("may_leave_edge", parent is None or parent.may_leave_edge)


def _direct(service: str | None, agent: str | None) -> tuple[str, str] | None:
    return None if service is None or agent is None or _is_filter(service) else (service, agent)


def _is_filter(service: str) -> bool:
    return "+" in service or "#" in service

"""Which agent gets a subtask, where several offer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mqttcollab.cms.views import Offer

# Puts the agents that offer a service in the order in which they are tried; `own` counts the requests that this
# orchestrator has with each agent and that no report shows yet.
Scheduler = Callable[[Sequence[Offer], dict[str, int]], list[Offer]]


def least_pressure(offers: Sequence[Offer], own: dict[str, int]) -> list[Offer]:
    """Those that are awake before sleepers, then by requests per slot: the larger of reported and our own."""

    def pressure(offer: Offer) -> float:
        slots = offer.agent.load.slots if offer.agent.load is not None else offer.record.concurrency
        return max(offer.pressure, own.get(offer.agent.name, 0) / max(1, slots))

    return sorted(offers, key=lambda offer: (offer.agent.asleep, pressure(offer)))

"""Which agent gets a subtask, where several could do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mqttcollab.cms.views import Offer
from mqttcollab.messages import Candidate

# What a request in front of ours costs, per slot, in the units of a candidate's score (1: surely right).
_WAITING_COST = 0.1


class Ranked(NamedTuple):
    """An offer, and what capability matching thinks of it."""

    offer: Offer
    candidate: Candidate


# Puts the agents that could do a subtask in the order in which they are tried; `own` counts the requests that this
# orchestrator has with each agent and that no report shows yet.
Scheduler = Callable[[Sequence[Ranked], Mapping[str, int]], list[Ranked]]


def least_pressure(ranked: Sequence[Ranked], own: Mapping[str, int]) -> list[Ranked]:
    """Those awake before sleepers; then by score less what waiting costs: the larger of reported and our own load."""

    def worth(one: Ranked) -> float:
        offer = one.offer
        slots = offer.agent.load.slots if offer.agent.load is not None else offer.record.concurrency
        return one.candidate.score - _WAITING_COST * max(offer.pressure, own.get(offer.agent.name, 0) / max(1, slots))

    return sorted(ranked, key=lambda one: (one.offer.agent.asleep, -worth(one)))

"""Which subtasks a question takes, and which of them wait for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from mqttcollab.cms.views import Offer
from mqttcollab.errors import RequestError
from mqttcollab.orchestrator.classify import Relevant


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One subtask: which service, who offers it, and the services whose results it needs first."""

    service: str
    offers: tuple[Offer, ...]
    after: tuple[str, ...]
    reason: str


Planner = Callable[[str, Sequence[Relevant]], list[PlannedStep]]


def data_first(question: str, relevant: Sequence[Relevant]) -> list[PlannedStep]:
    """Data in parallel; then what reasons about it, given the data."""
    data = tuple(r.service for r in relevant if r.service.startswith("data.gpt/"))
    steps = [PlannedStep(r.service, r.offers, () if r.service in data else data, r.reason) for r in relevant]
    return sorted(steps, key=lambda step: bool(step.after))


def levels(steps: Sequence[PlannedStep]) -> dict[str, int]:
    """How many steps follow one after the other from each step on, itself included: what its time is divided by.

    Raises:
        RequestError: the plan can't be run: a service is in it twice, or waits for one that is not, or for itself.
    """
    graph = {step.service: set(step.after) for step in steps}
    if len(graph) < len(steps):
        raise RequestError("internal", f"the plan names a service twice: {', '.join(s.service for s in steps)}")
    if unknown := set().union(*graph.values()) - graph.keys():
        raise RequestError("internal", f"the plan waits for {min(unknown)}, which is not in it")
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise RequestError("internal", f"the plan goes in circles: {' after '.join(error.args[1])}") from None
    found: dict[str, int] = {}
    for service in reversed(order):
        found[service] = 1 + max((found[name] for name, after in graph.items() if service in after), default=0)
    return found

"""Which subtasks a question takes, and which of them wait for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mqttcollab.cms.registry import Offer
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
    return [PlannedStep(r.service, r.offers, () if r.service in data else data, r.reason) for r in relevant]


def stages(steps: Sequence[PlannedStep]) -> int:
    """The longest chain of steps that wait for each other."""
    depth: dict[str, int] = {}
    for step in steps:  # planners list a step after those that it needs, or its needs have no needs themselves
        depth[step.service] = 1 + max((depth.get(name, 1) for name in step.after), default=0)
    return max(depth.values(), default=0)

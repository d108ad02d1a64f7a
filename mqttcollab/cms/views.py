"""What the registry hands out: agents, their offers, matches and changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mqttcollab.messages import Load, Profile, ServiceRecord
from mqttcollab.topics import Status

ChangeKind = Literal["online", "sleeping", "degraded", "offline", "record", "record_gone", "model"]


class Change(NamedTuple):
    """Something that happened in the registry; `number` counts up by one."""

    number: int
    kind: ChangeKind
    agent: str
    service: str


@dataclass(slots=True)
class AgentView:
    """What the registry knows of one agent.

    Attributes:
        heard: loop time of the last sign of life.
        lost: the durable services of one that went offline without a goodbye.
    """

    name: str
    status: Status | None = None
    profile: Profile | None = None
    load: Load | None = None
    records: dict[str, ServiceRecord] = field(default_factory=dict)
    record_times: dict[str, float] = field(default_factory=dict)
    heard: float = 0.0
    lost: dict[str, ServiceRecord] = field(default_factory=dict)
    expired: bool = False

    @property
    def present(self) -> bool:
        """Online (degraded or not) or asleep, and its lease (three heartbeats) has not run out."""
        return self.status is not None and self.status.state != "offline" and not self.expired

    @property
    def asleep(self) -> bool:
        """A battery device that will take its requests when it wakes."""
        return self.status is not None and self.status.state == "sleeping"

    @property
    def heartbeat_s(self) -> float | None:
        """The interval that the agent promised, in seconds; None if it promised none."""
        if self.load is not None and self.load.heartbeat_s is not None:
            return self.load.heartbeat_s
        return min((r.heartbeat_s for r in self.records.values() if r.heartbeat_s is not None), default=None)


class Offer(NamedTuple):
    """A service of an agent that is present."""

    record: ServiceRecord
    agent: AgentView

    @property
    def pressure(self) -> float:
        """Requests running and waiting per slot, as last reported; 0 if never."""
        load = self.agent.load
        return 0.0 if load is None else (load.running + load.queued) / max(1, load.slots)


class Match(NamedTuple):
    """An offer and how close it is to a text: the largest cosine over its description and examples."""

    offer: Offer
    score: float

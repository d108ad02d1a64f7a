"""Where requests wait: by priority, then fairly between tenants."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mqttcollab.errors import ConfigError
from mqttcollab.scheduling.base import Demand

_REMEMBERED = 1024


@dataclass(slots=True, eq=False)
class Group:
    """Those of one tenant and priority that wait for the same agents, as they came, with the work that each is.

    Attributes:
        agents: names them, in whatever way.
        waiting: by the id of the request.
    """

    tenant: str
    priority: int
    agents: bytes
    waiting: dict[str, tuple[Demand, float]] = field(default_factory=dict)

    @property
    def demands(self) -> list[Demand]:
        """In the order in which they came."""
        return [demand for demand, _ in self.waiting.values()]


@dataclass(slots=True)
class _Shares:
    """How far each tenant has come in one priority; `now` is where the last one stood that was served."""

    now: float = 0.0
    times: dict[str, float] = field(default_factory=dict)

    def time(self, tenant: str) -> float:
        return max(self.now, self.times.get(tenant, 0.0))

    def forget(self) -> None:
        """Lets the half that is furthest behind start level with the others."""
        self.now = max(self.now, statistics.median(self.times.values()))
        self.times = {tenant: time for tenant, time in self.times.items() if time > self.now}


@dataclass(slots=True)
class WaitingRoom:
    """Requests that wait, by weighted fair queueing over tenants (start-time: Goyal, Vin and Cheng, 1996).

    Higher priorities strictly first: what keeps lower ones from waiting for ever is that nobody waits for ever. Within
    a priority a tenant's time goes on by the work that it gets, divided by its weight; who is behind goes first. One
    that was away starts level with the others: it can't save up.

    Args:
        weights: of tenants; 1 for those that are not named.

    Raises:
        ConfigError: a weight is not above 0, or not finite.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    _groups: dict[tuple[str, int, bytes], Group] = field(default_factory=dict)
    _where: dict[str, Group] = field(default_factory=dict)
    _shares: dict[int, _Shares] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tenant, weight in self.weights.items():
            if not 0 < weight < math.inf:
                raise ConfigError(f"the weight of tenant {tenant!r} is {weight}; it must be above 0 and finite")

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[Demand]:
        return (demand for group in self._groups.values() for demand, _ in group.waiting.values())

    def __contains__(self, demand_id: str) -> bool:
        return demand_id in self._where

    def occupied(self, priority: int) -> bool:
        """Whether anybody of at least this priority waits."""
        return any(group.priority >= priority for group in self._groups.values())

    def add(self, demand: Demand, agents: bytes = b"", work: float = 0.0) -> None:
        """Lets a request wait; one that waits already keeps its place.

        Args:
            demand: the request.
            agents: for whom it waits, in whatever way; who waits for the same ones is of one group.
            work: how much it is, in seconds of all of them.
        """
        if demand.id in self._where:
            return
        key = demand.tenant, demand.priority, agents
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
        group.waiting[demand.id] = demand, work
        self._where[demand.id] = group

    def remove(self, demand_id: str) -> Demand | None:
        """Takes a request out; None if it does not wait."""
        group = self._where.pop(demand_id, None)
        if group is None:
            return None
        demand, _ = group.waiting.pop(demand_id)
        if not group.waiting:
            del self._groups[group.tenant, group.priority, group.agents]
        return demand

    def served(self, demand: Demand, work: float) -> None:
        """Charges a tenant for work that it gets, whether it waited or not."""
        shares = self._shares.setdefault(demand.priority, _Shares())
        shares.now = shares.time(demand.tenant)
        shares.times[demand.tenant] = shares.now + work / self._weight(demand.tenant)
        if len(shares.times) > _REMEMBERED + 2 * len(self):
            shares.forget()

    def returned(self, demand: Demand, work: float) -> None:
        """Gives back what a tenant was charged for work that it did not get after all."""
        shares = self._shares.get(demand.priority)
        if shares is not None and demand.tenant in shares.times:
            shares.times[demand.tenant] -= work / self._weight(demand.tenant)

    def groups(self) -> list[Group]:
        """Those that wait, in the order in which they should go."""

        def key(group: Group) -> tuple[int, float, str]:
            shares = self._shares.get(group.priority)
            return -group.priority, shares.time(group.tenant) if shares else 0.0, group.tenant

        return sorted(self._groups.values(), key=key)

    def before(self, demand: Demand, agents: bytes, work: float) -> float:
        """How much work of those that wait for the same agents goes before a request that comes now.

        That is what has a higher priority, what its own tenant has that is as urgent, and of each other tenant as much
        as is fair meanwhile.
        """
        same = [group for group in self._groups.values() if group.agents == agents]
        higher = sum(_work(group) for group in same if group.priority > demand.priority)
        equals = [group for group in same if group.priority == demand.priority]
        own = sum(_work(group, demand.wait_until) for group in equals if group.tenant == demand.tenant)
        each = (own + work) / self._weight(demand.tenant)
        others = (group for group in equals if group.tenant != demand.tenant)
        return higher + own + sum(min(_work(group), each * self._weight(group.tenant)) for group in others)

    def _weight(self, tenant: str) -> float:
        return self.weights.get(tenant, 1.0)


def _work(group: Group, until: float = math.inf) -> float:
    """How much work a group is, of those that may wait no longer than so."""
    return sum(work for demand, work in group.waiting.values() if demand.wait_until <= until)

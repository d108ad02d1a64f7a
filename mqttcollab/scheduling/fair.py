"""Where requests wait: by priority, then fairly between tenants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mqttcollab.errors import ConfigError
from mqttcollab.scheduling.base import Demand


@dataclass(slots=True)
class WaitingRoom:
    """Requests that wait, by weighted fair queueing over tenants (start-time: Goyal, Vin and Cheng, 1996).

    A tenant's time goes on by the work that it gets, divided by its weight; who is behind goes first. One that was away
    starts level with the others: it can't save up.

    Args:
        weights: of tenants; 1 for those that are not named.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    _waiting: dict[str, Demand] = field(default_factory=dict)
    _times: dict[str, float] = field(default_factory=dict)
    _now: float = 0.0

    def __post_init__(self) -> None:
        for tenant, weight in self.weights.items():
            if not weight > 0:
                raise ConfigError(f"the weight of tenant {tenant!r} is {weight}; it must be above 0")

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Demand]:
        return iter(self._waiting.values())

    def add(self, demand: Demand) -> None:
        """Lets a request wait."""
        self._waiting[demand.id] = demand

    def remove(self, demand_id: str) -> Demand | None:
        """Takes a request out; None if it does not wait."""
        return self._waiting.pop(demand_id, None)

    def served(self, demand: Demand, work: float) -> None:
        """Charges a tenant for work that it gets, whether it waited or not."""
        start = max(self._now, self._times.get(demand.tenant, 0.0))
        self._times[demand.tenant] = start + work / self.weights.get(demand.tenant, 1.0)
        others = [self._times.get(other.tenant, 0.0) for other in self._waiting.values()]
        self._now = max(self._now, min(others, default=start))
        if len(self._times) > 2 * len(self._waiting) + _REMEMBERED:
            self._times = {tenant: time for tenant, time in self._times.items() if time > self._now}

    def groups(self) -> list[list[Demand]]:
        """Those that wait, by priority and tenant, in the order in which they should go; in a group as they came."""
        found: dict[tuple[int, str], list[Demand]] = {}
        for demand in self._waiting.values():
            found.setdefault((demand.priority, demand.tenant), []).append(demand)
        key = {group: (-group[0], max(self._now, self._times.get(group[1], 0.0)), group[1]) for group in found}
        return [found[group] for group in sorted(found, key=key.__getitem__)]


_REMEMBERED = 1024

"""The classic policies, to compare with; `make_policy` makes any of them, or the default."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mqttcollab.errors import ConfigError
from mqttcollab.scheduling.base import Decision, Demand, Fleet, Floats, Policy, elsewhere
from mqttcollab.scheduling.frugal import Frugal


@dataclass(slots=True)
class Classic:
    """Picks an agent and leaves it at that: a request waits there, or goes to the cloud if it is turned away.

    Args:
        name: of the policy.
        pick: the number of an agent, None for nobody; from the fleet, the requests per slot, the demand and a source
            of random numbers.
        seed: of the random numbers.
    """

    name: str
    pick: Callable[[Fleet, Demand, random.Random], int | None]
    seed: int | None = None
    attempts: int = 1
    queues: bool = True
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def arrived(self, demand: Demand) -> None:
        """Learns nothing."""

    def choose(self, demand: Demand, fleet: Fleet, now: float) -> Decision:
        """Whoever the rule picks, whatever it costs."""
        if not len(fleet):
            return elsewhere(demand, now, "nobody else offers it", "no_capability")
        picked = self.pick(fleet, demand, self._random)
        if picked is None:
            return elsewhere(demand, now, "no agent is free")
        return Decision("agent", f"{self.name}: @{fleet.name(picked)}", picked)

    def order(self, waiting: Sequence[Demand], fleet: Fleet, now: float) -> Sequence[Demand]:
        """As they came."""
        return waiting


def _random_agent(fleet: Fleet, demand: Demand, source: random.Random) -> int:
    return source.randrange(len(fleet))


def _weighted(fleet: Fleet, demand: Demand, source: random.Random) -> int:
    """In proportion to speed, as in the paper."""
    shares = np.cumsum(fleet.rows["tokens_per_s"] * fleet.rows["slots"])
    return int(np.searchsorted(shares, source.random() * shares[-1]))


def _least(values: Floats, source: random.Random) -> int:
    """The place of the least value; one of them at random where there are several."""
    least: NDArray[np.intp] = np.flatnonzero(values == values.min())
    return int(least[source.randrange(len(least))])


def _least_connections(fleet: Fleet, demand: Demand, source: random.Random) -> int:
    return _least(fleet.rows["running"] + fleet.rows["queued"], source)


def _power_of_two(fleet: Fleet, demand: Demand, source: random.Random) -> int:
    """The less loaded of two random ones (Mitzenmacher, 2001)."""
    first, second = source.randrange(len(fleet)), source.randrange(len(fleet))
    load = fleet.load()
    return first if load[first] <= load[second] else second


def _load_aware(fleet: Fleet, demand: Demand, source: random.Random) -> int:
    """The least requests per slot, as in the paper."""
    return _least(fleet.load(), source)


def _fastest_free(fleet: Fleet, demand: Demand, source: random.Random) -> int | None:
    """Of those with a free slot who takes the least time; if there is none, who is to be free first."""
    free = fleet.free()
    seconds = fleet.seconds(demand)
    if free.any():
        return int(np.argmin(np.where(free, seconds, np.inf)))
    return int(np.argmin(fleet.rows["backlog_s"] / fleet.rows["slots"])) if np.isfinite(demand.wait_until) else None


_CLASSIC: dict[str, Callable[[Fleet, Demand, random.Random], int | None]] = {
    "random": _random_agent,
    "weighted": _weighted,
    "least-connections": _least_connections,
    "power-of-two": _power_of_two,
    "load-aware": _load_aware,
    "fastest-free": _fastest_free,
}
POLICIES = (*_CLASSIC, "frugal")


def make_policy(name: str, seed: int | None = None) -> Policy:
    """A policy by its name.

    Args:
        name: one of POLICIES; `frugal` is the default everywhere.
        seed: of the random ones.

    Raises:
        ConfigError: there is no such policy.
    """
    if name == "frugal":
        return Frugal()
    if name not in _CLASSIC:
        raise ConfigError(f"there is no policy {name!r}; use one of {', '.join(POLICIES)}")
    return Classic(name, _CLASSIC[name], seed)

"""Simulation and reality side by side: the same requests on a virtual clock and on a real broker."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mqttcollab.errors import ConfigError
from mqttcollab.simulation.engine import Arrival, Cloud, Device, Result, Setting, Simulation
from mqttcollab.simulation.replay import Replayed, replay

DEFAULT_SPEED_UP = 60.0
# What is compared where nobody says what: the yardstick, and what is used.
DEFAULT_POLICIES = ("load-aware", "frugal")


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one run, or means over some; the cost in US dollars."""

    processed: float
    redirected: float
    rejected: float
    cloud_cost_usd: float


@dataclass(frozen=True, slots=True)
class Compared:
    """What simulation and reality made of the same requests, as means over the seeds.

    Attributes:
        arrivals: requests.
        link_s: one way between orchestrator and agent, as measured, in simulated seconds; the simulation was given it.
    """

    policy: str
    setting: Setting
    seeds: int
    arrivals: float
    link_s: float
    simulated: Counts
    real: Counts

    def difference(self, figure: str) -> float:
        """By how many per cent the real figure is above the simulated one; `figure` is a field of Counts."""
        simulated, real = getattr(self.simulated, figure), getattr(self.real, figure)
        if not simulated:
            return 0.0 if not real else math.inf
        return float(100 * (real - simulated) / simulated)

    def as_json(self) -> dict[str, Any]:
        """For `--json`; a difference from 0 is null."""
        differences = {figure: self.difference(figure) for figure in asdict(self.simulated)}
        return asdict(self) | {
            "difference_percent": {name: value if math.isfinite(value) else None for name, value in differences.items()}
        }


async def compare(
    devices: Sequence[Device],
    hours: Mapping[int, Sequence[Arrival]],
    policies: Sequence[str],
    setting: Setting,
    cloud: Cloud,
    broker: str,
    speed_up: float = DEFAULT_SPEED_UP,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Compared]:
    """Runs the policies over the same requests, on a broker and simulated, one after the other.

    The simulation gets the link that was measured on the broker: at such a speed a millisecond counts.

    Args:
        devices: the fleet; none is down at any time.
        hours: arrivals, by the seed.
        policies: their names.
        setting: what is varied.
        cloud: prices and speed of the cloud.
        broker: its URL.
        speed_up: simulated seconds per second; the default makes an hour a minute, per policy and seed. The faster,
            the more the broker's and the machine's own time blurs what is compared.
        progress: told what comes next, in words.

    Raises:
        ConfigError: there is nothing to run, or as `replay`.
        TransportError, RuntimeFailure: as `replay`.
    """
    if not hours or not policies:
        raise ConfigError("there is nothing to compare: name at least one policy and one seed")
    rows = []
    for policy in policies:
        simulated, real = [], []
        for seed, arrivals in hours.items():
            progress(f"{policy}, seed {seed}: {len(arrivals)} requests")
            real.append(await replay(devices, arrivals, policy, setting, cloud, speed_up, seed, broker))
            linked = [replace(device, link_s=real[-1].link_s) for device in devices]
            simulation = Simulation(linked, arrivals, policy, setting, cloud, seed)
            simulated.append(await asyncio.to_thread(simulation.run))
        rows.append(_row(policy, setting, hours, simulated, real))
    return rows


def _row(
    policy: str,
    setting: Setting,
    hours: Mapping[int, Sequence[Arrival]],
    simulated: Sequence[Result],
    real: Sequence[Replayed],
) -> Compared:
    return Compared(
        policy,
        setting,
        seeds=len(hours),
        arrivals=statistics.fmean(map(len, hours.values())),
        link_s=statistics.fmean(one.link_s for one in real),
        simulated=_mean(simulated),
        real=_mean([one.result for one in real]),
    )


def _mean(results: Sequence[Result]) -> Counts:
    return Counts(
        statistics.fmean(result.processed for result in results),
        statistics.fmean(result.redirected for result in results),
        statistics.fmean(result.rejected for result in results),
        statistics.fmean(result.cloud_cost_usd for result in results),
    )

"""The default policy: the fastest free agent, unless its slot is worth more than what this request would save."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mqttcollab.scheduling.base import Decision, Demand, Fleet, Floats, elsewhere, too_late
from mqttcollab.scheduling.market import Market

# An agent less able than the best by more than this gets nothing that the best could do.
_SLACK = 0.1
# Of a slot: who was busy with others' work a while ago is worth asking before the cloud is.
_MAYBE = 0.2
_TIE = 1e-3
# What a request in front of ours costs, per slot, in the units of a candidate's score.
WAITING_COST = 0.1


class Frugal:
    """Saves the cloud's money.

    A request that finds one free slot and many behind it takes that slot from a dearer one that comes next. What the
    slot is worth is learnt from what has come lately (`Market`); a request that saves less than it takes away waits
    while it may, then goes to the cloud. Agents that are hot, nearly empty or badly connected count as slower than they
    are.
    """

    name = "frugal"
    attempts = 8
    queues = False

    def __init__(self, market: Market | None = None) -> None:
        self.market = market or Market()

    def arrived(self, demand: Demand) -> None:
        """Learns how much comes, and what it is worth."""
        self.market.arrived(demand)

    def choose(self, demand: Demand, fleet: Fleet, now: float) -> Decision:
        """Agent, wait, cloud or refusal."""
        if not len(fleet):
            return elsewhere(demand, now, "nobody else offers it", "no_capability")
        seconds = fleet.seconds(demand) * hardship(fleet)
        fits = now + seconds <= demand.deadline
        if math.isfinite(demand.budget_usd):
            fits &= fleet.prices(demand) <= demand.budget_usd
        worth = fleet.rows["score"] - WAITING_COST * fleet.load()
        fits &= worth >= worth.max() - _SLACK
        free = fleet.free() & fits
        count = int(np.count_nonzero(free))
        if not count:
            return self._nobody(demand, fleet, fits, now)
        self.market.rush(fleet, now)
        # Equally fast ones share, and who is not yet known is no faster than that.
        best = int(np.argmin(np.where(free, seconds + _TIE * fleet.load(), np.inf)))
        took = float(seconds[best])
        if count == 1 and math.isfinite(demand.cloud_usd):
            price = self.market.price(fleet.rows[best], took)
            if price > demand.cloud_usd:
                why = f"the last free slot (@{fleet.name(best)}) is worth {price:.5f} US dollars to what comes next"
                return self._later(demand, now, why)
        return Decision("agent", f"@{fleet.name(best)} is free, {took:.2f} s, the fastest of {count}", best)

    def order(self, waiting: Sequence[Demand], fleet: Fleet, now: float) -> Sequence[Demand]:
        """The most urgent first; but what can't all be begun in time is shed from its cheap end."""
        if not fleet.free(_MAYBE).any():
            return ()
        if len(waiting) < 2:
            return waiting
        by_urgency = sorted(waiting, key=lambda demand: demand.wait_until)
        work = {demand.id: fleet.work_s(demand) for demand in by_urgency}
        # (saved per second of the fleet, saved): who is shed first.
        worth = {demand.id: (round(demand.cloud_usd / work[demand.id], 9), demand.cloud_usd) for demand in by_urgency}
        kept: list[Demand] = []
        shed: list[Demand] = []
        begins = now
        for demand in by_urgency:
            kept.append(demand)
            if begins > demand.wait_until:
                cheapest = min(kept, key=lambda one: worth[one.id])
                kept.remove(cheapest)
                shed.append(cheapest)
                begins -= work[cheapest.id]
            begins += work[demand.id]
        return [*kept, *sorted(shed, key=lambda one: worth[one.id], reverse=True)]

    def _nobody(self, demand: Demand, fleet: Fleet, fits: NDArray[np.bool_], now: float) -> Decision:
        if not fits.any():
            if (fleet.prices(demand) > demand.budget_usd).all():
                return elsewhere(demand, now, "every agent charges more than the budget", "quota_exceeded")
            return too_late(demand, now, float(np.min(fleet.seconds(demand))))
        maybe = fleet.free(_MAYBE) & fits
        if maybe.any():
            likeliest = int(np.argmax(np.where(maybe, fleet.rows["slots"] - fleet.rows["running"], -np.inf)))
            return Decision("agent", f"@{fleet.name(likeliest)} may be free again: asking costs little", likeliest)
        return self._later(demand, now, "no agent is free")

    def _later(self, demand: Demand, now: float, why: str) -> Decision:
        if now < demand.wait_until:
            return Decision("wait", why, until=demand.wait_until)
        return elsewhere(demand, now, why)


def hardship(fleet: Fleet) -> Floats:
    """(n,), at least 1: how much slower an agent counts for its heat, its battery and its link."""
    rows = fleet.rows
    thermal = np.nan_to_num(rows["thermal"])
    factor = 1 + np.clip(thermal - _WARM, 0, None) * _HEAT
    hours = rows["battery"] / np.where(rows["drain_per_h"] > 0, rows["drain_per_h"], np.nan)
    factor *= 1 + _EMPTY * np.exp(-np.nan_to_num(hours, nan=np.inf))
    return np.asarray(factor / np.clip(np.nan_to_num(rows["link"], nan=1.0), _WORST_LINK, 1))


# From this share of the way to throttling on, heat counts; at the throttle the agent is twice as slow.
_WARM, _HEAT = 0.7, 3.3
# An agent whose battery lasts no hour counts as so many times slower.
_EMPTY = 4.0
_WORST_LINK = 0.1

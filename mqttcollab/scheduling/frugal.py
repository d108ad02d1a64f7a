"""The default policy: the fastest free agent, unless its slot is worth more than what this request would save."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mqttcollab.scheduling.base import Decision, Demand, Fleet, Floats, elsewhere, too_late
from mqttcollab.scheduling.market import Market

# An agent less able than the best by more than this gets nothing that the best could do.
_SLACK = 0.1
# Of a slot: from when on an agent counts as free, and who was busy with others' work a while ago is worth asking before
# the cloud is.
_SURELY = 0.5
_MAYBE = 0.2
_TIE = 1e-3
# What a request in front of ours costs, per slot, in the units of a candidate's score.
WAITING_COST = 0.1


class Frugal:
    """Saves the cloud's money.

    A request that finds one free slot and many behind it takes that slot from a dearer one that comes next. What the
    slot is worth is learnt from what has come lately for the same service (`Market`); a request that saves less than it
    takes away waits while it may, then goes to the cloud. Agents that are hot, nearly empty or badly connected count as
    slower than they are where it is chosen between them, but not where a deadline is to be met.
    """

    name = "frugal"
    attempts = 8
    queues = False

    def __init__(self) -> None:
        self._markets: dict[str, Market] = {}

    def arrived(self, demand: Demand) -> None:
        """Learns how much comes, and what it is worth."""
        self._market(demand).arrived(demand)

    def choose(self, demand: Demand, fleet: Fleet, now: float) -> Decision:
        """Agent, wait, cloud or refusal."""
        if not len(fleet):
            return elsewhere(demand, now, "nobody else offers it", "no_capability")
        rows = fleet.rows
        seconds, load = fleet.seconds(demand), fleet.load()
        fits = self._able(demand, fleet, seconds, load, now)
        spare = np.where(fits & ~rows["asleep"], rows["slots"] - rows["running"], 0.0)
        free = spare > _SURELY
        if not free.any():
            return self._nobody(demand, fleet, fits, spare, now)
        market = self._market(demand)
        market.rush(fleet, now)
        # Equally fast ones share, and who is not yet known is no faster than that.
        best = int(np.where(free, seconds * rows["hardship"] + _TIE * load, np.inf).argmin())
        took = float(seconds[best])
        count = int(np.count_nonzero(free))
        if count == 1 and spare[best] <= 1 + _SURELY and math.isfinite(demand.cloud_usd):
            price = market.price(rows[best], took)
            if price > demand.cloud_usd:
                why = f"the last free slot (@{fleet.name(best)}) is worth {price:.5f} US dollars to what comes next"
                return self._later(demand, now, why)
        place = fleet.place(best)
        where = f"@{fleet.name(best)}" if place is None else f"@{fleet.name(best)} ({place})"
        why = f", the fastest of {count}" if count > 1 else ""
        return Decision("agent", f"{where} is free{f', {took:.2f} s' if took else ''}{why}", best)

    def order(self, waiting: Sequence[Demand], fleet: Fleet, now: float) -> Sequence[Demand]:
        """The most urgent first; but what can't all be begun in time is shed from its cheap end."""
        if not fleet.free(_MAYBE).any():
            return ()
        if len(waiting) < 2:
            return waiting
        by_urgency = sorted(waiting, key=lambda demand: demand.wait_until)
        work = _work_s(by_urgency, fleet)
        kept: list[tuple[float, float, int]] = []  # (saved per second of the fleet, saved): who is shed first
        begins = now
        for number, (demand, seconds) in enumerate(zip(by_urgency, work, strict=True)):
            heapq.heappush(kept, (round(demand.cloud_usd / seconds, 9), demand.cloud_usd, number))
            if begins > demand.wait_until:
                begins -= work[heapq.heappop(kept)[2]]
            begins += seconds
        stay = sorted(number for _, _, number in kept)
        shed = sorted(set(range(len(work))) - set(stay), key=lambda n: by_urgency[n].cloud_usd / work[n], reverse=True)
        return [by_urgency[number] for number in (*stay, *shed)]

    def _market(self, demand: Demand) -> Market:
        market = self._markets.get(demand.service)
        if market is None:
            market = self._markets[demand.service] = Market()
        return market

    def _able(self, demand: Demand, fleet: Fleet, seconds: Floats, load: Floats, now: float) -> NDArray[np.bool_]:
        """(n,): who can do it in time and within the budget, and hardly worse than anybody who can.

        Before a request is refused, because it has waited long enough and may not go to the cloud, anybody will do.
        """
        fits = now + seconds <= demand.deadline
        if math.isfinite(demand.budget_usd):
            fits &= fleet.prices(demand) <= demand.budget_usd
        if now >= demand.due and math.isinf(demand.cloud_usd):
            return np.asarray(fits)
        worth = fleet.rows["score"] - WAITING_COST * load
        # Sleepers are waited for where nobody awake could do it.
        awake = fits & ~fleet.rows["asleep"]
        best = np.where(awake if awake.any() else fits, worth, -np.inf).max()
        return np.asarray(fits & (worth >= best - _SLACK))

    def _nobody(self, demand: Demand, fleet: Fleet, fits: NDArray[np.bool_], spare: Floats, now: float) -> Decision:
        if not fits.any():
            affordable = fleet.prices(demand) <= demand.budget_usd
            if not affordable.any():
                return elsewhere(demand, now, "every agent charges more than the budget", "quota_exceeded")
            return too_late(demand, now, float(fleet.seconds(demand)[affordable].min()))
        likeliest = int(spare.argmax())
        if spare[likeliest] > _MAYBE:
            return Decision("agent", f"@{fleet.name(likeliest)} may be free again: asking costs little", likeliest)
        asleep = fits & fleet.rows["asleep"]
        if now >= demand.due and math.isinf(demand.cloud_usd) and asleep.any():
            number = int(asleep.argmax())
            return Decision("agent", f"@{fleet.name(number)} sleeps, and nobody else is free: it may wake", number)
        return self._later(demand, now, "no agent is free")

    def _later(self, demand: Demand, now: float, why: str) -> Decision:
        if now < demand.due:
            return Decision("wait", why)
        return elsewhere(demand, now, why)


def _work_s(demands: Sequence[Demand], fleet: Fleet) -> list[float]:
    """How long all of them together would take for each; alike ones are reckoned once."""
    known: dict[tuple[float, float], float] = {}
    for demand in demands:
        length = demand.tokens, demand.prompt_tokens
        if length not in known:
            known[length] = fleet.work_s(demand)
    return [known[demand.tokens, demand.prompt_tokens] for demand in demands]

"""A policy at work: whom it may choose from, who waits, what is tried again. The same live and simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mqttcollab.scheduling.base import Candidates, Decision, Demand, Fleet, Policy, too_late
from mqttcollab.scheduling.fair import WaitingRoom
from mqttcollab.scheduling.load import LoadBook

_RECHECK_S = 0.1


class Placed(NamedTuple):
    """A request that goes somewhere; for an agent `row` is its row in the book, `seconds` how long it should take."""

    demand: Demand
    decision: Decision
    row: int = -1
    seconds: float = 0.0


@dataclass(slots=True)
class _Open:
    """A request that is not done with."""

    demand: Demand
    candidates: Candidates
    attempts: int = 0
    sent: dict[int, float] = field(default_factory=dict)  # seconds expected, by row


class Scheduler:
    """Places requests; whoever drives it sends them and says what became of them.

    Give each request to `submit`. If it waits, `ready` names it later: call that after everything that may have changed
    something, and when `next_time` comes. Tell `ended` what each request that went to an agent came to, and `close`
    when a request is over.

    Args:
        policy: decides.
        book: the load, as it is believed to be.
        weights: of tenants, where requests wait; 1 for those that are not named.
    """

    def __init__(
        self, policy: Policy, book: LoadBook | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        self.policy = policy
        self.book = book or LoadBook()
        self._room = WaitingRoom(weights or {})
        self._open: dict[str, _Open] = {}

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._room)

    def submit(self, demand: Demand, candidates: Candidates, now: float) -> Placed:
        """Decides where a new request goes."""
        self._open[demand.id] = _Open(demand, candidates)
        self.policy.arrived(demand)
        ahead = [other for other in self._room if other.priority >= demand.priority]
        if not ahead:
            return self._decide(demand, now)
        # Those that wait for a slot go first where one has become free meanwhile; the policy sees them together.
        fleet = self.book.fleet(candidates, now)
        if len(fleet) and math.isfinite(demand.deadline):
            seconds = _wait_s(demand, ahead, fleet) + float(np.min(fleet.seconds(demand)))
            if now + seconds > demand.deadline:
                return Placed(demand, too_late(demand, now, seconds))
        self._room.add(demand)
        return Placed(demand, Decision("wait", "others wait as well", until=now))

    def again(self, demand_id: str, now: float) -> Placed:
        """Decides anew of a request whose agent was busy, has failed or takes too long; those tried are left out."""
        one = self._open[demand_id]
        if one.attempts >= self.policy.attempts:
            one.candidates = Candidates(one.candidates.rows[:0], one.candidates.scores[:0])
        return self._decide(one.demand, now)

    def beside(self, demand_id: str, now: float) -> Placed | None:
        """A further agent for a request whose agent is late, if one is free; nobody waits for it."""
        one = self._open[demand_id]
        decision, candidates = self._choose(one, now)
        return self._send(one, decision, candidates, now) if decision.kind == "agent" else None

    def busy(self, placed: Placed, now: float, retry_after_s: float = 0.0) -> None:
        """An agent had no room for a request. It is not struck off: it may have, while the request still waits."""
        self._back(placed, now)
        self.book.busy(placed.row, now, retry_after_s)

    def ended(
        self, placed: Placed, now: float, *, seconds: float = 0.0, tokens: float = 0.0, failed: bool = False
    ) -> None:
        """What became of a request at an agent.

        Args:
            placed: as it went there.
            now: the scheduler's clock.
            seconds: how long the agent worked on it; 0 if nobody knows.
            tokens: that it wrote.
            failed: it gave no answer.
        """
        self._back(placed, now)
        one = self._open.get(placed.demand.id)
        if one is not None:  # whoever is asked next, it is not the same again
            kept = one.candidates.rows != placed.row
            one.candidates = Candidates(one.candidates.rows[kept], one.candidates.scores[kept])
        if not failed and seconds > 0:
            self.book.measured(placed.row, seconds, tokens, placed.demand.tokens)

    def close(self, demand_id: str, now: float) -> None:
        """Ends a request, answered or given up."""
        self._room.remove(demand_id)
        one = self._open.pop(demand_id, None)
        if one is not None:
            for index, seconds in one.sent.items():
                self.book.ended(index, seconds, now)

    def ready(self, now: float) -> list[Placed]:
        """Those that waited and go somewhere now."""
        placed: list[Placed] = []
        while len(self._room):
            found = self._next(now)
            if found is None:
                break
            placed.append(found)
        return placed

    def next_time(self, now: float) -> float:
        """When `ready` has to be called at the latest; infinite if nobody waits."""
        due = min((demand.wait_until for demand in self._room), default=math.inf)
        # Nothing tells us when others' work ends: it is looked at again and again.
        return min(due, now + _RECHECK_S) if self._room and self.book.guessing else due

    def _next(self, now: float) -> Placed | None:
        for group in self._room.groups():
            fleet = self.book.fleet(self._open[group[0].id].candidates, now)
            late = [demand for demand in group if demand.wait_until <= now]
            for demand in (*late, *self.policy.order(group, fleet, now)):
                placed = self._decide(demand, now)
                if placed.decision.kind != "wait":
                    return placed
        return None

    def _decide(self, demand: Demand, now: float) -> Placed:
        one = self._open[demand.id]
        decision, candidates = self._choose(one, now)
        if decision.kind == "wait":
            self._room.add(demand)
            return Placed(demand, decision)
        self._room.remove(demand.id)
        return Placed(demand, decision) if decision.kind != "agent" else self._send(one, decision, candidates, now)

    def _choose(self, one: _Open, now: float) -> tuple[Decision, Candidates]:
        candidates = one.candidates
        if one.sent and len(candidates.rows):
            left = ~np.isin(candidates.rows, list(one.sent))
            candidates = Candidates(candidates.rows[left], candidates.scores[left])
        return self.policy.choose(one.demand, self.book.fleet(candidates, now), now), candidates

    def _send(self, one: _Open, decision: Decision, candidates: Candidates, now: float) -> Placed:
        row = int(candidates.rows[decision.agent])
        seconds = self.book.sent(row, one.demand, now)
        one.sent[row] = seconds
        one.attempts += 1
        self._room.served(one.demand, seconds)
        return Placed(one.demand, decision, row, seconds)

    def _back(self, placed: Placed, now: float) -> None:
        one = self._open.get(placed.demand.id)
        if one is not None and one.sent.pop(placed.row, None) is not None:
            self.book.ended(placed.row, placed.seconds, now)


def _wait_s(demand: Demand, ahead: Sequence[Demand], fleet: Fleet) -> float:
    """How long those ahead keep the whole fleet busy; of other tenants no more than goes first by fair queueing."""
    work = {other.id: fleet.work_s(other) for other in ahead}
    own = sum(work[other.id] for other in ahead if other.tenant == demand.tenant)
    tenants = len({other.tenant for other in ahead} - {demand.tenant})
    return min(sum(work.values()), own + tenants * (own + fleet.work_s(demand)))

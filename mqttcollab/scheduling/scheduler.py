"""A policy at work: whom it may choose from, who waits, what is tried again. The same live and simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from mqttcollab.errors import RequestError
from mqttcollab.scheduling.base import Candidates, Decision, Demand, Fleet, Policy, elsewhere, too_late
from mqttcollab.scheduling.fair import WaitingRoom
from mqttcollab.scheduling.load import LoadBook

_RECHECK_S = 0.1
# So many of a group that would rather wait on are enough: thousands are not all asked whenever a slot is free.
_IN_VAIN = 32


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
        """Decides where a new request goes.

        Raises:
            RequestError: `bad_request`, one with this id is not over yet.
        """
        if demand.id in self._open:
            raise RequestError("bad_request", f"request {demand.id!r} is not over yet; give every request its own id")
        one = self._open[demand.id] = _Open(demand, candidates)
        self.policy.arrived(demand)
        if not self._room.occupied(demand.priority):
            return self._decide(demand, now)
        # Those that wait for a slot go first where one has become free meanwhile; the policy sees them together.
        fleet = self.book.fleet(candidates, now)
        if len(fleet) and math.isfinite(demand.deadline):
            before = self._room.before(demand, _key(candidates), fleet.work_s(demand))
            seconds = before + float(np.min(fleet.seconds(demand)))
            if now + seconds > demand.deadline:
                return Placed(demand, too_late(demand, now, seconds))
        self._wait(one, fleet)
        return Placed(demand, Decision("wait", "others wait as well"))

    def again(self, demand_id: str, now: float) -> Placed:
        """Decides anew of a request whose agent was busy, has failed or takes too long; those tried are left out.

        Once as many agents as the policy tries were asked in vain, it goes to the cloud or is refused.
        """
        one = self._open[demand_id]
        if one.attempts < self.policy.attempts:
            return self._decide(one.demand, now)
        self._room.remove(demand_id)
        asked = "the agent that was asked" if one.attempts == 1 else f"each of {one.attempts} agents that were asked"
        return Placed(one.demand, elsewhere(one.demand, now, f"{asked} was busy or gave no answer"))

    def beside(self, demand_id: str, now: float) -> Placed | None:
        """A further agent for a request whose agent is late, if one is free that charges nothing; nobody waits."""
        one = self._open[demand_id]
        costs = self.book.fleet(one.candidates, now).prices(one.demand) > 0
        gratis = Candidates(one.candidates.rows[~costs], one.candidates.scores[~costs])
        decision, fleet = self._choose(replace(one, candidates=gratis), now)
        return self._send(one, decision, fleet, now) if decision.kind == "agent" else None

    def busy(self, placed: Placed, now: float, retry_after_s: float = 0.0) -> None:
        """An agent had no room for a request. It is not struck off: it may have, while the request still waits."""
        if self._back(placed, now):
            self._room.returned(placed.demand, placed.seconds)
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
        if not failed:
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
        while len(self._room) and self._pass(placed, now):
            pass
        return placed

    def next_time(self, now: float) -> float:
        """When `ready` has to be called at the latest; infinite if nobody waits."""
        due = min((demand.due for demand in self._room), default=math.inf)
        # Nothing tells us when others' work ends: it is looked at again and again.
        return min(due, now + _RECHECK_S) if self._room and self.book.guessing(now) else due

    def _pass(self, placed: list[Placed], now: float) -> bool:
        """Goes once through those that wait; whether an agent was given away, so that the order has changed."""
        full: set[bytes] = set()
        for group in self._room.groups():
            demands = group.demands
            late = [demand for demand in demands if demand.due <= now]
            order: Sequence[Demand] = ()
            if group.agents not in full:
                order = self.policy.order(demands, self.book.fleet(self._open[demands[0].id].candidates, now), now)
                if not order:
                    full.add(group.agents)
            in_vain = 0
            for demand in (*late, *order):
                if demand.id not in self._room:
                    continue
                found = self._decide(demand, now)
                if found.decision.kind == "wait":
                    in_vain += 1
                    if in_vain > _IN_VAIN:
                        break
                    continue
                placed.append(found)
                if found.decision.kind == "agent":
                    return True
        return False

    def _decide(self, demand: Demand, now: float) -> Placed:
        one = self._open[demand.id]
        decision, fleet = self._choose(one, now)
        if decision.kind == "wait":
            self._wait(one, fleet)
            return Placed(demand, decision)
        self._room.remove(demand.id)
        return Placed(demand, decision) if decision.kind != "agent" else self._send(one, decision, fleet, now)

    def _wait(self, one: _Open, fleet: Fleet) -> None:
        if one.demand.id not in self._room:
            self._room.add(one.demand, _key(one.candidates), fleet.work_s(one.demand) if len(fleet) else 0.0)

    def _choose(self, one: _Open, now: float) -> tuple[Decision, Fleet]:
        candidates = one.candidates
        if one.sent and len(candidates.rows):
            left = ~np.isin(candidates.rows, list(one.sent))
            candidates = Candidates(candidates.rows[left], candidates.scores[left])
        fleet = self.book.fleet(candidates, now)
        return self.policy.choose(one.demand, fleet, now), fleet

    def _send(self, one: _Open, decision: Decision, fleet: Fleet, now: float) -> Placed:
        row = int(fleet.at[decision.agent])
        seconds = self.book.sent(row, one.demand, now)
        one.sent[row] = seconds
        one.attempts += 1
        self._room.served(one.demand, seconds)
        return Placed(one.demand, decision, row, seconds)

    def _back(self, placed: Placed, now: float) -> bool:
        """Whether the request was there."""
        one = self._open.get(placed.demand.id)
        if one is None or one.sent.pop(placed.row, None) is None:
            return False
        self.book.ended(placed.row, placed.seconds, now)
        return True


def _key(candidates: Candidates) -> bytes:
    return candidates.rows.tobytes()

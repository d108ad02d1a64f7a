"""What is known of every agent's load: what we sent and got back counts at once, reports correct it."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mqttcollab.scheduling.base import AGENT, Candidates, Demand, Fleet
from mqttcollab.scheduling.learned import Quantiles

_log = logging.getLogger(__name__)

# Of speeds: a cautious median, so that a deadline is not missed by hope.
_SPEED, _SECONDS = 0.4, 0.6
_LEAST_SEEN = 3
REPORT_AGE_S = 15.0
# Of an answer, until some were seen.
_TOKENS = 100.0
# How far others' work has faded when it is forgotten.
_FORGOTTEN = 0.05
_SHORTEST_SPAN_S, _LONGEST_SPAN_S = 0.1, 30.0
# Slower than so many times what nine of ten took is late, but nobody is before so many seconds.
_STRAGGLES, _LEAST_LATE_S = 2.0, 0.5
_FIRST_ROWS = 16


@dataclass(frozen=True, slots=True)
class Terms:
    """What is known of an agent's service beforehand; measured values take over from three answers on.

    Attributes:
        tokens_per_s, prompt_tokens_per_s: written and read by one slot.
        overhead_s: seconds per request, whatever its length.
        slots: requests that it works on at once.
        price_usd, prompt_usd_per_mtok, completion_usd_per_mtok: what it charges.
    """

    tokens_per_s: float = 20.0
    prompt_tokens_per_s: float = 200.0
    overhead_s: float = 0.0
    slots: int = 1
    price_usd: float = 0.0
    prompt_usd_per_mtok: float = 0.0
    completion_usd_per_mtok: float = 0.0


class _Agent:
    """What we know of one agent beside its rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.own = 0  # of ours, under way
        self.had: deque[tuple[float, int]] = deque()  # when we had how many under way, falling from left to right
        self.others = 0.0  # of others, when last heard
        self.waiting = 0.0
        self.span_s = 0.0  # in which others' work fades; 0 until it was busy
        self.heard = -math.inf
        self.complained = False

    def note(self, now: float) -> None:
        """Notes how many of ours are under way, for reports that show an earlier state."""
        while self.had and self.had[-1][1] <= self.own:
            self.had.pop()
        self.had.append((now, self.own))

    def most(self, now: float) -> int:
        """The most of ours that were under way lately."""
        # What stood at the beginning of the time in question began before it.
        while len(self.had) > 1 and self.had[1][0] <= now - REPORT_AGE_S:
            self.had.popleft()
        return self.had[0][1] if self.had else 0


class LoadBook:
    """The load of all agents as one scheduler believes it to be, in rows of dtype AGENT, one per agent and service.

    A report counts what ran and waited when it was made, ours among it, maybe seconds ago (REPORT_AGE_S at most). So
    only what it has beyond the most of our own in that time is believed, as the work of others, and the less the older
    it is: others' requests end too. It errs towards a free agent: asking one in vain costs a round trip.
    """

    def __init__(self) -> None:
        self._rows = np.zeros(_FIRST_ROWS, AGENT)
        self._names: list[str] = []
        self._index: dict[tuple[str, str], int] = {}
        self._agents: dict[str, _Agent] = {}
        self._speeds: dict[int, Quantiles] = {}
        self._seconds: dict[int, Quantiles] = {}
        self._wordiness: dict[int, Quantiles] = {}
        self._lengths: dict[str, Quantiles] = {}
        self._services: list[str] = []
        self._stale: dict[str, _Agent] = {}  # whose others' work is believed to shrink

    def __len__(self) -> int:
        return len(self._names)

    def row(self, agent: str, service: str, terms: Terms) -> int:
        """The row of an agent's service; made, or brought up to date where its terms have changed."""
        index = self._index.get((agent, service))
        if index is None:
            index = self._index[agent, service] = len(self._names)
            if index == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            self._names.append(agent)
            self._services.append(service)
            self._agents.setdefault(agent, _Agent()).rows.append(index)
            row = self._rows[index]
            row["wordiness"] = 1.0
            for field in ("battery", "drain_per_h", "thermal", "link"):
                row[field] = math.nan
        row = self._rows[index]
        row["slots"] = max(1, terms.slots)
        row["price_usd"] = terms.price_usd
        row["prompt_usd_per_mtok"] = terms.prompt_usd_per_mtok
        row["completion_usd_per_mtok"] = terms.completion_usd_per_mtok
        row["prompt_tokens_per_s"] = terms.prompt_tokens_per_s
        if index not in self._speeds:
            row["tokens_per_s"] = terms.tokens_per_s
        if index not in self._seconds:
            row["overhead_s"] = terms.overhead_s
        return index

    def candidates(self, index: Sequence[int], scores: Sequence[float] | None = None) -> Candidates:
        """Rows as candidates; without scores all are equally able."""
        return Candidates(
            np.asarray(index, dtype=np.intp), np.ones(len(index)) if scores is None else np.asarray(scores, dtype=float)
        )

    def fleet(self, candidates: Candidates, now: float) -> Fleet:
        """The candidates as they are believed to be now."""
        if self._stale:
            self._fade(now)
        rows = self._rows[candidates.rows]
        rows["score"] = candidates.scores
        names = self._names
        return Fleet(names, rows, candidates.rows)

    # What we see ourselves

    def sent(self, index: int, demand: Demand, now: float) -> float:
        """Counts a request that goes to an agent; returns the seconds that it should take there."""
        seconds = self.expected_s(index, demand)
        agent = self._agents[self._names[index]]
        agent.own += 1
        agent.note(now)
        self._rows["own"][index] += 1
        self._rows["backlog_s"][index] += seconds
        self._believe(agent)
        return seconds

    def ended(self, index: int, expected_s: float, now: float) -> None:
        """Counts a request that came back, failed or was given up; `expected_s` is what `sent` returned."""
        agent = self._agents[self._names[index]]
        agent.own = max(0, agent.own - 1)
        agent.note(now)
        self._rows["own"][index] = max(0.0, self._rows["own"][index] - 1)
        self._rows["backlog_s"][index] = max(0.0, self._rows["backlog_s"][index] - expected_s) if agent.own else 0.0
        self._believe(agent)

    def measured(self, index: int, seconds: float, tokens: float, expected: float) -> None:
        """Learns from an answer.

        Args:
            index: the agent's row.
            seconds: how long it worked on it.
            tokens: that it wrote; 0 if no language model did.
            expected: that it was expected to write.
        """
        if not (math.isfinite(seconds) and seconds > 0 and tokens >= 0):
            return
        self._agents[self._names[index]].span_s = 0.0
        if tokens > 0:
            self._lengths.setdefault(self._services[index], Quantiles()).add(tokens)
            known = self._speeds.setdefault(index, Quantiles())
            known.add(tokens / seconds)
            wordiness = self._wordiness.setdefault(index, Quantiles())
            wordiness.add(tokens / max(1.0, expected))
            if len(known) >= _LEAST_SEEN:
                self._rows["tokens_per_s"][index] = known.at(_SPEED)
                self._rows["wordiness"][index] = wordiness.at(0.5)
        else:
            known = self._seconds.setdefault(index, Quantiles())
            known.add(seconds)
            if len(known) >= _LEAST_SEEN:
                self._rows["overhead_s"][index] = known.at(_SECONDS)

    def busy(self, index: int, now: float, retry_after_s: float = 0.0) -> None:
        """Notes that an agent had no room for a request of ours, which has been counted as ended.

        Args:
            index: its row.
            now: the scheduler's clock.
            retry_after_s: when it may have room, if it says so; each time in vain counts for longer.
        """
        agent = self._agents[self._names[index]]
        agent.others, agent.waiting, agent.heard = float(self._rows["slots"][index]) - agent.own, 0.0, now
        agent.span_s = min(_LONGEST_SPAN_S, max(2 * agent.span_s, retry_after_s or self._typical_s(index)))
        self._stale[self._names[index]] = agent
        self._believe(agent)

    def expected_s(self, index: int, demand: Demand) -> float:
        """How long an agent should take for a request, in seconds."""
        row = self._rows[index]
        prompt = demand.prompt_tokens / row["prompt_tokens_per_s"] if demand.prompt_tokens else 0.0
        return float(row["overhead_s"] + prompt + demand.tokens * row["wordiness"] / row["tokens_per_s"])

    def tokens(self, service: str) -> float:
        """How many tokens an answer of a service has: the median of those seen."""
        known = self._lengths.get(service)
        return known.at(0.5) if known is not None and len(known) >= _LEAST_SEEN else _TOKENS

    def straggles_s(self, index: int, expected_s: float) -> float:
        """After how many seconds an agent counts as late with a request; infinite while too little is known of it.

        Args:
            index: its row.
            expected_s: how long it should take.
        """
        speeds, seconds = self._speeds.get(index), self._seconds.get(index)
        if speeds is not None and len(speeds) >= _LEAST_SEEN:
            return max(_LEAST_LATE_S, _STRAGGLES * expected_s * speeds.at(_SPEED) / speeds.at(0.1))
        if seconds is not None and len(seconds) >= _LEAST_SEEN:
            return max(_LEAST_LATE_S, _STRAGGLES * seconds.at(0.9))
        return math.inf

    @property
    def guessing(self) -> bool:
        """Whether somebody is believed to do others' work, which ends without our being told."""
        return bool(self._stale)

    # What agents say

    def reported(
        self, name: str, now: float, *, running: float, queued: float, slots: float, **condition: float | None
    ) -> None:
        """Takes a load report; what is impossible in it is passed over, with one line in the log.

        Args:
            name: the agent.
            now: the scheduler's clock; the agent's own is never looked at.
            running, queued, slots: as in `mqttcollab.load.v1`.
            **condition: battery, drain_per_h, thermal, link; None where nobody measures it.
        """
        agent = self._agents.get(name)
        if agent is None:
            return
        for field, value in condition.items():
            self._rows[field][agent.rows] = math.nan if value is None else value
        numbers = (running, queued, slots)
        if not all(math.isfinite(n) and n >= 0 for n in numbers) or running > max(1, slots):
            if not agent.complained:
                _log.warning(
                    "@%s reports an impossible load (%g running, %g waiting, %g slots): it is not believed; "
                    "mend its load report",
                    name,
                    *numbers,
                )
            agent.complained = True
            return
        beyond = max(0.0, running + queued - agent.most(now))
        agent.others, agent.heard = min(beyond, max(1.0, slots)), now
        agent.waiting = beyond - agent.others
        self._stale[name] = agent
        self._believe(agent)

    def asleep(self, name: str, state: bool) -> None:
        """Notes whether an agent sleeps."""
        agent = self._agents.get(name)
        if agent is not None:
            self._rows["asleep"][agent.rows] = state

    def _typical_s(self, index: int) -> float:
        """How long others' requests take there, as far as ours tell."""
        row = self._rows[index]
        return max(_SHORTEST_SPAN_S, float(row["overhead_s"] + _TOKENS / row["tokens_per_s"]))

    def _believe(self, agent: _Agent, kept: float = 1.0) -> None:
        for index in agent.rows:
            row = self._rows[index]
            total = row["own"] + kept * (agent.others + agent.waiting)
            row["running"] = min(total, row["slots"])
            row["queued"] = total - row["running"]

    def _fade(self, now: float) -> None:
        """Others' requests end in about the time that one takes; once that is long past, nothing is known of them."""
        for name, agent in list(self._stale.items()):
            span = agent.span_s or self._typical_s(agent.rows[0])
            kept = math.exp(-max(0.0, now - agent.heard) / span)
            if kept < _FORGOTTEN or not agent.others + agent.waiting:
                agent.others = agent.waiting = 0.0
                del self._stale[name]
            self._believe(agent, kept)

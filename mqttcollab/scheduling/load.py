"""What is known of every agent's load: what we sent and got back counts at once, reports correct it."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mqttcollab.errors import ConfigError
from mqttcollab.scheduling.base import AGENT, Candidates, Demand, Fleet, Rows
from mqttcollab.scheduling.hardship import hardship
from mqttcollab.scheduling.learned import Learned

_log = logging.getLogger(__name__)

REPORT_AGE_S = 15.0
# Of an answer, until some were seen.
_TOKENS = 100.0
# How far others' work has faded when it is forgotten.
_FORGOTTEN = 0.05
# Requests at an agent: more are impossible.
_MOST = 1e9
_SHORTEST_SPAN_S, _LONGEST_SPAN_S = 0.1, 30.0
_FIRST_ROWS = 16
_UNKNOWN = {"hardship": 1.0, "asleep": 0.0}
_CONDITION = ("battery", "drain_per_h", "thermal", "link")
# What is believed of the work of others on a row: how much, when it was heard, in how many seconds it fades.
_OTHERS = np.dtype([("others", "f8"), ("heard", "f8"), ("span_s", "f8")])


@dataclass(frozen=True, slots=True)
class Terms:
    """What is known of an agent's service beforehand; measured values take over from three answers on.

    Attributes:
        tokens_per_s, prompt_tokens_per_s: written and read by one slot.
        overhead_s: seconds per request, whatever its length.
        slots: requests that it works on at once.
        price_usd, prompt_usd_per_mtok, completion_usd_per_mtok: what it charges.
        place: where it is.

    Raises:
        ConfigError: a speed is not above 0, or a time or a price is negative or not finite.
    """

    tokens_per_s: float = 20.0
    prompt_tokens_per_s: float = 200.0
    overhead_s: float = 0.0
    slots: int = 1
    price_usd: float = 0.0
    prompt_usd_per_mtok: float = 0.0
    completion_usd_per_mtok: float = 0.0
    place: str | None = None

    def __post_init__(self) -> None:
        if (
            self.tokens_per_s > 0
            and self.prompt_tokens_per_s > 0
            and 0 <= self.overhead_s < math.inf
            and 0 <= self.price_usd < math.inf
            and 0 <= self.prompt_usd_per_mtok < math.inf
            and 0 <= self.completion_usd_per_mtok < math.inf
        ):
            return  # quickly: they are made for every candidate of every request
        for name in ("tokens_per_s", "prompt_tokens_per_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"an agent's {name} is {getattr(self, name)}; it must be above 0")
        for name in ("overhead_s", "price_usd", "prompt_usd_per_mtok", "completion_usd_per_mtok"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"an agent's {name} is {getattr(self, name)}; it must be finite and at least 0")


class _Agent:
    """What we know of one agent beside its rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.own = 0  # of ours, under way
        self.had: deque[tuple[float, int]] = deque()  # when we had how many under way, falling from left to right
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
    it is: others' requests end too. It errs towards a free agent: asking one in vain costs a round trip. What is
    reported of an agent is taken to be spread over its services by their slots.
    """

    def __init__(self) -> None:
        self._rows = np.zeros(_FIRST_ROWS, AGENT)
        self._others = np.zeros(_FIRST_ROWS, _OTHERS)
        self._names: list[str] = []
        self._places: list[str | None] = []
        self._terms: list[Terms] = []
        self._index: dict[tuple[str, str], int] = {}
        self._agents: dict[str, _Agent] = {}
        self._learned = Learned()
        self._services: list[str] = []
        self._backoff: dict[int, float] = {}  # span in which others' work fades where an agent was busy
        self._guessing_until = -math.inf

    def __len__(self) -> int:
        return len(self._names)

    def row(self, agent: str, service: str, terms: Terms) -> int:
        """The row of an agent's service; made, or brought up to date where its terms have changed."""
        index = self._index.get((agent, service))
        if index is None:
            index = self._add(agent, service, terms)
        elif self._terms[index] == terms:
            return index
        self._terms[index], self._places[index] = terms, terms.place
        row = self._rows[index]
        row["slots"] = min(max(1, terms.slots), _MOST)
        row["price_usd"] = terms.price_usd
        row["prompt_usd_per_mtok"] = terms.prompt_usd_per_mtok
        row["completion_usd_per_mtok"] = terms.completion_usd_per_mtok
        row["prompt_tokens_per_s"] = terms.prompt_tokens_per_s
        self._learn(index)
        self._count(index)
        return index

    def _add(self, agent: str, service: str, terms: Terms) -> int:
        index = self._index[agent, service] = len(self._names)
        if index == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            self._others = np.concatenate([self._others, np.zeros_like(self._others)])
        self._others[index] = 0.0, 0.0, 1.0
        self._names.append(agent)
        self._services.append(service)
        self._terms.append(terms)
        self._places.append(terms.place)
        of_agent = self._agents.setdefault(agent, _Agent()).rows
        of_agent.append(index)
        row, other = self._rows[index], self._rows[of_agent[0]]
        for field in (*_CONDITION, "hardship", "asleep"):
            # What is known of one service of an agent holds for all.
            row[field] = other[field] if index != of_agent[0] else _UNKNOWN.get(field, math.nan)
        return index

    def candidates(self, index: Sequence[int], scores: Sequence[float] | None = None) -> Candidates:
        """Rows as candidates; without scores all are equally able."""
        return Candidates(
            np.asarray(index, dtype=np.intp), np.ones(len(index)) if scores is None else np.asarray(scores, dtype=float)
        )

    def fleet(self, candidates: Candidates, now: float) -> Fleet:
        """The candidates as they are believed to be now."""
        at = candidates.rows
        # As plain numbers they are copied much faster.
        rows = np.asarray(self._rows.view("f8").reshape(len(self._rows), -1)[at].view(AGENT)[:, 0])
        rows["score"] = candidates.scores
        if now < self._guessing_until:
            self._add_others(rows, self._others[at], now)
        return Fleet(self._names, self._places, rows, at)

    def _add_others(self, rows: Rows, others: Rows, now: float) -> None:
        """Others' requests end in about the time that one takes; once that is long past, nothing is known of them."""
        kept = np.exp(np.minimum(0.0, others["heard"] - now) / others["span_s"])
        kept[kept < _FORGOTTEN] = 0.0
        total = rows["own"] + kept * others["others"]
        rows["running"] = np.minimum(total, rows["slots"])
        rows["queued"] = total - rows["running"]

    # What we see ourselves

    def sent(self, index: int, demand: Demand, now: float) -> float:
        """Counts a request that goes to an agent; returns the seconds that it should take there."""
        seconds = self.expected_s(index, demand)
        agent = self._agents[self._names[index]]
        agent.own += 1
        agent.note(now)
        self._rows["own"][index] += 1
        self._rows["backlog_s"][index] += seconds
        self._count(index)
        return seconds

    def ended(self, index: int, expected_s: float, now: float) -> None:
        """Counts a request that came back, failed or was given up; `expected_s` is what `sent` returned."""
        agent = self._agents[self._names[index]]
        agent.own = max(0, agent.own - 1)
        agent.note(now)
        self._rows["own"][index] = max(0.0, self._rows["own"][index] - 1)
        # Rounding does not add up: without requests there is no backlog.
        left = max(0.0, self._rows["backlog_s"][index] - expected_s)
        self._rows["backlog_s"][index] = left if self._rows["own"][index] else 0.0
        self._count(index)

    def measured(self, index: int, seconds: float, tokens: float, expected: float) -> None:
        """Learns from an answer; what nobody knows, or is impossible, is passed over, but who answers is not busy.

        Args:
            index: the agent's row.
            seconds: how long it worked on it.
            tokens: that it wrote; 0 if no language model did.
            expected: that it was expected to write.
        """
        if self._backoff.pop(index, None) is not None:
            self._others["span_s"][index] = self._typical_s(index)
        if 0 < seconds < math.inf and 0 <= tokens < math.inf:
            self._learned.add(index, self._services[index], seconds, tokens, expected)
            self._learn(index)

    def busy(self, index: int, now: float, retry_after_s: float = 0.0) -> None:
        """Notes that an agent had no room for a request of ours, which has been counted as ended.

        Args:
            index: its row.
            now: the scheduler's clock.
            retry_after_s: when it may have room, if it says so; each time in vain counts for longer.
        """
        row = self._rows[index]
        wait_s = retry_after_s if retry_after_s > 0 else self._typical_s(index)
        span = self._backoff[index] = min(_LONGEST_SPAN_S, max(2 * self._backoff.get(index, 0.0), wait_s))
        self._believe(index, max(0.0, float(row["slots"] - row["own"])), span, now)

    def expected_s(self, index: int, demand: Demand) -> float:
        """How long an agent should take for a request, in seconds."""
        row = self._rows[index]
        prompt = demand.prompt_tokens / row["prompt_tokens_per_s"] if demand.prompt_tokens else 0.0
        return float(row["overhead_s"] + prompt + demand.tokens * row["wordiness"] / row["tokens_per_s"])

    def tokens(self, service: str) -> float:
        """How many tokens an answer of a service has: the median of those seen."""
        known = self._learned.tokens(service)
        return _TOKENS if known is None else known

    def straggles_s(self, index: int, expected_s: float) -> float:
        """After how many seconds an agent counts as late with a request; infinite while too little is known of it.

        Args:
            index: its row.
            expected_s: how long it should take.
        """
        return self._learned.straggles_s(index, expected_s)

    def guessing(self, now: float) -> bool:
        """Whether somebody is believed to do others' work, which ends without our being told."""
        return now < self._guessing_until

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
            self._rows[field][agent.rows] = math.nan if value is None or not math.isfinite(value) else value
        if condition:
            first = self._rows[agent.rows[0]]
            self._rows["hardship"][agent.rows] = hardship(*(float(first[field]) for field in _CONDITION))
        numbers = (running, queued, slots)
        if not all(0 <= n <= _MOST for n in numbers) or running > max(1, slots):
            if not agent.complained:
                _log.warning(
                    "@%s reports an impossible load (%g running, %g waiting, %g slots): it is not believed; "
                    "mend its load report",
                    name,
                    *(math.inf if n > _MOST else n for n in numbers),
                )
            agent.complained = True
            return
        beyond = max(0.0, running + queued - agent.most(now))
        for index in agent.rows:
            share = min(1.0, float(self._rows["slots"][index]) / max(1.0, slots))
            span = self._backoff.get(index) or self._typical_s(index)
            self._believe(index, beyond * share, span, now)

    def asleep(self, name: str, state: bool) -> None:
        """Notes whether an agent sleeps."""
        agent = self._agents.get(name)
        if agent is not None:
            self._rows["asleep"][agent.rows] = state

    def _typical_s(self, index: int) -> float:
        """How long others' requests take there, as far as ours tell."""
        row = self._rows[index]
        return max(_SHORTEST_SPAN_S, float(row["overhead_s"] + _TOKENS / row["tokens_per_s"]))

    def _learn(self, index: int) -> None:
        """What was measured, or else what was known beforehand."""
        speed, seconds = self._learned.tokens_per_s(index), self._learned.seconds(index)
        self._rows["tokens_per_s"][index] = self._terms[index].tokens_per_s if speed is None else speed
        self._rows["wordiness"][index] = self._learned.wordiness(index)
        self._rows["overhead_s"][index] = self._terms[index].overhead_s if seconds is None else seconds

    def _count(self, index: int) -> None:
        """As far as we see it ourselves."""
        row = self._rows[index]
        row["running"] = min(row["own"], row["slots"])
        row["queued"] = row["own"] - row["running"]

    def _believe(self, index: int, others: float, span_s: float, now: float) -> None:
        self._others[index] = others, now, span_s
        if others:
            self._guessing_until = max(self._guessing_until, now - span_s * math.log(_FORGOTTEN))

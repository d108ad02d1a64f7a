"""`mqttcollab health`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from mqttcollab.cli.client import running_client
from mqttcollab.cli.show import clean, console, print_json, print_plain
from mqttcollab.codec import decode
from mqttcollab.errors import MessageError, TopicError
from mqttcollab.messages import Load
from mqttcollab.topics import Status, check_agent, parse, parse_status
from mqttcollab.transport.base import Transport, TransportMessage

HEALTHY, DEGRADED, GONE, UNKNOWN = range(4)
_WORDS = ("healthy", "degraded", "gone")
_MISSED_HEARTBEATS = 3
_QUIET_S = 0.1
_MOST_S = 2.0
# How long one is waited for whose last report is old: perhaps its clock is wrong, and the next one comes.
_MOST_PATIENCE_S = 12.0


class Verdict(NamedTuple):
    """How an agent is: an exit code, and why it is not healthy."""

    code: int
    reason: str = ""


@dataclass(slots=True)
class _Seen:
    """What the broker has of an agent, and whether a load report came while we watched."""

    status: Status | None = None
    load: Load | None = None
    heard: bool = False

    def verdict(self, max_age_s: float | None) -> Verdict:
        status, age_s = self.status, self.age_s
        if status is None:
            return Verdict(GONE, "it has no status at this broker")
        if status.state == "offline":
            return Verdict(GONE, "it is offline")
        lease_s = max_age_s if max_age_s is not None else self.lease_s
        if status.state != "sleeping" and age_s > lease_s:
            last = "it has never sent a load report" if math.isinf(age_s) else f"its last report is {age_s:.0f} s old"
            return Verdict(GONE, f"{last}; at most {lease_s:g} s are allowed")
        if status.state == "degraded":
            return Verdict(DEGRADED, status.reason or "it does not say why")
        return Verdict(HEALTHY)

    @property
    def age_s(self) -> float:
        """Since its last load report, by its own clock."""
        if self.heard:
            return 0.0
        time_ms = self.load.time_ms if self.load is not None else None
        return math.inf if time_ms is None else max(0.0, time.time() - time_ms / 1000)

    @property
    def lease_s(self) -> float:
        heartbeat_s = self.load.heartbeat_s if self.load is not None and self.load.time_ms is not None else None
        return math.inf if heartbeat_s is None else _MISSED_HEARTBEATS * heartbeat_s


async def check_health(agent: str | None, broker: str | None, max_age_s: float | None, *, as_json: bool) -> int:
    """Prints how an agent is, or all that the broker knows; returns the worst exit code.

    Raises:
        MqttCollabError: the broker can't be reached, or the agent's name is none.
    """
    if agent is not None:
        agent = check_agent(agent.removeprefix("@"))
    async with running_client(broker) as me:
        seen = await _look(me.transport, agent, max_age_s)
    verdicts = {name: each.verdict(max_age_s) for name, each in sorted(seen.items())}
    if as_json:
        print_json([_described(name, seen[name], verdict) for name, verdict in verdicts.items()])
    else:
        for name, (code, reason) in verdicts.items():
            line = (f"@{name}", _WORDS[code], clean(reason))
            if console.is_terminal:
                console.print("  ".join(filter(None, line)), markup=False)
            else:
                print_plain("\t".join(line).rstrip())
        if not verdicts:
            console.print("No agent is there.")
    return max((verdict.code for verdict in verdicts.values()), default=GONE)


async def _look(transport: Transport, agent: str | None, max_age_s: float | None) -> dict[str, _Seen]:
    """What is retained; those whose last report is old get a heartbeat's time to send another."""
    seen = {} if agent is None else {agent: _Seen()}
    news = asyncio.Event()

    def take(message: TransportMessage) -> None:
        with contextlib.suppress(TopicError, MessageError):
            topic = parse(message.topic)
            view = seen.setdefault(topic.agent, _Seen())
            if topic.kind == "status":
                view.status = parse_status(message.payload) if message.payload else None
            elif message.payload:
                view.load, view.heard = decode(Load, message.payload), not message.retain
            news.set()

    def late() -> list[_Seen]:
        there = [each for each in seen.values() if each.status is not None and each.status.state != "offline"]
        return [each for each in there if not each.heard and each.verdict(max_age_s).code == GONE]

    loop = asyncio.get_running_loop()
    began = loop.time()
    filters = [f"slm/agents/{'+' if agent is None else f'@{agent}'}/{leaf}" for leaf in ("status", "load")]
    await transport.subscribe(filters, take)
    quiet_s, deadline = max(_QUIET_S, 3 * (loop.time() - began)), loop.time() + _MOST_S
    while await _within(quiet_s, news) and loop.time() < deadline:
        pass
    heartbeats = [each.load.heartbeat_s or 0.0 for each in late() if each.load is not None]
    deadline = loop.time() + min(_MOST_PATIENCE_S, 1.2 * max(heartbeats, default=0.0))
    while late() and (left_s := deadline - loop.time()) > 0:
        await _within(left_s, news)
    return {name: each for name, each in seen.items() if each.status is not None or name == agent}


async def _within(seconds: float, news: asyncio.Event) -> bool:
    news.clear()
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        return False
    return True


def _described(name: str, seen: _Seen, verdict: Verdict) -> dict[str, Any]:
    return {
        "agent": name,
        "health": _WORDS[verdict.code],
        "reason": verdict.reason or None,
        "status": seen.status.state if seen.status is not None else None,
        "epoch": seen.status.epoch if seen.status is not None else None,
        "age_s": None if math.isinf(seen.age_s) else round(seen.age_s, 3),
    }

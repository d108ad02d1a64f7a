"""The systems that are compared, over one broker and one fleet."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.collaboration.checks import Question
from benchmarks.common import ROOT
from mqttcollab import Agent, AgentOptions
from mqttcollab.broker import Broker
from mqttcollab.cli.fleet import build, read_fleet
from mqttcollab.codec import decode
from mqttcollab.errors import RequestError
from mqttcollab.messages import ContextItem, Observation, Reply, Step
from mqttcollab.orchestrator import OrchestratorOptions, orchestrator_agent
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.topics import ORCHESTRATION
from mqttcollab.transport.base import TransportMessage

FLEET = ROOT / "devices" / "fleet.toml"
GENERAL = "knowledge.gpt/general"
# Replayed hours stand still, and what moves is observed once a second, so that an answer can be held against it. The
# phone keeps its answers short: what is right in them comes first, and half of a run is its writing.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "roadside": {"seconds_per_hour": 1e9},
    "weather": {"seconds_per_hour": 1e9},
    "wearable": {"interval": 1.0},
    "camera": {"interval": 1.0},
    "phone": {"max_tokens": 80},
}
TTL_S = 60.0
# An answer about now may rest on a measurement this old, in seconds.
AGE_S = 5.0

Ask = Callable[[Question], Awaitable[Reply]]


class SensorLog:
    """What sensors have published, by the time of receipt."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=120))

    def take(self, message: TransportMessage) -> None:
        if not message.payload:
            return
        observation = decode(Observation, message.payload, sent_type=message.type)
        for key, value in observation.values.items():
            for name in (key, f"{observation.service}:{key}"):
                self._seen[name].append((time.monotonic(), value))

    def since(self, begun: float) -> dict[str, list[float]]:
        """Every value from `AGE_S` before that time on, the last one of a key that has had none since."""
        recent = {key: [value for at, value in seen if at >= begun - AGE_S] for key, seen in self._seen.items()}
        return {key: values or [self._seen[key][-1][1]] for key, values in recent.items()}


@dataclass(frozen=True, slots=True)
class Place:
    """A broker with the fleet on it.

    Attributes:
        asker: asks the questions.
        services: what the fleet offers.
    """

    url: str
    asker: Agent
    log: SensorLog
    services: tuple[str, ...]


@asynccontextmanager
async def fleet() -> AsyncIterator[Place]:
    """Runs a broker and the demo's devices; raises ConfigError where a device lacks something, such as the model."""
    tables = read_fleet(FLEET)
    devices = [build(FLEET, name, {**table, **SETTINGS.get(name, {})}) for name, table in tables.items()]
    asker, log = Agent("bench-asker", options=AgentOptions(visible=False)), SensorLog()
    async with Broker() as broker, asker.running(broker.info.url):
        await asker.transport.subscribe(
            "data.gpt/#", lambda m: log.take(m) if m.topic.endswith("/observation") else None
        )
        for device in devices:
            await device.start(broker.info.url)
        try:
            registry = await asker.follow()
            await _until(lambda: len({offer.agent.name for offer in registry.offers()}) == len(devices))
            services = tuple(sorted({offer.record.service for offer in registry.offers()}))
            await asker.ask("Hello", service=GENERAL, ttl_s=TTL_S)  # loads the model
            await _until(lambda: "heart_rate" in log.since(0) and "people" in log.since(0))
            yield Place(broker.info.url, asker, log, services)
        finally:
            for device in devices:
                await device.stop()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def orchestrator(place: Place, options: Mapping[str, Any]) -> AsyncIterator[Ask]:
    """A fresh orchestrator, which has learnt nothing yet and leaves nothing behind."""
    agent = orchestrator_agent("bench-orchestrator", load_embedder("wordllama"), options=OrchestratorOptions(**options))

    async def ask(question: Question) -> Reply:
        return await place.asker.ask(question.text, service=ORCHESTRATION, agent=agent.name, ttl_s=TTL_S)

    async with agent.running(place.url):
        await _until(lambda: set(place.services) <= {offer.record.service for offer in agent.registry.offers()})
        yield ask


@asynccontextmanager
async def phone(place: Place) -> AsyncIterator[Ask]:
    """The user's own device, alone."""
    yield lambda question: place.asker.ask(question.text, service=GENERAL, ttl_s=TTL_S)


@asynccontextmanager
async def refuser(_: Place) -> AsyncIterator[Ask]:
    """One that never answers."""

    async def ask(_: Question) -> Reply:
        raise RequestError("no_capability", "this one answers nothing")

    yield ask


@asynccontextmanager
async def everybody(place: Place) -> AsyncIterator[Ask]:
    """Every agent is asked the whole question, and everything that any of them says is the answer."""

    async def ask(question: Question) -> Reply:
        asked = (place.asker.ask(question.text, service=service, ttl_s=TTL_S) for service in place.services)
        return _joined(r for r in await asyncio.gather(*asked, return_exceptions=True) if isinstance(r, Reply))

    yield ask


@asynccontextmanager
async def oracle(place: Place) -> AsyncIterator[Ask]:
    """The question's own plan, done step by step, each with the results so far: as good as these agents can be."""

    async def ask(question: Question) -> Reply:
        replies: list[Reply] = []
        known: dict[str, Any] = {}
        for step in question.plan:
            context = [ContextItem(text=r.output or "", agent=r.agent, service=r.service, data=r.data) for r in replies]
            text = step["text"].format_map(known) if "{" in step["text"] else step["text"]
            try:
                reply = await place.asker.ask(text, service=step["service"], context=context, ttl_s=TTL_S)
            except RequestError:
                continue
            replies.append(reply)
            known |= reply.data or {}
        answer = _joined(replies)
        if replies and not _answers_all(question, replies):
            answer.missing = ["a part that nobody could answer"]
        return answer

    yield ask


def _answers_all(question: Question, replies: list[Reply]) -> bool:
    """A part to be refused has no step in the plan; who knows everybody says so."""
    refuses = any("refuses" in part for part in question.check.get("all", ()))
    return len(replies) == len(question.plan) and not refuses


def _joined(replies: Iterable[Reply]) -> Reply:
    replies = list(replies)
    if not replies:
        raise RequestError("no_capability", "nobody could answer")
    steps = [Step(number=n, service=r.service or "", agent=r.agent) for n, r in enumerate(replies, 1)]
    return replies[0].model_copy(update={"output": "\n".join(r.output or "" for r in replies), "steps": steps})

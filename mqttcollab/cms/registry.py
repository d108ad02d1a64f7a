"""Who is there, what they offer, how loaded they are: built from retained topics, kept by their changes.

The registry follows `slm/agents/+/…` and, for each agent that is present, `+/+/@agent` to `+/+/+/+/+/@agent`:
filters that match its service records and neither requests nor embeddings, of which a city has many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from mqttcollab.codec import decode
from mqttcollab.errors import ConfigError, MessageError, TopicError, TransportError
from mqttcollab.messages import Load, Message, Profile, ServiceRecord
from mqttcollab.topics import Status, matches, parse, parse_status, record_filters
from mqttcollab.transport.base import Transport, TransportMessage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

_MISSED_HEARTBEATS = 3
_REMEMBERED_CHANGES = 4096
_QUIET_S = 0.15

ChangeKind = Literal["online", "sleeping", "offline", "record", "record_gone", "model"]


class Change(NamedTuple):
    """Something that happened in the registry; `number` counts up by one."""

    number: int
    kind: ChangeKind
    agent: str
    service: str


@dataclass(slots=True)
class AgentView:
    """What the registry knows of one agent.

    Attributes:
        heard: loop time of the last sign of life.
    """

    name: str
    status: Status | None = None
    profile: Profile | None = None
    load: Load | None = None
    records: dict[str, ServiceRecord] = field(default_factory=dict)
    record_times: dict[str, float] = field(default_factory=dict)
    heard: float = 0.0
    expired: bool = False

    @property
    def present(self) -> bool:
        """Online or asleep, and its lease (three heartbeats) has not run out."""
        return self.status is not None and self.status.state != "offline" and not self.expired

    @property
    def asleep(self) -> bool:
        """A battery device that will take its requests when it wakes."""
        return self.status is not None and self.status.state == "sleeping"

    @property
    def heartbeat_s(self) -> float | None:
        """The interval that the agent promised, in seconds; None if it promised none."""
        if self.load is not None and self.load.heartbeat_s is not None:
            return self.load.heartbeat_s
        return min((r.heartbeat_s for r in self.records.values() if r.heartbeat_s is not None), default=None)


class Offer(NamedTuple):
    """A service of an agent that is present."""

    record: ServiceRecord
    agent: AgentView

    @property
    def pressure(self) -> float:
        """Requests running and waiting per slot, as last reported; 0 if never."""
        load = self.agent.load
        return 0.0 if load is None else (load.running + load.queued) / max(1, load.slots)


class Match(NamedTuple):
    """An offer and how close it is to a text: the largest cosine over its description and examples."""

    offer: Offer
    score: float


class Registry:
    """A live view of the agents on a broker.

    Args:
        transport: the connection.
        embedder: for lookup by meaning; without it `nearest` raises ConfigError.
    """

    def __init__(self, transport: Transport, embedder: Embedder | None = None) -> None:
        self.embedder = embedder
        self.agents: dict[str, AgentView] = {}
        self.models: dict[str, dict[str, str]] = {}
        self.problems: dict[str, str] = {}
        self._transport = transport
        self._vectors: dict[tuple[str, str], NDArray[np.float32]] = {}
        self._changes: deque[Change] = deque(maxlen=_REMEMBERED_CHANGES)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Subscribes; may come before the transport is connected."""
        await self._transport.subscribe("slm/agents/+/status", self._on_status)
        await self._transport.subscribe("slm/agents/+/profile", self._on_profile)
        await self._transport.subscribe("slm/agents/+/load", self._on_load, qos=0)
        await self._transport.subscribe("slm/models/#", self._on_model)
        self._sweep()

    async def stop(self) -> None:
        """Ends what runs in the background; the subscriptions end with the connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def settle(self, timeout_s: float = 2.0) -> None:
        """Waits until the retained messages are in: nothing has changed for 0.15 s (at most `timeout_s`)."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline:
            try:
                async with asyncio.timeout(_QUIET_S):
                    await self.changed()
            except TimeoutError:
                return

    # Looking things up

    @property
    def version(self) -> int:
        """The number of the latest change."""
        return self._changes[-1].number if self._changes else 0

    def changes_since(self, version: int) -> list[Change]:
        """The changes after `version`, oldest first (of the last 4096)."""
        return [change for change in self._changes if change.number > version]

    async def changed(self) -> None:
        """Waits for the next change."""
        await self._changed.wait()

    def present(self) -> list[AgentView]:
        """The agents that are there, by name."""
        return [self.agents[name] for name in sorted(self.agents) if self.agents[name].present]

    def offers(self, pattern: str = "#") -> list[Offer]:
        """What is offered now, least loaded first, sleepers last.

        Args:
            pattern: a service name, or an MQTT filter over service names: `knowledge.gpt/#`, `+/medicine/#`.
        """
        now = asyncio.get_running_loop().time()
        found = [
            Offer(record, agent)
            for agent in self.present()
            for record in agent.records.values()
            if matches(pattern, record.service)
            and (record.ttl_s is None or now - agent.record_times[record.service] <= record.ttl_s)
        ]
        return sorted(found, key=lambda o: (o.agent.asleep, o.pressure))

    def nearest(self, text: str, pattern: str = "#") -> list[Match]:
        """The offers by closeness in meaning to a text, closest first; equally close ones least loaded first.

        Raises:
            ConfigError: the registry was made without an embedder.
        """
        if self.embedder is None:
            raise ConfigError(
                "finding services by meaning takes an embedder: pip install 'mqttcollab[embed]' and pass"
                " embedder=load_embedder('wordllama')"
            )
        query = self.embedder.embed([text])[0]
        found = [Match(offer, self._closeness(offer.record, query)) for offer in self.offers(pattern)]
        return sorted(found, key=lambda match: -round(match.score, 6))

    def _closeness(self, record: ServiceRecord, query: NDArray[np.float32]) -> float:
        assert self.embedder is not None
        key = (record.agent, record.service)
        if key not in self._vectors:
            texts = [text for text in (record.description, *record.examples) if text.strip()]
            self._vectors[key] = self.embedder.embed(texts or [record.service.replace("/", " ")])
        return float((self._vectors[key] @ query).max())

    # Keeping it up to date

    def _view(self, name: str, *, alive: bool = False) -> AgentView:
        view = self.agents.setdefault(name, AgentView(name))
        view.heard = asyncio.get_running_loop().time()
        if alive and view.expired:
            view.expired = False
            self._note("online", name)
        return view

    def _on_status(self, message: TransportMessage) -> None:
        name = self._agent_of(message)
        if name is None:
            return
        if not message.payload:
            self._forget(name)
            return
        try:
            status = parse_status(message.payload)
        except TopicError as error:
            self.problems[message.topic] = str(error)
            return
        view = self._view(name)
        if status.state == "offline" and view.status is not None and view.status.epoch != status.epoch:
            return  # a will that comes late: the agent was born again since
        before, view.status, view.expired = view.present, status, False
        self._note(status.state, name)
        if view.present and not before:
            self._background(lambda: self._transport.subscribe(record_filters(name), self._on_record))
        elif before and not view.present:
            self._background(lambda: self._transport.unsubscribe(record_filters(name)))
            view.records.clear()

    def _on_profile(self, message: TransportMessage) -> None:
        profile = self._decode(Profile, message)
        if profile is not None:
            self._view(profile.agent).profile = profile

    def _on_load(self, message: TransportMessage) -> None:
        load = self._decode(Load, message)
        if load is not None:
            # A retained report that is replayed is old; it starts the lease but does not revive anybody.
            self._view(load.agent, alive=not message.retain).load = load

    def _on_record(self, message: TransportMessage) -> None:
        try:
            topic = parse(message.topic)
        except TopicError:
            return
        if topic.kind != "record":
            return
        view = self._view(topic.agent)
        self._vectors.pop((topic.agent, topic.service), None)
        record = self._decode(ServiceRecord, message) if message.payload else None
        if record is not None and record.service != topic.service:
            self.problems[message.topic] = f"the record speaks of {record.service}"
            record = None
        if record is None:
            if view.records.pop(topic.service, None) is not None:
                self._note("record_gone", topic.agent, topic.service)
            return
        view.records[topic.service] = record
        view.record_times[topic.service] = view.heard
        self._note("record", topic.agent, topic.service)

    def _on_model(self, message: TransportMessage) -> None:
        _, _, model, *key = message.topic.split("/")
        facts = self.models.setdefault(model, {})
        if message.payload:
            facts["/".join(key)] = message.payload.decode("utf-8", "replace")
        else:
            facts.pop("/".join(key), None)
        self._note("model", "", model)

    def _agent_of(self, message: TransportMessage) -> str | None:
        try:
            return parse(message.topic).agent
        except TopicError as error:
            self.problems[message.topic] = str(error)
            return None

    def _decode(self, kind: type[M], message: TransportMessage) -> M | None:
        """The message, if it is valid and speaks of the agent in its topic; else the problem is kept for people."""
        name = self._agent_of(message)
        if name is None or not message.payload:
            return None
        try:
            content = decode(kind, message.payload, sent_type=message.type)
        except MessageError as error:
            self.problems[message.topic] = str(error)
            _log.warning("%s: %s", message.topic, error)
            return None
        if getattr(content, "agent", name) != name:
            self.problems[message.topic] = "it speaks of another agent than its topic"
            return None
        self.problems.pop(message.topic, None)
        return content

    def _forget(self, name: str) -> None:
        view = self.agents.pop(name, None)
        if view is not None:
            for service in view.records:
                self._vectors.pop((name, service), None)
            self._background(lambda: self._transport.unsubscribe(record_filters(name)))
            self._note("offline", name)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(1.0, self._sweep)
        for view in self.agents.values():
            lease = view.heartbeat_s
            if view.present and not view.asleep and lease and loop.time() - view.heard > _MISSED_HEARTBEATS * lease:
                view.expired = True
                self._note("offline", view.name)

    def _note(self, kind: ChangeKind, agent: str, service: str = "") -> None:
        self._changes.append(Change(self.version + 1, kind, agent, service))
        self._changed.set()
        self._changed = asyncio.Event()

    def _background(self, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            try:
                await work()
            except TransportError as error:
                _log.warning("the registry can't follow an agent's records: %s", error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""Who is there, what they offer, how loaded they are: built from retained topics, kept by their changes.

The registry follows `slm/agents/+/…` and, for each agent that is present, `+/+/@agent` to `+/+/+/+/+/@agent`:
filters that match its service records and neither requests nor embeddings, of which a city has many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from mqttcollab.cms.meaning import Meaning
from mqttcollab.cms.reader import Reader
from mqttcollab.cms.views import AgentView, Change, ChangeKind, Match, Offer
from mqttcollab.errors import SubscribeError, TopicError, TransportError
from mqttcollab.messages import Load, Profile, ServiceRecord
from mqttcollab.topics import matches, parse, parse_status, record_filters
from mqttcollab.transport.base import Handler, Transport, TransportMessage

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder

__all__ = ["AgentView", "Change", "Match", "Offer", "Registry"]

_log = logging.getLogger(__name__)

_MISSED_HEARTBEATS = 3
_REMEMBERED_CHANGES = 4096
_QUIET_ROUND_TRIPS = 3
_QUIET_LEAST_S = 0.05
# How long the sessions of our agents outlive their connections.
_COMES_BACK_S = 300.0


class Registry:
    """A live view of the agents on a broker.

    Args:
        transport: the connection.
        embedder: for lookup by meaning; without it `nearest` raises ConfigError.

    Attributes:
        agents: everybody ever heard of, by name, also those that are gone.
        models: what stands under `slm/models/<model>/…`, by model and key.
    """

    def __init__(self, transport: Transport, embedder: Embedder | None = None) -> None:
        self.agents: dict[str, AgentView] = {}
        self.models: dict[str, dict[str, str]] = {}
        self._transport = transport
        self._reader = Reader()
        self._meaning = Meaning(embedder)
        self._changes: deque[Change] = deque(maxlen=_REMEMBERED_CHANGES)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_loads: list[Callable[[AgentView], None]] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._stopped = False
        self._round_trip_s = 0.0

    async def start(self) -> None:
        """Subscribes; may come before the transport is connected."""
        if self._sweeper is None:
            self._sweep()
            self._transport.on_connected(self._wake)
        await self._subscribe(["slm/agents/+/status"], self._on_status)
        await self._subscribe(["slm/agents/+/profile"], self._on_profile)
        await self._subscribe(["slm/agents/+/load"], self._on_load, qos=0)
        asked = asyncio.get_running_loop().time()
        await self._subscribe(["slm/models/#"], self._on_model)
        if self._transport.online:
            self._round_trip_s = asyncio.get_running_loop().time() - asked

    async def stop(self) -> None:
        """Ends what runs in the background; the subscriptions end with the connection."""
        self._stopped = True
        self._wake_up()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def settle(self, timeout_s: float = 2.0) -> None:
        """Waits until the retained messages are in: nothing has changed for three round trips, and at least 50 ms.

        A broker sends them by and by, as we acknowledge. Without a connection it first waits for one.

        Args:
            timeout_s: what is waited at most where changes don't end.

        Raises:
            TransportError: the registry was stopped meanwhile.
        """
        while not self._transport.online:
            if self._stopped:
                raise TransportError("the registry was stopped")
            await self._changed.wait()
        loop = asyncio.get_running_loop()
        quiet_s = max(_QUIET_LEAST_S, _QUIET_ROUND_TRIPS * self._round_trip_s)
        deadline = loop.time() + max(timeout_s, 2 * quiet_s)
        while loop.time() < deadline:
            try:
                async with asyncio.timeout(quiet_s):
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

    async def gone(self, name: str, *, grace_s: float = 0.0, reborn: bool = False) -> None:
        """Waits until the present life of an agent has ended: it stopped, was lost, or was born again.

        Args:
            name: the agent.
            grace_s: how long it may be offline and still come back to the same life, as after a broken connection.
            reborn: whether it may come back to a new life as well.
        """
        life = self._life(name)
        while True:
            while life is not None and self._life(name) == life:
                await self.changed()
            try:
                async with asyncio.timeout(grace_s):
                    while self._life(name) is None:
                        await self.changed()
            except TimeoutError:
                return
            if life not in (None, self._life(name)) and not reborn:
                return
            life = self._life(name)

    def on_load(self, heard: Callable[[AgentView], None]) -> None:
        """Calls a function at every load report, which is no change of what is on offer."""
        self._on_loads.append(heard)

    def off_load(self, heard: Callable[[AgentView], None]) -> None:
        """Calls it no more."""
        self._on_loads.remove(heard)

    def _life(self, name: str) -> int | None:
        view = self.agents.get(name)
        return view.status.epoch if view is not None and view.present and view.status is not None else None

    @property
    def problems(self) -> dict[str, str]:
        """Why a retained message was not understood, by topic (the latest 256)."""
        return self._reader.problems

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

    def expected(self, pattern: str = "#") -> list[Offer]:
        """Durable services of agents that vanished less than five minutes ago: what they are sent waits for them."""
        since = asyncio.get_running_loop().time() - _COMES_BACK_S
        return [
            Offer(record, agent)
            for agent in self.agents.values()
            if not agent.present and agent.heard > since
            for record in (agent.records if agent.expired else agent.lost).values()
            if record.durable and matches(pattern, record.service)
        ]

    def nearest(self, text: str, pattern: str = "#") -> list[Match]:
        """The offers by closeness in meaning to a text, closest first; equally close ones least loaded first.

        Raises:
            ConfigError: the registry was made without an embedder.
        """
        offers = self.offers(pattern)
        found = [Match(offer, score) for offer, score in zip(offers, self.closeness(text, offers), strict=True)]
        return sorted(found, key=lambda match: -round(match.score, 6))

    def closeness(self, text: str, offers: Sequence[Offer]) -> list[float]:
        """For each offer the largest cosine between the text and its description or an example of it.

        Raises:
            ConfigError: the registry was made without an embedder.
        """
        return self._meaning.closeness(text, [offer.record for offer in offers])

    # Keeping it up to date

    def _view(self, name: str) -> AgentView:
        view = self.agents.setdefault(name, AgentView(name))
        view.heard = asyncio.get_running_loop().time()
        return view

    def _on_status(self, message: TransportMessage) -> None:
        name = self._reader.agent_of(message)
        if name is None:
            return
        if not message.payload:
            self.problems.pop(message.topic, None)
            return self._forget(name)
        try:
            status = parse_status(message.payload)
        except TopicError as error:
            return self._reader.note(message.topic, str(error))
        self.problems.pop(message.topic, None)
        known = self.agents.get(name)
        before = known.status if known is not None else None
        if status.state == "offline" and before is not None and before.epoch != status.epoch:
            return  # a will that comes late: the agent was born again since
        view = self._view(name)
        was_present, view.status, view.expired = view.present, status, False
        if status != before or view.present != was_present:
            self._note(status.state, name)
        if not view.present:
            if before is not None and before.state != "offline":
                self._drop_records(view)
        elif not was_present:
            self._background(lambda: self._subscribe(record_filters(name), self._on_record))
        return None

    def _on_profile(self, message: TransportMessage) -> None:
        name, profile = self._reader.read(Profile, message)
        if name is None:
            return
        view = self._view(name)
        view.profile = profile
        if profile is not None and profile.services:
            # While we were away, the agent may have come back with less, and nothing of that is replayed.
            for service in view.records.keys() - set(profile.services):
                self._drop_record(view, service)

    def _on_load(self, message: TransportMessage) -> None:
        name, load = self._reader.read(Load, message)
        if name is None:
            return
        view = self._view(name)
        view.load = load
        for heard in self._on_loads:
            heard(view)
        # A retained report that is replayed is old; it starts the lease but does not revive anybody.
        if view.expired and load is not None and not message.retain:
            view.expired = False
            self._note(view.status.state if view.status is not None else "online", name)

    def _on_record(self, message: TransportMessage) -> None:
        try:
            topic = parse(message.topic)
        except TopicError:
            return
        view = self.agents.get(topic.agent)
        if topic.kind != "record" or view is None or view.status is None or view.status.state == "offline":
            return
        _, record = self._reader.read(ServiceRecord, message)
        if record is not None and record.service != topic.service:
            self._reader.note(message.topic, f"the record speaks of {record.service}")
            record = None
        if record is None:
            return self._drop_record(view, topic.service)
        view.heard = view.record_times[topic.service] = asyncio.get_running_loop().time()
        if view.records.get(topic.service) != record:
            view.records[topic.service] = record
            self._meaning.forget(topic.agent, topic.service)
            self._note("record", topic.agent, topic.service)
        return None

    def _on_model(self, message: TransportMessage) -> None:
        levels = message.topic.split("/")
        if len(levels) < 4:
            return self._reader.note(message.topic, "it names no key: expected slm/models/<model>/<key>")
        model, key = levels[2], "/".join(levels[3:])
        facts = self.models.setdefault(model, {})
        if message.payload:
            facts[key] = message.payload.decode("utf-8", "replace")
        else:
            facts.pop(key, None)
            if not facts:
                del self.models[model]
        self._note("model", "", model)
        return None

    def _drop_record(self, view: AgentView, service: str) -> None:
        self._meaning.forget(view.name, service)
        view.record_times.pop(service, None)
        if view.records.pop(service, None) is not None:
            self._note("record_gone", view.name, service)

    def _drop_records(self, view: AgentView) -> None:
        view.lost = {service: record for service, record in view.records.items() if record.durable}
        for service in view.records:
            self._meaning.forget(view.name, service)
        view.records.clear()
        view.record_times.clear()
        self._background(lambda: self._transport.unsubscribe(record_filters(view.name)))

    def _forget(self, name: str) -> None:
        view = self.agents.pop(name, None)
        if view is not None:
            self._drop_records(view)
            self._note("offline", name)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        self._sweeper = asyncio.get_running_loop().call_later(1.0, self._sweep)
        for view in self.agents.values():
            if not self._transport.online:
                view.heard = now  # it is we who can't hear: every lease starts again when we are back
            lease = view.heartbeat_s
            if view.present and not view.asleep and lease and now - view.heard > _MISSED_HEARTBEATS * lease:
                view.expired = True
                self._note("offline", view.name)

    def _note(self, kind: ChangeKind, agent: str, service: str = "") -> None:
        self._changes.append(Change(self.version + 1, kind, agent, service))
        self._wake_up()

    def _wake_up(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wake(self) -> None:
        self._wake_up()

    async def _subscribe(self, filters: list[str], handler: Handler, *, qos: int = 1) -> None:
        try:
            await self._transport.subscribe(filters, handler, qos=qos)
        except SubscribeError:
            raise
        except TransportError:  # the connection broke meanwhile: the next one brings it
            _log.debug("the connection broke while the registry subscribed to %s", filters)

    def _background(self, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            try:
                await work()
            except TransportError as error:
                _log.warning("the registry can't follow an agent's records: %s", error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

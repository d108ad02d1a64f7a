"""One run of an agent, from connecting to the goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from mqttcollab.cms.registry import Registry
from mqttcollab.config import BrokerAddress
from mqttcollab.declaration import Declaration, Repeated
from mqttcollab.errors import JournalError, MqttCollabError
from mqttcollab.journal import Journal, open_journal
from mqttcollab.messages import Load
from mqttcollab.peers import Peers
from mqttcollab.places import Places
from mqttcollab.presence import Presence, typed
from mqttcollab.rpc import Requester, Responder
from mqttcollab.rpc.durable import TakeOver
from mqttcollab.sensing import Senses
from mqttcollab.service import adapt
from mqttcollab.topics import agent_topic, anycast_filter, record_topic
from mqttcollab.transport.base import Transport, TransportMessage
from mqttcollab.transport.mqtt import MqttTransport
from mqttcollab.watchdog import Watchdog

_log = logging.getLogger(__name__)

# Makes a transport from a client id and the will.
TransportFactory = Callable[[str, TransportMessage], Transport]


class Life:
    """Everything that a running agent is made of.

    Args:
        agent: what it is and offers.
        broker: the broker's URL, None for the default, or what makes the transport.
    """

    def __init__(self, agent: Declaration, broker: str | TransportFactory | None) -> None:
        options = agent.options
        records = [record_topic(service, agent.name) for service in agent.services]
        self.presence = Presence(agent.name, records, agent.descriptions, options.update_s, agent.troubles)
        if callable(broker):
            self.transport = broker(agent.name, self.presence.will)
        else:
            will = self.presence.will if options.visible else None
            self.transport = MqttTransport(
                BrokerAddress.parse(broker), agent.name, will=will, options=options.connection
            )
        self.presence.transport = self.transport
        self.requester = Requester(self.transport, agent.name, options.limit)
        self._changed = asyncio.Event()
        self.responder = Responder(self.transport, agent.name, options.limit, on_load=self._changed.set)
        self.registry = Registry(self.transport, agent.embedder)
        self.peers = Peers(self.requester, self.registry, options.match_threshold)
        self.senses = Senses(self.transport, agent.name, agent.place, agent.embedder, options.vectors)
        self.journal: Journal | None = None
        self._places = {name: Places(name, service.concurrency) for name, service in agent.services.items()}
        self._watchdog = Watchdog(agent.troubles, self._places, options.stall_s)
        self._agent = agent
        self._undo = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, patience_s: float | None) -> None:
        """Connects, announces the agent and serves; undoes what it did if it fails half way."""
        async with contextlib.AsyncExitStack() as undo:
            await self._connect(undo, patience_s)
            await self._serve(undo)
            self._undo = undo.pop_all()

    async def stop(self) -> None:
        """Finishes what is under way, says goodbye and disconnects."""
        await self._undo.aclose()

    async def _connect(self, undo: contextlib.AsyncExitStack, patience_s: float | None) -> None:
        agent, ready = self._agent, asyncio.Event()
        if agent.options.journal is not None:
            await self._open_journal(undo, agent.options.journal)
        undo.push_async_callback(self._disconnect)
        undo.push_async_callback(self.presence.stop)
        self.transport.on_stray(self.responder.refuse_stray)
        await self.requester.start()
        for service in agent.services.values():
            await self.responder.serve(
                service.name,
                adapt(service, agent.name, ready, self._places[service.name]),
                concurrency=service.concurrency,
                queue_size=agent.options.queue_size,
                places=self._places[service.name],
                journal=self.journal if service.durable else None,
            )
        await self.presence.start(visible=agent.options.visible)
        await self.transport.connect(patience_s=patience_s)
        if agent.options.visible:
            undo.push_async_callback(self.presence.say_goodbye)
        undo.push_async_callback(self.registry.stop)
        undo.push_async_callback(self.requester.stop)
        for service in agent.services.values():
            undo.push_async_callback(service.stopping)
            await self.presence.until(service.started())
        undo.push_async_callback(self._finish_requests)
        ready.set()

    async def _disconnect(self) -> None:
        # Who sleeps or is durable comes back for what waits at the broker; and another process of this name goes on
        # with the session.
        stays = self.presence.asleep or self.journal is not None
        if stays and not self.presence.asleep:  # whoever else serves the name takes what is put to all
            await self.transport.unsubscribe([anycast_filter(service) for service in self._agent.services])
        ends = self.presence.over.cancelled() and not stays
        await self.transport.close(end_session=ends)

    async def _open_journal(self, undo: contextlib.AsyncExitStack, where: str) -> None:
        """Before the connection: a request must not come before it can be written down."""
        owner = f"{self._agent.name}/{self.presence.epoch}"
        self.journal = await open_journal(where, owner, limits=self._agent.options.keep)
        self._agent.watch("journal", self.journal)
        undo.callback(self._agent.recover, "journal")
        undo.push_async_callback(self.journal.close)
        undo.push_async_callback(self._release)

    async def _release(self) -> None:
        with contextlib.suppress(JournalError):
            assert self.journal is not None
            await self.journal.release()

    async def _serve(self, undo: contextlib.AsyncExitStack) -> None:
        if self._agent.options.visible:
            await self.presence.until(self.presence.announce())
            self._watchdog.start()
            undo.callback(self._watchdog.stop)
            self._spawn(self._report_loads())
        for seconds, work in self._agent.repeated:
            self._repeat(seconds, work)
        if self.journal is not None:
            durable = [service.name for service in self._agent.services.values() if service.durable]
            take_over = TakeOver(self.journal, durable, self.responder.resume)
            self._spawn(take_over.run())
            self._spawn(self._watch_owners(take_over))
        undo.push_async_callback(self._end_tasks)

    async def _finish_requests(self) -> None:
        await self.responder.stop(grace_s=0 if self.presence.over.done() else self._agent.options.grace_s)

    async def _watch_owners(self, take_over: TakeOver) -> None:
        """Notices by their wills, sooner than by their leases in the journal, that its other owners are gone."""
        while True:
            version = self.registry.version
            await self.registry.changed()
            for change in self.registry.changes_since(version):
                view = self.registry.agents.get(change.agent)
                # One that is there again has another epoch now, and is at work.
                if change.kind == "offline" and view is not None and view.status is not None and not view.present:
                    take_over.owner_gone(f"{change.agent}/{view.status.epoch}")

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _report_loads(self) -> None:
        """Each heartbeat, and soon after a change; one after the other, so that the last one is the latest state."""
        options = self._agent.options
        while not self.presence.over.done():
            reported = self._under_way()
            await self._try(self._report_load)
            await asyncio.sleep(min(options.report_s, options.heartbeat_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(options.heartbeat_s - options.report_s):
                    while self._under_way() == reported:
                        self._changed.clear()
                        await self._changed.wait()

    def _under_way(self) -> tuple[int, int]:
        """Requests running and waiting."""
        stats = [entry.stats for entry in self.responder.services.values()]
        return sum(s.running for s in stats), sum(s.queued for s in stats)

    async def _report_load(self) -> None:
        stats = [entry.stats for entry in self.responder.services.values()]
        running, queued = self._under_way()
        load = Load(
            agent=self._agent.name,
            running=running,
            queued=queued,
            waiting=sum(service.waiting for service in self._agent.services.values()),
            unsent=self.transport.unsent,
            slots=max(1, sum(s.slots for s in stats)),
            completed=sum(s.completed for s in stats),
            failed=sum(s.failed for s in stats),
            rejected=self.responder.rejected,
            last_rejection=self.responder.last_rejection,
            tokens_per_s=max((s.tokens_per_s for s in stats if s.tokens_per_s is not None), default=None),
            battery=self._agent.battery,
            drain_per_h=self._agent.drain_per_h,
            thermal=self._agent.thermal,
            link=self._agent.link,
            heartbeat_s=self._agent.options.heartbeat_s,
            time_ms=time.time_ns() // 1_000_000,
        )
        await self.transport.publish(typed(agent_topic(self._agent.name, "load"), load, retain=True, qos=0))

    def _repeat(self, seconds: float, work: Repeated) -> None:
        async def run() -> None:
            while not self.presence.over.done():
                await self._try(work)
                await asyncio.sleep(seconds)

        self._spawn(run())

    async def _try(self, work: Repeated) -> None:
        try:
            await work()
        except Exception as error:
            trace = None if isinstance(error, MqttCollabError) else error
            name = getattr(work, "__name__", work)
            _log.error("@%s: %s failed: %s", self._agent.name, name, error, exc_info=trace)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

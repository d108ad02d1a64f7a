"""Birth, life and death of an agent on the broker: announcements, status with its epoch, and who has the name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Literal

from mqttcollab.codec import JSON, encode
from mqttcollab.errors import (
    DuplicateAgent,
    MessageError,
    MqttCollabError,
    PublishError,
    TopicError,
    TransportError,
)
from mqttcollab.messages import Message
from mqttcollab.topics import Status, agent_topic, parse_status, record_filters
from mqttcollab.transport.base import Transport, TransportMessage
from mqttcollab.trouble import Troubles

_log = logging.getLogger(__name__)

_STATUS_PAUSE_S = 1.0


class Presence:
    """One life of an agent: from its birth under a new epoch until it stops or another takes its name.

    Args:
        name: the agent.
        records: the topics of its service records.
        descriptions: makes the retained messages that describe it; called at every (re)connection, since a
            broker may have forgotten them.
        pause_s: the least time between two publications of records that change.
        troubles: what is wrong with the agent; while anything is, its status is `degraded`, unless it sleeps.

    Attributes:
        transport: set before `start`; made after the will that it carries.
        born: whether the first announcement is out.
        over: fails with what ended this life, if anything did.
    """

    transport: Transport

    def __init__(
        self,
        name: str,
        records: Collection[str],
        descriptions: Callable[[], Iterable[TransportMessage]],
        pause_s: float = 1.0,
        troubles: Troubles | None = None,
    ) -> None:
        self.name = name
        self.epoch = time.time_ns() // 1_000_000
        self.born = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._records = frozenset(records)
        self._descriptions = descriptions
        self._pause_s = pause_s
        self._stale: dict[str, Callable[[], TransportMessage]] = {}
        self._renewing = False
        self._topic = agent_topic(name, "status")
        self._state: Literal["online", "sleeping", "offline"] = "online"
        self._troubles = troubles or Troubles()
        self._said: Status | None = None
        self._correcting = False
        self._loop = asyncio.get_running_loop()
        self._connections = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def status(self) -> Status:
        """What others are to know now."""
        reason = str(self._troubles)
        if reason and self._state == "online":
            return Status("degraded", self.epoch, reason)
        return Status(self._state, self.epoch)

    @property
    def will(self) -> TransportMessage:
        """What the broker says if the agent vanishes. The epoch tells it from a later life's."""
        return TransportMessage(self._topic, Status("offline", self.epoch).payload, retain=True)

    async def start(self, *, visible: bool = True) -> None:
        """Registers with the transport, before it connects; one that is not `visible` will not be announced."""
        self.transport.on_connected(self._on_connected)
        if visible:
            self._troubles.listeners.add(self._on_trouble)
            await self.transport.subscribe(self._topic, self._on_own_status)
            await self.transport.subscribe(record_filters(self.name), self._on_own_record)

    async def stop(self) -> None:
        """Ends what runs in the background."""
        self._troubles.listeners.discard(self._on_trouble)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.over.done():
            self.over.exception()
        else:
            self.over.cancel()

    async def until(self, wanted: Coroutine[Any, Any, Any]) -> None:
        """Waits for `wanted`, or raises what ended this life before it."""
        task = asyncio.ensure_future(wanted)
        try:
            await asyncio.wait([task, self.over], return_when=asyncio.FIRST_COMPLETED)
            if self.over.done():
                self.over.result()
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def announce(self) -> None:
        """Birth: what describes the agent, then `online`. Raises MqttCollabError if the broker refuses a part."""
        connection = -1
        while connection != self._connections:  # what went to the connection before may be forgotten
            connection = self._connections
            if not self._renewing:  # else an earlier state may still wait to be sent, and arrive after this one
                self._stale.clear()
            for message in self._descriptions():
                await self.transport.publish(message)
            await self._say_state()
        self.born = True
        self._renew_soon()  # what has changed meanwhile, maybe after it was sent
        self._correct_soon()

    def renew(self, topic: str, describe: Callable[[], TransportMessage]) -> None:
        """Publishes a description that has changed: at once, or after the pause where one was published just now."""
        self._stale[topic] = describe
        self._renew_soon()

    def _renew_soon(self) -> None:
        if self._stale and self.born and not self._renewing and self._state != "offline":
            self._renewing = True
            self._spawn(self._renew())

    async def _renew(self) -> None:
        try:
            while self._stale and self._state != "offline":
                stale, self._stale = self._stale, {}
                for topic, describe in stale.items():
                    await self._publish_change(topic, describe)
                await asyncio.sleep(self._pause_s)
        finally:
            self._renewing = False

    async def _publish_change(self, topic: str, describe: Callable[[], TransportMessage]) -> None:
        if self._state == "offline":
            return  # it would stand there after the goodbye
        try:
            await self.transport.publish(describe())
        except (MessageError, PublishError) as error:
            _log.warning("@%s: the change of %s did not reach the broker: %s", self.name, topic, error)

    def _on_trouble(self) -> None:
        with contextlib.suppress(RuntimeError):  # from another thread, after the loop was closed
            self._loop.call_soon_threadsafe(self._correct_soon)

    def _correct_soon(self) -> None:
        if self._wrong and not self._correcting:
            self._correcting = True
            self._spawn(self._correct())

    @property
    def _wrong(self) -> bool:
        return self.born and self._state != "offline" and self._said != self.status

    async def _correct(self) -> None:
        """Says how the agent is: at once, and then at most every so often, but the last state always gets out."""
        try:
            while self._wrong:
                await self._say_state()
                await asyncio.sleep(_STATUS_PAUSE_S)
        finally:
            self._correcting = False

    async def say(self, state: Literal["online", "sleeping"]) -> None:
        """Publishes another status, now and after every reconnection."""
        self._state = state
        await self._say_state()

    async def say_goodbye(self) -> None:
        """Clears the retained records and the load, then says `offline`; gives up after 2 s without a broker."""
        self._state = "offline"
        with contextlib.suppress(TransportError, TimeoutError):
            async with asyncio.timeout(2):
                for topic in (*self._records, agent_topic(self.name, "load")):
                    await self._clear(topic)
                await self._say_state()

    async def _say_state(self) -> None:
        self._said = self.status
        await self.transport.publish(TransportMessage(self._topic, self._said.payload, retain=True))

    async def _clear(self, topic: str) -> None:
        await self.transport.publish(TransportMessage(topic, b"", retain=True))

    async def _on_connected(self) -> None:
        self._connections += 1
        if self._connections == 1:
            self._spawn(self._watch())
        if not self.born or self._state == "offline":
            return
        try:
            await self.announce()
        except MqttCollabError as error:
            self._end(TransportError(f"@{self.name} can't announce itself: {error}"))

    async def _watch(self) -> None:
        try:
            await self.transport.failed()
        except TransportError:
            self._end(self._superseded())

    def _on_own_status(self, message: TransportMessage) -> None:
        if not self.born:
            return  # what stands there is from a life before, with an epoch by whatever the clock said then
        try:
            status = parse_status(message.payload)
        except TopicError:
            status = None
        if status is not None and status.epoch > self.epoch and (status.state != "offline" or self._connections > 1):
            # Also by its will, if our connection broke: where two fight for one, that is all they see of each other.
            self._end(self._superseded())
        elif message.payload != (self._said or self.status).payload and self._state != "offline":
            # A will that came late, an older agent of this name, or somebody who cleared it.
            self._spawn(self._say_state())

    def _on_own_record(self, message: TransportMessage) -> None:
        if message.payload and message.topic not in self._records:
            # From a life before, which offered more and ended without a goodbye.
            self._spawn(self._clear(message.topic))

    def _superseded(self) -> DuplicateAgent:
        return DuplicateAgent(
            f"another process came up as @{self.name}, so this one stops: give every agent a name of its own"
        )

    def _end(self, error: TransportError) -> None:
        if not self.over.done():
            self.over.set_exception(error)
            self._spawn(self.transport.close())  # at once, or the two would take the connection from each other

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            with contextlib.suppress(TransportError):  # what it was to put right comes again with the next connection
                await work

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def typed(topic: str, message: Message, *, retain: bool = False, qos: int = 1) -> TransportMessage:
    """A structured message as JSON, with its MQTT 5 properties."""
    return TransportMessage(topic, encode(message), qos, retain, content_type=JSON, type=message.type)

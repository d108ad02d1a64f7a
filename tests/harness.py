"""Four set-ups of one behaviour suite, a cable to pull, and inboxes to wait on."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, Self, cast

from mqttcollab.broker import Broker, BrokerInfo, BrokerKind
from mqttcollab.config import BrokerAddress
from mqttcollab.transport.base import Transport, TransportMessage
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport
from mqttcollab.transport.mqtt import MqttOptions, MqttTransport

LIMIT_S = 10.0  # how long a test waits for what must come
QUICK = MqttOptions(backoff_s=0.02, backoff_max_s=0.2)


class Inbox:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[TransportMessage] = []
        self._news = asyncio.Event()

    def __call__(self, message: TransportMessage) -> None:
        self.messages.append(message)
        self._news.set()

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]

    async def until(self, enough: Callable[[], bool]) -> list[TransportMessage]:
        async with asyncio.timeout(LIMIT_S):
            while not enough():
                self._news.clear()
                await self._news.wait()
        return self.messages

    async def count(self, number: int) -> list[TransportMessage]:
        """Waits for this many messages."""
        return await self.until(lambda: len(self.messages) >= number)

    async def before(self, payload: bytes) -> list[bytes]:
        """What came before this payload."""
        await self.until(lambda: payload in self.payloads)
        return self.payloads[: self.payloads.index(payload)]


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until something is so, at most as long as a test may wait."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


class Cable:
    """A TCP relay in front of a broker: it can be pulled, plugged in again, or stop carrying."""

    def __init__(self, info: BrokerInfo) -> None:
        self.target = (info.host, info.port)
        self._server: asyncio.Server | None = None
        self._ends: set[_End] = set()
        self._held = False
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.plug()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.pull()

    def url(self, query: str = "") -> str:
        return f"mqtt://127.0.0.1:{self.port}{query}"

    async def plug(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _End(self._ends, self.target), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def pull(self) -> None:
        """Breaks what is connected, without a goodbye, and refuses what tries again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        while self._ends:
            self.cut()
            await asyncio.sleep(0)

    def cut(self) -> None:
        """Breaks what is connected; it may connect again."""
        for end in list(self._ends):
            end.cut()

    def hold(self, direction: str | None) -> None:
        """Carries nothing more "up" to the broker, "down" from it, or both (None), until `release`."""
        for end in list(self._ends):
            if direction is None or end.direction == direction:
                end.transport.pause_reading()

    def release(self) -> None:
        for end in list(self._ends):
            end.transport.resume_reading()


class _End(asyncio.Protocol):
    """One end of a relayed connection; the end towards the client dials the other."""

    def __init__(self, ends: set[_End], target: tuple[str, int] | None, other: _End | None = None) -> None:
        self.direction = "up" if other is None else "down"
        self._ends = ends
        self._target = target
        self._other = other
        self._early = b""
        self._dialling: asyncio.Task[Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._ends.add(self)
        if self._target is not None:
            self._dialling = asyncio.get_running_loop().create_task(self._dial(*self._target))

    async def _dial(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, self._other = await loop.create_connection(lambda: _End(self._ends, None, self), host, port)
        except OSError:
            return self.cut()
        self._other.transport.write(self._early)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early += data
        else:
            self._other.transport.write(data)

    def cut(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ends.discard(self)
        if self._dialling is not None:
            self._dialling.cancel()
        if self._other is not None:
            self._other.transport.close()  # behind what it still has to write


class Setup(ABC):
    """A broker and the clients on it; whatever connected through it is closed at the end."""

    mqtt5 = False  # properties travel, and the broker says who is not there
    shared = True  # the broker has shared subscriptions

    def __init__(self) -> None:
        self._clients: list[Transport] = []

    @abstractmethod
    def client(
        self, client_id: str, *, will: TransportMessage | None = None, options: MqttOptions = QUICK
    ) -> Transport:
        """A client that is not connected yet."""

    async def connected(self, client_id: str, **arguments: Any) -> Transport:
        transport = self.client(client_id, **arguments)
        await transport.connect(patience_s=LIMIT_S)
        return transport

    @abstractmethod
    async def vanishing(self, client_id: str, will: TransportMessage) -> Callable[[], Any]:
        """Connects a client, and returns a coroutine function that takes it away without a goodbye."""

    @abstractmethod
    async def go_away(self) -> None:
        """The broker dies."""

    @abstractmethod
    async def come_back(self) -> None: ...

    async def close(self) -> None:
        for transport in self._clients:
            await transport.close()


class MemorySetup(Setup):
    mqtt5 = True

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__()
        self.broker = broker

    def client(
        self, client_id: str, *, will: TransportMessage | None = None, options: MqttOptions = QUICK
    ) -> MemoryTransport:
        transport = MemoryTransport(self.broker, client_id, will=will, options=options)
        self._clients.append(transport)
        return transport

    async def vanishing(self, client_id: str, will: TransportMessage) -> Callable[[], Any]:
        transport = self.client(client_id, will=will)
        await transport.connect()

        async def vanish() -> None:
            transport.die()

        return vanish

    async def go_away(self) -> None:
        await self.broker.stop()

    async def come_back(self) -> None:
        await self.broker.start()


class MqttSetup(Setup):
    def __init__(self, broker: Broker, version: str) -> None:
        super().__init__()
        self.broker = broker
        self.query = f"?version={version}"
        self.mqtt5 = version == "5"
        self.shared = broker.info.kind == "mosquitto"
        self._cables = contextlib.AsyncExitStack()

    def client(
        self,
        client_id: str,
        *,
        will: TransportMessage | None = None,
        options: MqttOptions = QUICK,
        cable: Cable | None = None,
    ) -> MqttTransport:
        url = self.broker.info.url + self.query if cable is None else cable.url(self.query)
        transport = MqttTransport(BrokerAddress.parse(url), client_id, will=will, options=options)
        self._clients.append(transport)
        return transport

    async def cable(self) -> Cable:
        return await self._cables.enter_async_context(Cable(self.broker.info))

    async def vanishing(self, client_id: str, will: TransportMessage) -> Callable[[], Any]:
        cable = await self.cable()
        await self.client(client_id, will=will, cable=cable).connect()
        return cable.pull

    async def go_away(self) -> None:
        await self.broker.kill()

    async def come_back(self) -> None:
        await self.broker.start()

    async def close(self) -> None:
        await super().close()
        await self._cables.aclose()


@contextlib.asynccontextmanager
async def running(kind: BrokerKind) -> AsyncIterator[Broker]:
    """A broker of the test's own on free ports; it takes 15 to 30 ms."""
    broker = Broker(kind)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.kill()  # nothing of it is kept, and a clean end takes Mosquitto 0.3 s
        await broker.stop()


@contextlib.asynccontextmanager
async def set_up(name: str) -> AsyncIterator[Setup]:
    """One of "memory", "mosquitto-5", "mosquitto-3.1.1" and "nats-3.1.1"."""
    kind, _, version = name.partition("-")
    async with contextlib.AsyncExitStack() as stack:
        setup: Setup
        if kind == "memory":
            setup = MemorySetup(MemoryBroker())
        else:
            setup = MqttSetup(await stack.enter_async_context(running(cast(BrokerKind, kind))), version)
        stack.push_async_callback(setup.close)
        yield setup

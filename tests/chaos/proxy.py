"""A proxy between clients and broker that reads MQTT packets: it cuts, holds, delays, throttles, doubles and swaps."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Self

_PUBLISH, _PUBACK = 0x30, 0x40
_OURS = 60_000  # packet identifiers from here on stand for copies; the broker counts up from 1
_MOST_COPIES = 5_000


class _Line(asyncio.Queue[tuple[float, bytes]]):
    """Packets under way one way, each with the loop time at which it came in."""

    def take(self, packet: bytes) -> None:
        self.put_nowait((asyncio.get_running_loop().time(), packet))


@dataclass(slots=True)
class Weather:
    """What happens to packets; may be changed while they pass. All off at first.

    Attributes:
        delay_s: least and most that a packet takes each way, order kept.
        loss: share of packets that wait for a retransmission, as TCP does on a lossy link.
        retransmit_s: how long that takes.
        bytes_per_s: each way of each connection; 0: no limit.
        double: share of QoS 1 messages that reach a client twice, the second with the DUP flag.
        swap: share of QoS 1 messages that reach a client after what follows them.
    """

    delay_s: tuple[float, float] = (0.0, 0.0)
    loss: float = 0.0
    retransmit_s: float = 0.3
    bytes_per_s: float = 0.0
    double: float = 0.0
    swap: float = 0.0


@dataclass(slots=True)
class Proxy:
    """A listener on loopback in front of a broker; an async context manager.

    Args:
        host, port: of the broker.
        rng: decides which packets are hit.
    """

    host: str
    port: int
    rng: random.Random
    weather: Weather = field(default_factory=Weather)
    doubled: int = 0
    swapped: int = 0
    _server: asyncio.Server | None = None
    _own_port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self._own_port}"

    async def __aenter__(self) -> Self:
        self._open.set()
        await self.plug()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.unplug()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def plug(self) -> None:
        """Takes connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._own_port)
        self._own_port = self._server.sockets[0].getsockname()[1]

    async def unplug(self) -> None:
        """Breaks all connections and refuses new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Breaks all connections; they may come again."""
        for writer in list(self._writers):
            writer.transport.abort()

    def hold(self) -> None:
        """A black hole: connections stand, and nothing passes."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(client, to_client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._writers.add(to_client)
        ways: list[asyncio.Task[None]] = []
        try:
            broker, to_broker = await asyncio.open_connection(self.host, self.port)
            self._writers.add(to_broker)
            ways = [
                asyncio.create_task(self._up(client, to_broker)),
                asyncio.create_task(self._down(broker, to_client)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for writer in (to_client, to_broker):
                writer.close()
            self._writers.discard(to_broker)
        except OSError:
            to_client.transport.abort()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._writers.discard(to_client)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._line(writer) as line:
            async for packet in packets(reader):
                if packet[0] & 0xF0 == _PUBACK and _identifier(packet, _body(packet)) >= _OURS:
                    continue  # of a copy, of which the broker knows nothing
                line.take(packet)

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: bytes | None = None
        async with self._line(writer) as line:
            async for packet in packets(reader):
                first = packet[0]
                at_least_once = first & 0xF6 == _PUBLISH | 2
                if at_least_once and held is None and self.rng.random() < self.weather.swap:
                    held, self.swapped = packet, self.swapped + 1
                    continue
                line.take(packet)
                if held is not None:
                    line.take(held)
                    held = None
                if at_least_once and self.rng.random() < self.weather.double:
                    self.doubled += 1
                    line.take(_copy(packet, _OURS + self.doubled % _MOST_COPIES))

    @contextlib.asynccontextmanager
    async def _line(self, writer: asyncio.StreamWriter) -> AsyncIterator[_Line]:
        line = _Line()
        task = asyncio.create_task(self._carry(line, writer))
        try:
            yield line
            while not line.empty() and not task.done():
                await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _carry(self, line: _Line, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        free = loop.time()
        while not writer.transport.is_closing():
            came, packet = await line.get()
            weather = self.weather
            due = came + self.rng.uniform(*weather.delay_s)
            if self.rng.random() < weather.loss:
                due += weather.retransmit_s
            free = max(free, due)
            if weather.bytes_per_s:
                free += len(packet) / weather.bytes_per_s
            if free > loop.time():
                await asyncio.sleep(free - loop.time())
            await self._open.wait()
            if not writer.transport.is_closing():
                writer.write(packet)
            if line.empty():
                await writer.drain()


async def packets(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Whole MQTT packets until the connection ends."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(2)
            while head[-1] & 0x80:
                head += await reader.readexactly(1)
            yield head + await reader.readexactly(_length(head))


def _length(head: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[1:]))


def _body(packet: bytes) -> int:
    """Where the variable header begins."""
    place = 1
    while packet[place] & 0x80:
        place += 1
    return place + 1


def _identifier(packet: bytes, place: int) -> int:
    return int.from_bytes(packet[place : place + 2], "big")


def _copy(publish: bytes, identifier: int) -> bytes:
    """The same message once more, as a repeat under another packet identifier."""
    topic = _body(publish)
    place = topic + 2 + _identifier(publish, topic)
    return bytes([publish[0] | 0x08]) + publish[1:place] + identifier.to_bytes(2, "big") + publish[place + 2 :]

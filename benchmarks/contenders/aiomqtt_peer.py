"""(b) aiomqtt: one reply subscription per connection, a future per correlation, a task per request served."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.contenders import MAX_IN_FLIGHT, Ask

NOTE = "TCP_NODELAY, MQTT 5, QoS 1, a task per request served; its own time-out on every publish"
TOPIC = "bench/aiomqtt/request"
REPLIES = "bench/aiomqtt/reply"


def _client(url: str, identifier: str) -> aiomqtt.Client:
    address = urlsplit(url)
    client = aiomqtt.Client(
        address.hostname or "",
        address.port or 1883,
        identifier=identifier,
        protocol=aiomqtt.ProtocolVersion.V5,
        max_inflight_messages=0,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )
    client.pending_calls_threshold = 2 * MAX_IN_FLIGHT  # else it logs a warning for every publish
    return client


async def respond(url: str, ready: Callable[[], None]) -> None:
    async with _client(url, "aiomqtt-responder") as client, asyncio.TaskGroup() as tasks:
        await client.subscribe(TOPIC, qos=1)
        ready()
        async for message in client.messages:
            request = message.properties
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = request.CorrelationData  # type: ignore[union-attr]
            topic = request.ResponseTopic  # type: ignore[union-attr]
            tasks.create_task(client.publish(topic, message.payload, qos=1, properties=properties))


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[Ask]:
    loop = asyncio.get_running_loop()
    waiting: dict[bytes, asyncio.Future[bytes]] = {}
    numbers = itertools.count()

    async with _client(url, "aiomqtt-requester") as client:
        await client.subscribe(REPLIES, qos=1)

        async def read() -> None:
            async for message in client.messages:
                waiting.pop(message.properties.CorrelationData).set_result(message.payload)  # type: ignore

        async def ask(payload: bytes) -> bytes:
            correlation = b"%d" % next(numbers)
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic = REPLIES
            properties.CorrelationData = correlation
            reply: asyncio.Future[bytes] = loop.create_future()
            waiting[correlation] = reply
            await client.publish(TOPIC, payload, qos=1, properties=properties)
            return await reply

        reader = asyncio.create_task(read())
        yield ask
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)

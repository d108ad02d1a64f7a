"""(a) paho-mqtt and nothing else, driven by asyncio: the least that request and reply over paho can cost.

It does what a careful author would write by hand for one purpose: TCP_NODELAY, one reply subscription per
connection, a future per correlation, no time-outs, no validation, no reconnection, no flow control.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.contenders import Ask

NOTE = "paho driven by asyncio's readers and writers, TCP_NODELAY, MQTT 5, QoS 1; no time-outs, no validation"
TOPIC = "bench/bare-paho/request"


async def connect(url: str, client_id: str) -> paho.Client:
    """A connected client whose reads and writes run on the event loop."""
    loop = asyncio.get_running_loop()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, reconnect_on_failure=False)
    client.max_inflight_messages_set(0)
    connected = loop.create_future()
    hooks: Any = client  # its annotations want callbacks that return None
    hooks.on_connect = lambda *_: connected.set_result(None)
    hooks.on_socket_open = lambda c, _u, sock: loop.add_reader(sock, c.loop_read)
    hooks.on_socket_close = lambda _c, _u, sock: loop.remove_reader(sock)
    hooks.on_socket_register_write = lambda c, _u, sock: loop.add_writer(sock, c.loop_write)
    hooks.on_socket_unregister_write = lambda _c, _u, sock: loop.remove_writer(sock)
    address = urlsplit(url)
    client.connect(address.hostname or "", address.port or 1883)
    client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
    await connected
    return client


async def subscribe(client: paho.Client, topic: str) -> None:
    """Returns once the broker has granted the subscription."""
    granted = asyncio.get_running_loop().create_future()
    client.on_subscribe = lambda *_: granted.set_result(None)
    client.subscribe(topic, qos=1)
    await granted


async def respond(url: str, ready: Callable[[], None]) -> None:
    client = await connect(url, "bare-paho-responder")

    def answer(_client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        request = message.properties
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.CorrelationData = request.CorrelationData  # type: ignore[union-attr]
        client.publish(request.ResponseTopic, message.payload, 1, False, properties)  # type: ignore[union-attr]

    client.on_message = answer
    await subscribe(client, TOPIC)
    ready()
    await asyncio.Event().wait()


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[Ask]:
    client = await connect(url, "bare-paho-requester")
    loop = asyncio.get_running_loop()
    waiting: dict[bytes, asyncio.Future[bytes]] = {}
    numbers = itertools.count()

    def replied(_client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        waiting.pop(message.properties.CorrelationData).set_result(bytes(message.payload))  # type: ignore[union-attr]

    client.on_message = replied
    await subscribe(client, "bench/bare-paho/reply")

    async def ask(payload: bytes) -> bytes:
        correlation = b"%d" % next(numbers)
        # One object per message: paho keeps it until the PUBACK, to send it again after a reconnection.
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = "bench/bare-paho/reply"
        properties.CorrelationData = correlation
        reply: asyncio.Future[bytes] = loop.create_future()
        waiting[correlation] = reply
        client.publish(TOPIC, payload, 1, False, properties)
        return await reply

    yield ask
    client.disconnect()

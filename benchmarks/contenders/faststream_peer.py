"""(c) FastStream's `request()` over MQTT (its driver is zmqtt).

The request, and the subscription and reply of the responder, are QoS 1; FastStream subscribes to the reply topic at
QoS 0, which can't be told otherwise, so its last hop does less than the others'. It subscribes and unsubscribes a
reply topic of its own for every request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from faststream.mqtt import MQTTBroker
from faststream.mqtt.response import MQTTResponse
from zmqtt import QoS

from benchmarks.contenders import MAX_IN_FLIGHT, Ask

NOTE = "request() of its MQTT broker, MQTT 5; QoS 1, but for the reply's last hop, which it fixes at QoS 0"
TOPIC = "bench/faststream/request"


async def respond(url: str, ready: Callable[[], None]) -> None:
    broker = MQTTBroker(url, client_id="faststream-responder", logger=None, apply_types=False)

    @broker.subscriber(TOPIC, qos=QoS.AT_LEAST_ONCE, max_workers=MAX_IN_FLIGHT)
    async def answer(body: bytes) -> MQTTResponse:
        return MQTTResponse(body, qos=QoS.AT_LEAST_ONCE)

    async with broker:
        await broker.start()
        ready()
        await asyncio.Event().wait()


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[Ask]:
    async with MQTTBroker(url, client_id="faststream-requester", logger=None, apply_types=False) as broker:
        await broker.start()

        async def ask(payload: bytes) -> bytes:
            reply = await broker.request(payload, TOPIC, timeout=30.0, qos=QoS.AT_LEAST_ONCE)
            return reply.body

        yield ask

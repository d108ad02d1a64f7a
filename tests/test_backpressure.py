"""Pressure from end to end: floods end in `busy`, memory stays bounded, and slow readers hold nobody up."""

from __future__ import annotations

import asyncio
import socket
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fleet import process
from harness import LIMIT_S, Inbox, MqttSetup, eventually
from test_behaviour_transport import RECORD, message

from mqttcollab.broker import Broker
from mqttcollab.codec import JSON, decode, encode
from mqttcollab.config import BrokerAddress
from mqttcollab.messages import Reply, Request
from mqttcollab.rpc import Requester
from mqttcollab.topics import reply_topic, request_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.mqtt import MqttOptions, MqttTransport

SLOW = request_topic("knowledge.gpt/slow", "worker-1")
QUICK = request_topic("knowledge.gpt/quick", "worker-1")
TALE = request_topic("knowledge.gpt/tale", "worker-1")
QUEUE = 8
WORK_S = 0.02
PIECE = 16_384
PIECES = 40
MB = 1 << 20

WORKER = f"""\
import asyncio
from collections.abc import AsyncIterator

from mqttcollab import Agent, AgentOptions, Answer, Request

agent = Agent("worker-1", options=AgentOptions(queue_size={QUEUE}))


@agent.service("knowledge.gpt/slow", description="Takes its time")
async def slow(request: Request) -> str:
    await asyncio.sleep({WORK_S})
    return request.text


@agent.service("knowledge.gpt/quick", description="Says it again", concurrency=8)
async def quick(request: Request) -> str:
    return request.text


@agent.service("knowledge.gpt/tale", description="Talks a lot", concurrency=4)
async def tale(request: Request) -> AsyncIterator[str | Answer]:
    for _ in range({PIECES}):
        yield "x" * {PIECE}
    yield Answer("and so on")


agent.run()
"""


def memory(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def asking(requester: str, number: int, *, stream: bool = False) -> Request:
    request_id = f"r{number}"
    return Request(id=request_id, reply_to=reply_topic(requester, request_id), input="?", ttl_ms=60_000, stream=stream)


def packed(topic: str, request: Request) -> TransportMessage:
    return TransportMessage(topic, encode(request), content_type=JSON, response_topic=request.reply_to, expiry_s=60)


async def connected(broker: Broker, name: str) -> MqttTransport:
    transport = MqttTransport(BrokerAddress.parse(broker.info.url), name)
    await transport.connect()
    return transport


async def asker(broker: Broker) -> Requester:
    requester = Requester(await connected(broker, "asker"), "asker")
    await requester.start()
    return requester


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    # As in brokers/*.conf, but for a smaller limit: so a test reaches it sooner.
    async with Broker("mosquitto", extra_config=f"max_queued_bytes {8 * MB}\n") as broker:
        yield broker


@pytest.mark.parametrize("number", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
async def test_a_flood_ends_in_answers_and_busy(broker: Broker, tmp_path: Path, number: int) -> None:
    async with process(tmp_path, WORKER, broker.info.url) as worker:
        await worker.says("is online")
        flood, other, replies = await connected(broker, "flood"), await asker(broker), Inbox()
        await flood.subscribe("reply.gpt/@flood/+", replies)
        for _ in range(20):  # then it knows how long its work takes
            await other.ask(SLOW, other.new_request("hello"))
        before = memory(worker.pid)
        flooding = asyncio.gather(*(flood.publish(packed(SLOW, asking("flood", n))) for n in range(number)))
        answered = 0
        while not flooding.done():
            reply = await other.ask(QUICK, other.new_request("hello", ttl_ms=int(1000 * LIMIT_S)))
            answered += reply.output == "hello"
            await asyncio.sleep(0.05)
        await flooding
        async with asyncio.timeout(120):
            while len(replies.messages) < number:
                await asyncio.sleep(0.05)
        grown = memory(worker.pid) - before
        decoded = [decode(Reply, m.payload, sent_type=m.type, limit=MB) for m in replies.messages]
        assert len({reply.id for reply in decoded}) == number == len(decoded)
        busy = [reply.error for reply in decoded if reply.error is not None]
        assert {error.code for error in busy} == {"busy"}
        assert len(decoded) - len(busy) >= QUEUE
        hints = [error.retry_after_ms or 0 for error in busy]
        assert min(hints) > 0
        # About what the queue needs; on a busy machine the work itself takes longer.
        assert 100 * WORK_S * (QUEUE + 1) < statistics.median(hints) < 1000 * (QUEUE + 1)
        assert answered > 0
        assert grown < 48 * MB, f"{grown / MB:.0f} MiB for {number} requests"
        await flood.close()
        await other.transport.close()


class Deaf:
    """A client that subscribes to its replies, asks, and then never reads again."""

    def __init__(self, broker: Broker) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)
        self._address = (broker.info.host, broker.info.port)

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, self._address)
        name, filter_ = b"deaf", b"reply.gpt/@deaf/+"
        connect = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name  # keep-alive off
        subscribe = b"\x00\x01" + len(filter_).to_bytes(2, "big") + filter_ + b"\x01"
        for head, body, answer in ((0x10, connect, 4), (0x82, subscribe, 5)):
            await loop.sock_sendall(self._socket, bytes([head, len(body)]) + body)
            assert len(await loop.sock_recv(self._socket, answer)) == answer

    def close(self) -> None:
        self._socket.close()


async def test_a_reader_that_stopped_reading_holds_nobody_up(broker: Broker, tmp_path: Path) -> None:
    async with process(tmp_path, WORKER, broker.info.url) as worker:
        await worker.says("is online")
        other, publisher, deaf = await asker(broker), await connected(broker, "publisher"), Deaf(broker)
        await deaf.connect()
        before = memory(worker.pid), memory(broker.info.pid)
        parts = 0

        def count(_: Reply) -> None:
            nonlocal parts
            parts += 1

        for number in range(80):  # 52 MB of parts for it, 6 times what the broker queues
            await publisher.publish(packed(TALE, asking("deaf", number, stream=True)))
            await other.ask(TALE, other.new_request("?", stream=True, ttl_ms=int(1000 * LIMIT_S)), on_part=count)
        assert parts == 80 * PIECES
        agent_grown, broker_grown = memory(worker.pid) - before[0], memory(broker.info.pid) - before[1]
        assert agent_grown < 48 * MB, f"{agent_grown / MB:.0f} MiB"
        # In flight there may be 1,024 messages beside those queued: of this size 16 MiB.
        assert broker_grown < 64 * MB, f"{broker_grown / MB:.0f} MiB"
        deaf.close()
        await publisher.close()
        await other.transport.close()


@pytest.mark.parametrize("setup", ["mosquitto-5"], indirect=True)
async def test_publishes_that_wait_are_counted(setup: MqttSetup) -> None:
    cable = await setup.cable()
    writer = setup.client("writer", cable=cable, options=MqttOptions(window=10, timeout_s=60))
    await writer.connect()
    assert writer.unsent == 0
    cable.hold("down")  # nothing is acknowledged any more
    publishing = [asyncio.create_task(writer.publish(message(RECORD, b"%d" % n))) for n in range(30)]
    await eventually(lambda: writer.unsent == 30)
    cable.release()
    await asyncio.gather(*publishing)
    assert writer.unsent == 0
    await cable.pull()
    await eventually(lambda: not writer.online)
    waiting = [asyncio.create_task(writer.publish(message(RECORD, qos=qos))) for qos in (0, 1)]
    await eventually(lambda: writer.unsent == 2)
    await cable.plug()
    await asyncio.gather(*waiting)
    assert writer.unsent == 0

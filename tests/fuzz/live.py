"""Targets that live: an agent, one that asks, their registries and an area, on a broker in memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
from fuzz.bytesource import ByteSource
from numpy.typing import NDArray

from mqttcollab import Agent, AgentOptions, Reply, Request
from mqttcollab.codec import decode
from mqttcollab.cooperation.area import Area
from mqttcollab.cooperation.area_report import report_of
from mqttcollab.cooperation.area_stream import StreamLimits
from mqttcollab.errors import MqttCollabError
from mqttcollab.messages import Candidate
from mqttcollab.orchestrator.schedule import LiveFleet, Ranked
from mqttcollab.rpc import Requester, Responder
from mqttcollab.scheduling import Scheduler
from mqttcollab.scheduling.frugal import Frugal
from mqttcollab.topics import parse
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport

ECHO, HOLD = "knowledge.gpt/echo", "knowledge.gpt/hold"
_INPUTS_PER_WORLD = 1000
_MOST_TURNS = 20_000
_NAMES = ("a", "x", "y-1")
_LEAVES = ("context_length", "a/b", "")
_SERVICES = (ECHO, "data.gpt/air", "computation.gpt/orchestration")
_TYPES = ("mqttcollab.request.v1", "mqttcollab.reply.v1", "mqttcollab.request.v2", "x")
_STATUSES = (b"online 1", b"sleeping 1", b"offline 1", b"online 2", b"")


class LetterEmbedder:
    """Counts letters: quick, and of the right shape."""

    model, dimension = "letters", 8

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        rows = [[1 + sum(ord(c) % 8 == n for c in text[:200]) for n in range(8)] for text in texts]
        return np.array(rows, np.float32)


class Errors(logging.Handler):
    """An error in the log is a crash: whoever logs one had not expected what came."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


class World:
    """Everybody on one broker; the loop runs only while an input is tried."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.errors = Errors()
        self.inputs = 0
        self.log = logging.getLogger("mqttcollab")
        self._stack = contextlib.AsyncExitStack()

    def open(self) -> None:
        self.log.addHandler(self.errors)
        self.log.setLevel(logging.ERROR)
        self.log.propagate = False
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.broker = MemoryBroker()
        self.replies: list[TransportMessage] = []
        options = AgentOptions(report_s=1e6, heartbeat_s=2e6, queue_size=64)
        self.agent = Agent("tested", options=options, embedder=LetterEmbedder())
        self.asker = Agent("asker", options=AgentOptions(visible=False), embedder=LetterEmbedder())
        self.agent.service(ECHO, description="Says it again", concurrency=4)(echo)
        self.agent.service(HOLD, description="Never ends", concurrency=4)(hold)
        for agent in (self.agent, self.asker):
            await self._stack.enter_async_context(agent.running(self._transport))
        self.registry = await self.asker.follow()
        self.fleet = LiveFleet(self.registry, Scheduler(Frugal()))
        self._stack.callback(self.fleet.stop)
        limits = StreamLimits(rate=1e9, burst=10**9, newcomers=1e9)
        self.area = await self._stack.enter_async_context(Area(self.asker, model="m", dimension=3, limits=limits))
        watcher = self._transport("watcher", None)
        await watcher.connect()
        await watcher.subscribe("reply.gpt/#", self.replies.append)
        self._stack.push_async_callback(watcher.close)
        await self.registry.settle()

    def _transport(self, name: str, will: TransportMessage | None) -> MemoryTransport:
        return MemoryTransport(self.broker, name, will=will)

    def close(self) -> None:
        self.runner.run(self._stack.aclose())
        self.runner.close()
        self.log.removeHandler(self.errors)
        self.log.setLevel(logging.NOTSET)
        self.log.propagate = True

    async def quiet(self) -> None:
        """Until nothing waits to be delivered or answered; forever is a hang."""
        held = self.responder.services[HOLD].stats
        for _ in range(_MOST_TURNS):
            await asyncio.sleep(0)
            busy = len(self.responder._tasks) + len(self.registry._tasks) - held.running - held.queued
            if busy <= 0 and not any(client._inbox for client in self.broker.clients.values()):
                return
        raise AssertionError(f"it never comes to rest: {self.responder._tasks} {self.registry._tasks}")

    @property
    def responder(self) -> Responder:
        return self.agent._running().responder

    @property
    def requester(self) -> Requester:
        return self.asker._running().requester


async def echo(request: Request) -> str:
    return request.text


async def hold(request: Request) -> AsyncIterator[str]:
    """Says one word, and no more until it is cancelled."""
    yield "well"
    await asyncio.Event().wait()


_world: World | None = None


def _run(data: bytes, target: Callable[[World, ByteSource], Coroutine[Any, Any, None]]) -> None:
    global _world
    if _world is None or _world.inputs >= _INPUTS_PER_WORLD:
        close_world()
        _world = World()
        _world.open()
    _world.inputs += 1
    _world.runner.run(target(_world, ByteSource(data)))
    errors, _world.errors.seen = _world.errors.seen, []
    assert not errors, errors[0]


def close_world() -> None:
    """To be called at the end; a world is made anew every thousand inputs."""
    global _world
    if _world is not None:
        _world.close()
        _world = None


# --- requests, cancels and replies


def live_rpc(data: bytes) -> None:
    _run(data, _rpc)


async def _rpc(world: World, source: ByteSource) -> None:
    asked: list[asyncio.Task[Reply]] = []
    bogus: list[TransportMessage] = []
    for _ in range(1 + source.byte() % 8):
        if not source.left:
            break
        op = source.byte() % 8
        if op == 0:
            asked.append(asyncio.create_task(world.asker.ask("?", service=HOLD, agent="tested", ttl_s=60, idle_s=30)))
            await world.quiet()
        elif op == 1 and world.requester._calls:  # nobody can guess the id; it is given away here
            call = next(iter(world.requester._calls.values()))
            bogus.append(_message(source, call.request.reply_to))
            world.broker.deliver(bogus[-1])
        else:
            service = source.pick((ECHO, HOLD))
            leaf = ("cancel", "request")[op % 2]
            topic = f"{service}/request" if op == 7 else f"{service}/@tested/{leaf}"
            world.broker.deliver(_message(source, topic))
        if source.byte() % 2:
            await world.quiet()
    await _ended(world, asked, [message.payload for message in bogus])


async def _ended(world: World, asked: list[asyncio.Task[Reply]], bogus: list[bytes]) -> None:
    """An honest question is answered, whatever else arrived; then all is given up, and nothing may be left."""
    reply = await world.asker.ask("hi", service=ECHO, agent="tested", ttl_s=20)
    assert reply.output == "hi", reply
    for task in asked:
        task.cancel()
    for result in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(result, Reply | MqttCollabError | asyncio.CancelledError), result
    await world.quiet()
    for _, request_id in list(world.responder._jobs):
        world.broker.deliver(TransportMessage(f"{HOLD}/@tested/cancel", request_id.encode()))
    await world.quiet()
    stats = [entry.stats for entry in world.responder.services.values()]
    assert not world.responder._jobs and not world.requester._calls
    assert all(one.running == one.queued == 0 for one in stats), stats
    for message in world.replies:
        assert parse(message.topic).kind == "reply"
        if message.payload not in bogus:
            decode(Reply, message.payload)
    world.replies.clear()
    world.broker.retained.clear()


def _message(source: ByteSource, topic: str) -> TransportMessage:
    payload, flags = source.chunk(), source.byte()
    return TransportMessage(
        topic,
        payload,
        retain=flags & 0x07 == 0x07,
        response_topic=source.text() if flags & 0x08 else None,
        correlation=source.text().encode() if flags & 0x10 else None,
        expiry_s=source.byte() << 24 if flags & 0x20 else None,
        type=source.pick(_TYPES) if flags & 0x40 else None,
        traceparent=source.text() if flags & 0x80 else None,
    )


# --- what the registry and the scheduler hear


def live_registry(data: bytes) -> None:
    _run(data, _registry)


async def _registry(world: World, source: ByteSource) -> None:
    for _ in range(1 + source.byte() % 8):
        topic, payload = _some_topic(source), source.chunk()
        if topic.endswith("/status") and source.byte() % 2:
            payload = source.pick(_STATUSES)
        if topic.startswith("slm/agents/@tested/"):  # who may write there can end it, by a later life's status
            continue
        world.broker.deliver(TransportMessage(topic, payload, retain=bool(source.byte() % 2)))
    await world.quiet()
    registry = world.registry
    assert len(registry.problems) <= 256
    offers = registry.offers()
    assert any(offer.agent.name == "tested" for offer in offers)
    assert len(registry.nearest("say it again")) == len(offers)
    ranked = [
        Ranked(o, Candidate(agent=o.agent.name, service=o.record.service, score=0.5, probability=0.5, reason=""))
        for o in offers
    ]
    assert len(world.fleet.by_pressure(ranked)) == len(ranked)
    reply = await world.asker.ask("hi", service=ECHO, agent="tested", ttl_s=20)
    assert reply.output == "hi", reply
    for topic in list(world.broker.retained):
        if "@tested" not in topic:
            world.broker.deliver(TransportMessage(topic, b"", retain=True))
    await world.quiet()
    world.replies.clear()


def _some_topic(source: ByteSource) -> str:
    match source.byte() % 8:
        case 0:
            return source.text().replace("+", "").replace("#", "") or "/"
        case 1:
            return f"slm/models/{source.pick(_NAMES)}/{source.pick(_LEAVES)}"
        case 2 | 3:
            return f"{source.pick(_SERVICES)}/@{source.pick(_NAMES)}"
        case _:
            return f"slm/agents/@{source.pick(_NAMES)}/{source.pick(('status', 'profile', 'load'))}"


# --- what an area hears


def live_area(data: bytes) -> None:
    _run(data, _area)


async def _area(world: World, source: ByteSource) -> None:
    world.area.stream.sources.clear()
    for _ in range(1 + source.byte() % 8):
        if source.left:
            leaf = source.pick(("observation", "embedding"))
            topic = f"{source.pick(('data.gpt/air', 'data.gpt/a/b'))}/@{source.pick(_NAMES)}/{leaf}"
            payload = source.chunk()
            for _ in range(1 + source.byte() % 4):
                world.broker.deliver(TransportMessage(topic, payload, qos=0))
    await world.quiet()
    assert len(world.area.problems) <= 256
    world.area.nearest([1.0, 0.0, 0.0])
    report_of(world.area.domain, None, world.area.windows(), asyncio.get_running_loop().time())
    world.broker.retained.clear()

"""Who asks: agents by registry, by name and by anycast, and small devices that speak MQTT 3.1.1 without our library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from checker import CODES, Checker, Task
from worker import ECHO

from mqttcollab import Agent, AgentOptions, DeadlineExceeded, MqttCollabError, Reply, RequestError
from mqttcollab.config import BrokerAddress
from mqttcollab.rpc import Requester
from mqttcollab.topics import ORCHESTRATION, request_topic
from mqttcollab.transport.mqtt import MqttOptions, MqttTransport

GRACE_S = 5.0  # what a requester may take beyond a request's ttl
KINDS = ("registry", "unicast", "anycast", "direct", "device")
# When a device asks again after a reconnection: agents come back one by one.
_REPEATS_S = (0.0, 1.0, 2.0, 4.0)
# As an agent's own, but quick to connect again.
_QUICK = MqttOptions(session_expiry_s=300, backoff_s=0.05, backoff_max_s=0.5)


def plan(task: Task) -> list[dict[str, Any]]:
    """The steps of a task, each on the result of the one before."""
    steps: list[dict[str, Any]] = [{"text": f"Turn the token {task.token}", "service": ECHO}]
    for number in range(1, task.steps):
        steps.append({"text": f"Turn the token #{number}", "service": ECHO, "after": [number]})
    return steps


class Device:
    """A small device: MQTT 3.1.1 by paho, JSON by hand, a timer; it does what topics.md asks of a requester."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, tuple[Task, float]] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, name, clean_session=False)
        self._client.reconnect_delay_set(1, 2)
        self._client.on_connect = lambda *_: self._loop.call_soon_threadsafe(self._connected)
        self._client.on_message = lambda _c, _u, m: self._loop.call_soon_threadsafe(self._on_reply, m.topic, m.payload)
        where = urlsplit(url)
        self._client.connect_async(where.hostname or "", where.port or 1883, keepalive=10)
        self._client.loop_start()

    async def stop(self) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)
        await asyncio.sleep(0)  # for what its thread has still called for
        for timer in self._timers:
            timer.cancel()

    async def ask(self, task: Task, ttl_s: float) -> None:
        request_id = f"{self.name}-{task.token}"
        self._open[request_id] = task, self._loop.time() + ttl_s
        self._publish(request_id)
        while task.ended is None and self._loop.time() < self._open[request_id][1]:
            await asyncio.sleep(0.02)
        del self._open[request_id]
        if task.ended is None:
            task.end("timer")

    def _publish(self, request_id: str) -> None:
        task, deadline = self._open[request_id]
        left_ms = int(1000 * (deadline - self._loop.time()))
        if task.ended is not None or left_ms < 1:
            return
        request = {
            "type": "mqttcollab.request.v1",
            "id": request_id,
            "reply_to": f"reply.gpt/@{self.name}/{request_id}",
            "ttl_ms": left_ms,
            "input": "Turn it",
            "plan": plan(task),
        }
        self._client.publish(request_topic(ORCHESTRATION), json.dumps(request), qos=1)

    def _connected(self) -> None:
        self._client.subscribe(f"reply.gpt/@{self.name}/+", qos=1)
        self._timers += [self._loop.call_later(pause_s, self._repeat) for pause_s in _REPEATS_S]

    def _repeat(self) -> None:
        for request_id in self._open:
            self._publish(request_id)

    def _on_reply(self, topic: str, payload: bytes) -> None:
        request_id = topic.rpartition("/")[2]
        reply = Reply.model_validate_json(payload)
        if reply.last and request_id in self._open and self._open[request_id][0].ended is None:
            note(self._open[request_id][0], reply)  # what comes after it is dropped


def note(task: Task, reply: Reply) -> None:
    """Notes a reply as a task's end."""
    if reply.status != "error":
        task.answered(reply.output, reply.missing)
        return
    code = reply.error.code if reply.error is not None else ""
    task.end(code if code in CODES else "uncoded", reply.error.message if reply.error is not None else "")


@dataclass(slots=True)
class Crowd:
    """All requesters of a test.

    Args:
        checker: gets the tasks.
        orchestrators: who can be asked by name.
        rng: chooses who asks whom, and how many steps it takes.
        kinds: of requesters.
        ttl_s: of the requests.
    """

    checker: Checker
    orchestrators: Sequence[str]
    rng: random.Random
    kinds: Sequence[str] = KINDS
    ttl_s: float = 12.0
    _agent: Agent = field(init=False)
    _anycast: Requester = field(init=False)
    _devices: list[Device] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def connected(self, url: str) -> AsyncIterator[Crowd]:
        """Connects everybody."""
        self._agent = Agent("asker", options=AgentOptions(visible=False, connection=_QUICK))
        transport = MqttTransport(BrokerAddress.parse(url), "any-asker", options=_QUICK)
        self._anycast = Requester(transport, "any-asker")
        await self._anycast.start()
        await transport.connect(patience_s=5)
        if "device" in self.kinds:
            self._devices = [Device(f"device-{number}", url) for number in (1, 2)]
        try:
            async with self._agent.running(url):
                await self._agent.follow()
                yield self
        finally:
            for device in self._devices:
                await device.stop()
            await self._anycast.stop()
            await transport.close()

    @contextlib.asynccontextmanager
    async def asking(self, count: int, rate: float) -> AsyncIterator[asyncio.Task[None]]:
        """Asks so many tasks at so many per second in the background; waits in the end for the last to end.

        Yields:
            what is done when all are sent.
        """
        under_way: set[asyncio.Task[None]] = set()

        async def send() -> None:
            start = asyncio.get_running_loop().time()
            for number in range(count):
                await asyncio.sleep(start + number / rate - asyncio.get_running_loop().time())
                under_way.add(asyncio.create_task(self._ask()))

        sending = asyncio.create_task(send())
        try:
            yield sending
            await sending
            await asyncio.gather(*under_way)
        finally:
            for task in (sending, *under_way):
                task.cancel()
            await asyncio.gather(sending, *under_way, return_exceptions=True)

    async def _ask(self) -> None:
        rng, now = self.rng, asyncio.get_running_loop().time()
        kind = rng.choice(self.kinds)
        steps = 1 if kind == "direct" or rng.random() < 0.7 else 2
        task = Task(f"t{rng.getrandbits(64):016x}", steps, now, kind)
        self.checker.tasks.append(task)
        if kind == "device":
            await rng.choice(self._devices).ask(task, self.ttl_s)
        else:
            await self._judged(task, self._way(kind, task))

    def _way(self, kind: str, task: Task) -> Callable[[], Awaitable[Reply]]:
        ask, ttl_s, text = self._agent.ask, self.ttl_s, f"Turn the token {task.token}"
        if kind == "direct":
            return lambda: ask(text, service=ECHO, ttl_s=ttl_s)
        if kind == "anycast":
            request = self._anycast.new_request("Turn it", ttl_ms=int(1000 * ttl_s), plan=plan(task))
            return lambda: self._anycast.ask(request_topic(ORCHESTRATION), request)
        who = self.rng.choice(self.orchestrators) if kind == "unicast" else None
        return lambda: ask("Turn it", service=ORCHESTRATION, agent=who, ttl_s=ttl_s, plan=plan(task))

    async def _judged(self, task: Task, ask: Callable[[], Awaitable[Reply]]) -> None:
        """Asks, and notes the one end; none within the ttl and some grace is a loss."""
        try:
            async with asyncio.timeout(self.ttl_s + GRACE_S) as limit:
                note(task, await ask())
        except DeadlineExceeded as error:
            task.end("timer", str(error))
        except RequestError as error:
            task.end(error.code if error.code in CODES else "uncoded", error.message)
        except MqttCollabError as error:
            task.end("uncoded", f"{type(error).__name__}: {error}")
        except TimeoutError:
            task.end("lost" if limit.expired() else "uncoded", "no end by the ttl and some grace")

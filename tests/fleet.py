"""Agents for tests: on any of the set-ups, and as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from harness import LIMIT_S, Setup, eventually

from mqttcollab import Agent, AgentOptions, Request
from mqttcollab.agent import TransportFactory
from mqttcollab.scheduling import Decision, Demand, Fleet
from mqttcollab.scheduling.frugal import Frugal
from mqttcollab.transport.base import Transport, TransportMessage
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport
from mqttcollab.transport.mqtt import MqttOptions

# As an agent's own, but quick to connect again.
QUICK_SESSION = MqttOptions(session_expiry_s=300, backoff_s=0.02, backoff_max_s=0.2)

ECHO = "knowledge.gpt/echo"
MINIMAL = """\
from mqttcollab import Agent, Request

agent = Agent("echo-1", description="Says it again")


@agent.service("knowledge.gpt/echo", description="Says it again", examples=["Say hello"])
async def echo(request: Request) -> str:
    return request.text


agent.run()
"""


class ByName(Frugal):
    """The default policy, but of those that are free the first by name is taken."""

    def choose(self, demand: Demand, fleet: Fleet, now: float) -> Decision:
        decision = super().choose(demand, fleet, now)
        if decision.kind != "agent":
            return decision
        free = [number for number in range(len(fleet)) if fleet.free()[number]] or [decision.agent]
        return decision._replace(agent=min(free, key=fleet.name))


def on(place: Setup | MemoryBroker) -> TransportFactory:
    """What `Agent.start` takes instead of a URL."""
    if isinstance(place, MemoryBroker):
        return lambda name, will: MemoryTransport(place, name, will=will)
    return lambda name, will: place.client(name, will=will, options=QUICK_SESSION)


def echo_agent(name: str = "echo-1", service: str = ECHO, **options: Any) -> Agent:
    """An agent that says it again."""
    agent = Agent(name, options=AgentOptions(**options))

    @agent.service(service, description="Says it again", examples=["Say hello"], concurrency=8)
    async def echo(request: Request) -> str:
        return f"@{name}: {request.text}"

    return agent


def client(name: str = "asker", **arguments: Any) -> Agent:
    """One that only asks."""
    return Agent(name, options=AgentOptions(visible=False), **arguments)


@contextlib.asynccontextmanager
async def together(place: Setup | MemoryBroker | str, *agents: Agent) -> AsyncIterator[Agent]:
    """Runs agents, and yields one more that asks."""
    async with contextlib.AsyncExitStack() as stack:
        broker = place if isinstance(place, str) else on(place)
        for agent in agents:
            await stack.enter_async_context(agent.running(broker))
        yield await stack.enter_async_context(client().running(broker))


async def known(condition: Callable[[], Any]) -> None:
    """Waits until something is so that may depend on agents of which the registry has not heard yet."""

    def met() -> bool:
        with contextlib.suppress(KeyError, IndexError):
            return bool(condition())
        return False

    await eventually(met)


class Watcher:
    """Sees every message under some filters, and what is retained."""

    def __init__(self) -> None:
        self.seen: list[TransportMessage] = []
        self.last: dict[str, bytes] = {}
        self._news = asyncio.Event()

    async def watch(self, transport: Transport, *filters: str) -> Watcher:
        await transport.subscribe(filters, self._take)
        return self

    def _take(self, message: TransportMessage) -> None:
        self.seen.append(message)
        self.last[message.topic] = message.payload
        self._news.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._news.clear()
                await self._news.wait()


class Process:
    """A Python script that runs an agent."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.output = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def dead(self) -> bool:
        return self._process.returncode is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def says(self, words: str) -> None:
        """Waits until it has printed something."""
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while words not in self.output:
                line = await self._process.stdout.readline()
                assert line, f"it ended without saying {words!r}: {self.output}"
                self.output += line.decode()

    async def ended(self) -> int:
        """Its exit code; what it printed is in `output` then."""
        async with asyncio.timeout(LIMIT_S):
            output, _ = await self._process.communicate()
        self.output += output.decode()
        assert self._process.returncode is not None
        return self._process.returncode


@contextlib.asynccontextmanager
async def process(folder: Path, source: str, url: str) -> AsyncIterator[Process]:
    """Runs a script; what is left of it in the end is killed."""
    script = folder / f"agent{len(list(folder.iterdir()))}.py"
    script.write_text(source)
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        env=os.environ | {"MQTTCOLLAB_BROKER": url, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Process(started)
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.send_signal(signal.SIGCONT)
            started.kill()
        await started.communicate()

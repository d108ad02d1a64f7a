"""Agents in trouble: status `degraded` with the reason, and back again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from itertools import groupby

import pytest
from fleet import ECHO, Watcher, client, echo_agent, known, on, together
from harness import Cable

from mqttcollab import Agent
from mqttcollab.broker import Broker
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.memory import MemoryBroker

STATUS = "slm/agents/@echo-1/status"


class Disk:
    """A part of an agent that may be in trouble, as a journal or a runtime is."""

    trouble: str | None = None

    def __init__(self) -> None:
        self._listeners: list[Callable[[str | None], None]] = []

    def on_trouble(self, listener: Callable[[str | None], None]) -> None:
        self._listeners.append(listener)

    def becomes(self, trouble: str | None) -> None:
        self.trouble = trouble
        for listener in self._listeners:
            listener(trouble)


def said(agent: Agent, words: str) -> bytes:
    return f"{words.split()[0]} {agent.presence.epoch} {words.partition(' ')[2]}".rstrip().encode()


@pytest.mark.slow
async def test_an_agent_says_what_is_wrong_and_serves_on(mosquitto: Broker) -> None:
    agent = echo_agent()
    async with together(mosquitto.info.url, agent) as asker:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        seen = registry.version
        agent.degrade("disk", "the disk\nis full")
        await known(lambda: registry.agents["echo-1"].status == ("degraded", agent.presence.epoch, "the disk is full"))
        assert registry.agents["echo-1"].present
        assert (await asker.ask("hello", service=ECHO)).output == "@echo-1: hello"
        agent.degrade("model", "the model has died")
        await known(lambda: registry.agents["echo-1"].status.reason == "the disk is full; the model has died")  # type: ignore[union-attr]
        agent.recover("disk")
        await known(lambda: registry.agents["echo-1"].status.reason == "the model has died")  # type: ignore[union-attr]
        agent.recover("model")
        await known(lambda: registry.agents["echo-1"].status == ("online", agent.presence.epoch, ""))
        kinds = [change.kind for change in registry.changes_since(seen)]
        assert kinds == ["degraded", "degraded", "degraded", "online"]


async def test_a_part_is_watched(mosquitto: Broker) -> None:
    disk, agent = Disk(), echo_agent()
    disk.trouble = "no journal yet"
    agent.watch("journal", disk)
    async with together(mosquitto.info.url, agent) as asker:
        watcher = await Watcher().watch(asker.transport, STATUS)
        await watcher.until(lambda: watcher.last.get(STATUS) == said(agent, "degraded no journal yet"))
        disk.becomes(None)
        await watcher.until(lambda: watcher.last[STATUS] == said(agent, "online"))
        # Also from another thread.
        thread = threading.Thread(target=agent.degrade, args=("sensor", "no signal"))
        thread.start()
        await watcher.until(lambda: watcher.last[STATUS] == said(agent, "degraded no signal"))
        thread.join()


async def test_flapping_is_slowed_down_and_its_last_state_gets_out(memory_broker: MemoryBroker) -> None:
    agent = echo_agent()
    async with together(memory_broker, agent) as asker:
        watcher = await Watcher().watch(asker.transport, STATUS)
        for number in range(500):
            agent.degrade("fan", f"blocked for the {number}th time")
            await asyncio.sleep(0)
            agent.recover("fan")
            await asyncio.sleep(0)
        agent.degrade("fan", "gone")
        await watcher.until(lambda: watcher.last.get(STATUS) == said(agent, "degraded gone"))
        assert len(watcher.seen) < 10
        with pytest.raises(TimeoutError):  # and it stays so: nothing later overtakes it
            async with asyncio.timeout(1.2):
                await watcher.until(lambda: watcher.last[STATUS] != said(agent, "degraded gone"))


async def test_trouble_outlives_a_connection_and_an_agent_that_starts_again(mosquitto: Broker) -> None:
    agent = echo_agent()
    async with Cable(mosquitto.info) as cable, client().running(mosquitto.info.url) as asker:
        watcher = await Watcher().watch(asker.transport, STATUS)
        async with agent.running(cable.url()):
            agent.degrade("disk", "full")
            await watcher.until(lambda: watcher.last.get(STATUS) == said(agent, "degraded full"))
            await cable.pull()
            await watcher.until(lambda: watcher.last[STATUS] == said(agent, "offline"))
            agent.degrade("disk", "fuller")
            await cable.plug()
            await watcher.until(lambda: watcher.last[STATUS] == said(agent, "degraded fuller"))
            late = TransportMessage(STATUS, said(agent, "offline"), retain=True)
            await asker.transport.publish(late)
            await watcher.until(lambda: watcher.last[STATUS] == said(agent, "degraded fuller"))
            epoch = agent.presence.epoch
        await watcher.until(lambda: watcher.last[STATUS] == f"offline {epoch}".encode())
        async with agent.running(mosquitto.info.url):
            await watcher.until(lambda: watcher.last[STATUS] == said(agent, "degraded fuller"))
            assert agent.presence.epoch > epoch


async def test_sleeping_wins(memory_broker: MemoryBroker) -> None:
    agent = echo_agent()
    async with client().running(on(memory_broker)) as asker:
        watcher = await Watcher().watch(asker.transport, STATUS)
        async with agent.running(on(memory_broker)):
            await agent.sleep()
            agent.degrade("battery", "low")
            await agent.wake()
            await watcher.until(lambda: watcher.last[STATUS] == said(agent, "degraded low"))
            await agent.sleep()
            await watcher.until(lambda: watcher.last[STATUS] == said(agent, "sleeping"))
    # A status may be said twice, where the one before it comes back late.
    states = [state for state, _ in groupby(message.payload.split()[0].decode() for message in watcher.seen)]
    assert states == ["online", "sleeping", "degraded", "sleeping"]  # one that sleeps does not say goodbye


async def test_a_degraded_newcomer_takes_the_name(memory_broker: MemoryBroker) -> None:
    agent = echo_agent()
    async with client().running(on(memory_broker)) as asker:
        await agent.start(on(memory_broker))
        newer = f"degraded {agent.presence.epoch + 1} its disk is full".encode()
        await asker.transport.publish(TransportMessage(STATUS, newer, retain=True))
        with pytest.raises(Exception, match="another process came up as @echo-1"):
            await asyncio.wait_for(asyncio.shield(agent.presence.over), 5)
        await agent.stop()

"""What a stop leaves at the broker: nothing, unless the agent only sleeps."""

from __future__ import annotations

import asyncio

import pytest
from fleet import ECHO, client, echo_agent, on
from harness import MqttSetup, eventually

from mqttcollab import Agent
from mqttcollab.topics import request_topic
from mqttcollab.transport.base import TransportMessage

ASKED = request_topic(ECHO, "echo-1")
everywhere = pytest.mark.parametrize("setup", ["mosquitto-5", "mosquitto-3.1.1", "nats-3.1.1"], indirect=True)


async def goodbye_read(asker: Agent) -> None:
    """Gives the broker time to read what came on another connection: a few round trips of our own."""
    for _ in range(5):
        await asker.transport.publish(TransportMessage("data.gpt/nothing/@asker/observation", b"{}"))


@everywhere
async def test_a_stopped_agent_finds_nothing_waiting_when_it_starts_again(setup: MqttSetup) -> None:
    async with client().running(on(setup)) as asker, asyncio.TaskGroup() as group:
        async with echo_agent().running(on(setup)):
            pass
        await goodbye_read(asker)
        requester = asker._running().requester
        old = requester.new_request("meanwhile", ttl_ms=60_000)
        await asker.transport.publish(requester._message(ASKED, old))
        again = echo_agent()
        async with again.running(on(setup)):
            group.create_task(asker.ask("afterwards", service=ECHO, agent="echo-1"))
            await eventually(lambda: again._running().responder.services[ECHO].stats.completed > 0)
            await asker.ask("last", service=ECHO, agent="echo-1")
            assert again._running().responder.services[ECHO].stats.completed == 2


@everywhere
async def test_a_sleeping_agent_that_disconnects_gets_what_came_meanwhile(setup: MqttSetup) -> None:
    async with client().running(on(setup)) as asker:
        requester = asker._running().requester
        async with echo_agent().running(on(setup)) as sleeper:
            await sleeper.sleep()
        await goodbye_read(asker)
        asking = asyncio.create_task(requester.ask(ASKED, requester.new_request("meanwhile", ttl_ms=30_000)))
        await eventually(lambda: any(call.sent for call in requester._calls.values()))
        async with echo_agent().running(on(setup)):
            assert (await asyncio.wait_for(asking, 10)).output == "@echo-1: meanwhile"

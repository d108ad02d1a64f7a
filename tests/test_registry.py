"""The live registry: what is found, what has expired, what changed, and what nobody can do to it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fleet import ECHO, client, echo_agent, known, on, together
from harness import Setup, eventually

from mqttcollab import Agent, AgentOptions, ConfigError, Registry, Request
from mqttcollab.broker import Broker
from mqttcollab.cms.registry import _MISSED_HEARTBEATS
from mqttcollab.runtimes.base import Embedder
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.transport.base import Handler, Transport, TransportMessage, Work
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport

HEART = "data.gpt/health/heart-rate"
AID = "knowledge.gpt/medicine/first-aid"


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return load_embedder("wordllama")


class Device:
    """A device that is not made with our library: it publishes, and that is all."""

    def __init__(self, transport: Transport, name: str = "door-1") -> None:
        self._transport = transport
        self.name = name

    async def say(self, topic: str, payload: str | bytes | dict[str, Any], *, retain: bool = True) -> None:
        content = json.dumps(payload) if isinstance(payload, dict) else payload
        data = content.encode() if isinstance(content, str) else content
        await self._transport.publish(TransportMessage(topic, data, retain=retain))

    async def status(self, status: str) -> None:
        await self.say(f"slm/agents/@{self.name}/status", status)

    async def record(self, service: str, **fields: Any) -> None:
        record = {"type": "mqttcollab.service.v1", "agent": self.name, "service": service, **fields}
        await self.say(f"{service}/@{self.name}", record)

    async def load(self, *, retain: bool = True, **fields: Any) -> None:
        load = {"type": "mqttcollab.load.v1", "agent": self.name, **fields}
        await self.say(f"slm/agents/@{self.name}/load", load, retain=retain)


@asynccontextmanager
async def following(
    broker: MemoryBroker, embedder: Embedder | None = None
) -> AsyncIterator[tuple[Registry, Device, Device]]:
    """A registry, and two devices."""
    devices = [MemoryTransport(broker, name) for name in ("door-1", "door-2")]
    for transport in devices:
        await transport.connect()
    async with client(embedder=embedder).running(on(broker)) as agent:
        yield await agent.follow(), Device(devices[0]), Device(devices[1], "door-2")
    for transport in devices:
        await transport.close()


def names(registry: Registry, pattern: str = "#") -> list[tuple[str, str]]:
    return [(offer.record.service, offer.agent.name) for offer in registry.offers(pattern)]


# Finding


async def test_lookup_by_name_wildcard_and_kind(setup: Setup) -> None:
    watch, medic = echo_agent("watch-7", HEART), echo_agent("medic-2", AID)
    medic.service("knowledge.gpt/law")(lambda request: "no")
    async with together(setup, watch, medic) as asker:
        registry = await asker.follow()
        await known(lambda: len(registry.offers()) == 3)
        assert names(registry, HEART) == [(HEART, "watch-7")]
        assert names(registry, "data.gpt/#") == [(HEART, "watch-7")]
        assert {agent for _, agent in names(registry, "knowledge.gpt/#")} == {"medic-2"}
        assert names(registry, "+/medicine/+") == [(AID, "medic-2")]
        assert names(registry, "computation.gpt/#") == []
        assert [view.name for view in registry.present()] == ["medic-2", "watch-7"]
        view = registry.agents["medic-2"]
        assert view.profile is not None
        assert view.profile.services == [AID, "knowledge.gpt/law"]
        assert registry.problems == {}


async def test_lookup_by_meaning(memory_broker: MemoryBroker, embedder: Embedder) -> None:
    async with following(memory_broker, embedder) as (registry, one, two):
        await one.status("online 1")
        await two.status("online 1")
        await one.record(AID, description="First aid advice", examples=["What do I do about a burn?"])
        await one.record("knowledge.gpt/weather-forecast")  # nothing but its name
        await two.record(HEART, description="Heart rate of the wearer", examples=["What is my pulse?"])
        await known(lambda: len(registry.offers()) == 3)
        for question, service in [
            ("My hand has a burn", AID),
            ("How high is my pulse now?", HEART),
            ("What is the weather forecast?", "knowledge.gpt/weather-forecast"),
        ]:
            best, *rest = registry.nearest(question)
            assert best.offer.record.service == service
            assert best.score > 0.4 > max(match.score for match in rest)
        assert [m.offer.record.service for m in registry.nearest("pulse", "knowledge.gpt/medicine/#")] == [AID]
        # What it is close to follows the record.
        await one.record(AID, description="Tax advice", examples=["How do I file my taxes?"])
        await eventually(lambda: registry.nearest("My hand has a burn")[0].score < 0.4)
        assert registry.nearest("How are my taxes filed?")[0].offer.record.service == AID
        assert registry.nearest("")[0].score == 0
        assert len(registry.nearest("\x00\x01 ☃ " * 5000)) == 3


async def test_meaning_takes_an_embedder(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, _, _):
        with pytest.raises(ConfigError, match="takes an embedder"):
            registry.nearest("?")


async def test_the_least_loaded_comes_first_and_sleepers_last(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, one, two):
        for device in (one, two):
            await device.status("online 1")
            await device.record(ECHO)
        await one.load(running=2, queued=1, slots=2)
        await two.load(running=1, slots=1)
        await known(lambda: len(registry.offers()) == 2)
        await eventually(lambda: registry.agents["door-2"].load is not None)
        assert [(offer.agent.name, offer.pressure) for offer in registry.offers()] == [("door-2", 1.0), ("door-1", 1.5)]
        await two.status("sleeping 1")
        await known(lambda: registry.agents["door-2"].asleep)
        assert [offer.agent.name for offer in registry.offers()] == ["door-1", "door-2"]
        await one.say("slm/agents/@door-1/load", "")
        await eventually(lambda: registry.agents["door-1"].load is None)
        assert registry.offers()[0].pressure == 0


async def test_a_device_without_our_library(mosquitto: Broker) -> None:
    """MQTT 3.1.1, a record and a status by mosquitto_pub: no profile, no load, no heartbeat."""

    async def publish(topic: str, payload: str) -> None:
        command = ["mosquitto_pub", "-V", "311", "-p", str(mosquitto.info.port), "-r", "-q", "1", "-t", topic]
        process = await asyncio.create_subprocess_exec(*command, "-m", payload)
        assert await process.wait() == 0

    record = {"type": "mqttcollab.service.v1", "agent": "door-1", "service": "data.gpt/door"}
    try:
        await publish("data.gpt/door/@door-1", json.dumps(record))
    except FileNotFoundError:
        pytest.skip("mosquitto_pub is not installed (apt-get install mosquitto-clients)")
    await publish("slm/agents/@door-1/status", "online 7")
    async with client().running(mosquitto.info.url) as asker:
        registry = await asker.follow()
        assert names(registry) == [("data.gpt/door", "door-1")]
        assert registry.agents["door-1"].profile is None
        await publish("slm/agents/@door-1/status", "offline 7")
        await known(lambda: names(registry) == [])


async def test_models(setup: Setup) -> None:
    agent = Agent("phone-1")
    agent.describe_model("smollm2-135m", architecture="llama", context_length=2048, quantization="Q8_0")
    async with together(setup, agent) as asker:
        registry = await asker.follow()
        await known(lambda: len(registry.models.get("smollm2-135m", {})) == 3)
        assert registry.models["smollm2-135m"]["context_length"] == "2048"
        transport = await setup.connected("owner")
        for key in ("architecture", "context_length", "quantization"):
            topic = f"slm/models/smollm2-135m/{key}"
            await transport.publish(TransportMessage(topic, b"", retain=True))
        await known(lambda: registry.models == {})


# Who is gone


async def test_changes(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, one, _):
        start = registry.version

        def changes() -> list[tuple[str, str]]:
            return [(change.kind, change.service) for change in registry.changes_since(start)]

        await one.status("online 1")
        await one.record(ECHO, description="before")
        await known(lambda: registry.offers()[0].record.description == "before")
        await one.record(ECHO, description="after")
        await known(lambda: registry.offers()[0].record.description == "after")
        assert changes() == [("online", ""), ("record", ECHO), ("record", ECHO)]
        seen = registry.version
        await one.record(ECHO, description="after")  # as at every reconnection
        await one.status("online 1")
        await one.status("sleeping 1")
        await known(lambda: registry.agents["door-1"].asleep)
        assert [change.kind for change in registry.changes_since(seen)] == ["sleeping"]
        await one.say(f"{ECHO}/@door-1", "")
        await one.say("slm/models/m/size", "1")
        await one.status("offline 1")
        await known(lambda: changes()[-1] == ("offline", ""))
        assert changes()[-3:] == [("record_gone", ECHO), ("model", "m"), ("offline", "")]
        numbers = [change.number for change in registry.changes_since(0)]
        assert numbers == list(range(1, registry.version + 1))
        assert registry.changes_since(registry.version) == []


async def test_a_late_will_of_a_life_before_is_ignored(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, one, _):
        await one.status("online 1")
        await one.record(ECHO)
        await one.status("online 2")
        await one.status("offline 1")
        await one.status("offline 3")
        await one.record("data.gpt/door")
        await known(lambda: len(names(registry)) == 2)
        await one.status("offline 2")
        await known(lambda: names(registry) == [])


async def test_what_an_agent_lost_with_its_life_is_not_offered_in_the_next(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, one, _):
        await one.status("online 1")
        await one.record(ECHO)
        await one.record("data.gpt/door")
        await known(lambda: len(names(registry)) == 2)
        await one.status("offline 1")
        await known(lambda: not names(registry))
        await one.say(f"{ECHO}/@door-1", "")  # cleared while nobody looks
        await one.status("online 2")
        await known(lambda: bool(names(registry)))
        assert names(registry) == [("data.gpt/door", "door-1")]


async def test_what_a_profile_no_longer_names_is_not_offered(memory_broker: MemoryBroker) -> None:
    """A registry that was away does not hear of records that were cleared meanwhile."""
    async with following(memory_broker) as (registry, one, _):
        await one.status("online 1")
        await one.record(ECHO)
        await one.record("data.gpt/door")
        await known(lambda: len(names(registry)) == 2)
        profile = {"type": "mqttcollab.profile.v1", "agent": "door-1", "services": [ECHO]}
        await one.say("slm/agents/@door-1/profile", profile)
        await known(lambda: names(registry) == [(ECHO, "door-1")])
        await one.record("data.gpt/door")
        await known(lambda: len(names(registry)) == 2)


async def test_an_agent_whose_status_is_cleared_is_forgotten(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, one, _):
        await one.status("online 1")
        await one.record(ECHO)
        await known(lambda: len(names(registry)) == 1)
        await one.status("")
        await known(lambda: "door-1" not in registry.agents)
        assert names(registry) == []


async def test_records_with_a_time_to_live_expire(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, one, _):
        await one.status("online 1")
        await one.record(ECHO, ttl_s=0.1)
        await one.record("data.gpt/door", ttl_s=60)
        await known(lambda: len(names(registry)) == 2)
        await eventually(lambda: names(registry) == [("data.gpt/door", "door-1")])
        await one.record(ECHO, ttl_s=0.1)
        await eventually(lambda: len(names(registry)) == 2)


async def test_leases(memory_broker: MemoryBroker) -> None:
    """By the load report or the record; none for a device that promised none, and none for a sleeper."""
    async with following(memory_broker) as (registry, one, two):
        third = Device(one._transport, "door-3")
        fourth = Device(one._transport, "door-4")
        await one.load(heartbeat_s=0.01)
        await two.record(ECHO, heartbeat_s=0.01)
        await third.record(ECHO)
        await fourth.load(heartbeat_s=0.01)
        for device in (one, two, third):
            await device.status("online 1")
        await fourth.status("sleeping 1")
        await known(lambda: len(registry.present()) == 4)
        await known(lambda: len(registry.present()) == 2)
        assert [view.name for view in registry.present()] == ["door-3", "door-4"]
        assert names(registry) == [(ECHO, "door-3")]
        await one.load(heartbeat_s=60, retain=False)
        await known(lambda: registry.agents["door-1"].present)
        await two.status("online 1")
        await known(lambda: registry.agents["door-2"].present)
        # One that expired and then says that it is gone leaves nothing behind.
        await known(lambda: not registry.agents["door-2"].present)
        await two.status("offline 1")
        await known(lambda: registry.agents["door-2"].records == {})
    assert _MISSED_HEARTBEATS == 3


@pytest.mark.slow
async def test_leases_do_not_run_out_while_it_is_we_who_are_away(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, one, _):
        await one.status("online 1")
        await one.load(heartbeat_s=0.2)
        await known(lambda: registry.agents["door-1"].load is not None and registry.agents["door-1"].present)
        seen = registry.version
        await memory_broker.stop()
        await asyncio.sleep(1.7)  # longer than the lease, and there is a sweep after it
        await memory_broker.start()
        assert registry.agents["door-1"].present
        await one.load(heartbeat_s=0.2)
        await known(lambda: not registry.agents["door-1"].present)  # and now it does
        assert [change.kind for change in registry.changes_since(seen)] == ["offline"]


async def test_an_agent_that_is_lost_is_told_to_whom_it_concerns(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, one, _):
        await one.status("online 1")
        await known(lambda: registry.agents["door-1"].present)
        lost = asyncio.create_task(registry.gone("door-1"))
        patient = asyncio.create_task(registry.gone("door-1", grace_s=10))
        await asyncio.sleep(0)
        await one.status("sleeping 1")  # the same life
        await known(lambda: registry.agents["door-1"].asleep)
        assert not lost.done()
        await one.status("offline 1")
        await lost
        await one.status("online 1")
        await known(lambda: registry.agents["door-1"].present)
        assert not patient.done()
        await one.status("online 2")
        await patient
        await registry.gone("nobody")


# What can't harm it

RECORD = {"type": "mqttcollab.service.v1", "agent": "door-1", "service": ECHO}
BAD_RECORDS = [
    ("bad JSON", b"{]", "not valid JSON"),
    ("binary", b"\xff\x00\xfe", "JSON"),
    ("bad CBOR", b"\xd9\xd9\xf7\xff", "CBOR"),
    ("not a map", b"[1]", "."),
    ("no type", json.dumps({**RECORD, "type": None}).encode(), "type"),
    ("wrong agent", json.dumps({**RECORD, "agent": "door-2"}).encode(), "another agent"),
    ("wrong service", json.dumps({**RECORD, "service": HEART}).encode(), f"speaks of {HEART}"),
    ("300 examples", json.dumps({**RECORD, "examples": ["?"] * 300}).encode(), "examples.*256"),
    ("10k description", json.dumps({**RECORD, "description": "x" * 10_000}).encode(), "description.*4096"),
    ("NaN centroid", b'{"centroid": [NaN], ' + json.dumps(RECORD).encode()[1:], "centroid"),
    ("negative price", json.dumps({**RECORD, "price_usd": -1}).encode(), "price_usd"),
    ("major version", json.dumps({**RECORD, "type": "mqttcollab.service.v2"}).encode(), "v2 is not supported"),
    ("another message", json.dumps({"type": "mqttcollab.load.v1", "agent": "door-1"}).encode(), "load.v1"),
    ("too large", json.dumps({**RECORD, "junk": "x" * 300_000}).encode(), "over the limit"),
    ("deep", b'{"x":' * 5000 + b"1" + b"}" * 5000, "."),
]


@pytest.mark.parametrize(
    ("payload", "words"), [case[1:] for case in BAD_RECORDS], ids=[case[0] for case in BAD_RECORDS]
)
async def test_a_bad_record_is_noted_and_hurts_nobody(memory_broker: MemoryBroker, payload: bytes, words: str) -> None:
    topic = f"{ECHO}/@door-1"
    async with following(memory_broker) as (registry, one, two):
        for device in (one, two):
            await device.status("online 1")
            await device.record(ECHO)
        await known(lambda: len(names(registry)) == 2)
        await one.say(topic, payload)
        await known(lambda: len(names(registry)) == 1)
        assert names(registry) == [(ECHO, "door-2")]
        assert list(registry.problems) == [topic]
        assert re.search(words, registry.problems[topic])
        assert "\n" not in registry.problems[topic]
        await one.record(ECHO)
        await known(lambda: len(names(registry)) == 2)
        assert registry.problems == {}
        await one.say(topic, payload)
        await known(lambda: topic in registry.problems)
        await one.say(topic, "")
        await eventually(lambda: registry.problems == {})


NONSENSE = [
    ("status", b"online"),
    ("status", b"online soon"),
    ("status", b"ONLINE 1"),
    ("status", b"\xff" * 1000),
    ("status", b"online " + b"9" * 400),
    ("profile", b"{}"),
    ("profile", b'{"type": "mqttcollab.profile.v1", "agent": "door-2"}'),
    ("load", b'{"type": "mqttcollab.load.v1", "agent": "door-1", "running": -1}'),
    ("load", b"\x00"),
]


async def test_nonsense_is_noted(setup: Setup) -> None:
    topics = {f"slm/agents/@x-{number}/{leaf}": payload for number, (leaf, payload) in enumerate(NONSENSE)}
    topics |= {f"slm/agents/{name}/status": b"online 1" for name in ("door-1", "@Door", "@", "@a_b")}
    topics |= {"slm/models/smol": b"llama", "slm/models": b"llama"}
    async with together(setup, echo_agent()) as asker:
        registry = await asker.follow()
        await known(lambda: len(names(registry)) == 1)
        meddler = await setup.connected("meddler")
        for topic, payload in topics.items():
            await meddler.publish(TransportMessage(topic, payload, retain=True))
        await eventually(lambda: registry.problems.keys() == topics.keys())
        assert all("\n" not in text and len(text) < 300 for text in registry.problems.values())
        assert list(registry.agents) == ["echo-1"]
        assert names(registry) == [(ECHO, "echo-1")]
        assert (await asker.ask("hello", service=ECHO)).output == "@echo-1: hello"


async def test_problems_do_not_pile_up(memory_broker: MemoryBroker) -> None:
    async with following(memory_broker) as (registry, one, _):
        for number in range(300):
            await one.say(f"slm/agents/@x{number}/load", "{]")
        await eventually(lambda: "slm/agents/@x299/load" in registry.problems)
        assert len(registry.problems) == 256
        assert "slm/agents/@x0/load" not in registry.problems
        assert "x0" not in registry.agents


async def test_the_registry_gets_no_requests_and_no_embeddings(setup: Setup) -> None:
    """A city has millions of them."""
    received: list[str] = []
    agent = Agent("watch-7", options=AgentOptions(heartbeat_s=60))

    @agent.service(HEART, concurrency=50)
    async def measure(request: Request) -> str:
        return "59/min"

    def listening(name: str, will: TransportMessage) -> Transport:
        transport = setup.client(name)
        subscribe = transport.subscribe

        async def noting(filters: str | Iterable[str], handler: Handler, *, qos: int = 1) -> None:
            def note(message: TransportMessage) -> Work | None:
                received.append(message.topic)
                return handler(message)

            await subscribe(filters, note, qos=qos)

        transport.subscribe = noting  # type: ignore[method-assign]
        return transport

    async with agent.running(on(setup)), client("watcher").running(listening) as watcher:
        registry = await watcher.follow()
        await known(lambda: registry.agents["watch-7"].load is not None and names(registry))
        async with client().running(on(setup)) as asker:
            await asyncio.gather(*(asker.ask("?", service=HEART, agent="watch-7") for _ in range(50)))
            for number in range(50):
                await agent.publish_embedding(HEART, [0.5, float(number)], model="m")
                await agent.observe(HEART, values={"heart_rate": float(number)})
        count = len(received)
        await agent.presence.say("sleeping")
        await known(lambda: registry.agents["watch-7"].asleep)
    assert count < 12
    assert not any(leaf in topic for topic in received for leaf in ("request", "cancel", "embedding", "observation"))

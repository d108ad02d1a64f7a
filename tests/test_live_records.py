"""Records that change while their agent runs, and the centroids in them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fleet import ECHO, Watcher, client, echo_agent, known, on
from harness import MqttSetup, Setup
from numpy.typing import NDArray

from mqttcollab import Agent, AgentOptions, ConfigError, Request, Service
from mqttcollab.codec import CBOR, decode, encode
from mqttcollab.messages import ServiceRecord
from mqttcollab.runtimes.base import Embedder
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.memory import MemoryBroker

TOPIC = f"{ECHO}/@echo-1"
HEART = "data.gpt/health/heart-rate"


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return load_embedder("wordllama")


class CountingEmbedder:
    """The direction of a text is its first letter's, else it has none; counts what it is given."""

    model = "letters"
    dimension = 26

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += texts
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            if "a" <= text[0] <= "z":
                row[ord(text[0]) - ord("a")] = 1
        return rows


def records(watcher: Watcher, topic: str = TOPIC) -> list[ServiceRecord]:
    """Every version of a record, but for those that cleared it."""
    return [decode(ServiceRecord, m.payload) for m in watcher.seen if m.topic == topic and m.payload]


# Live records


async def test_a_change_reaches_who_is_there_and_who_comes_later(setup: Setup) -> None:
    agent = echo_agent()
    async with agent.running(on(setup)), client().running(on(setup)) as asker:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO)[0].record.examples == ["Say hello"])
        agent.update(ECHO, examples=["Repeat after me"], accuracy=0.9, price_usd=0.25)
        await known(lambda: registry.offers(ECHO)[0].record.examples == ["Repeat after me"])
        record = registry.offers(ECHO)[0].record
        assert (record.accuracy, record.price_usd, record.description) == (0.9, 0.25, "Says it again")
        async with client("later").running(on(setup)) as later:
            assert (await later.follow()).offers(ECHO)[0].record == record
    assert agent.record(ECHO) == record  # a next life begins with it


async def test_a_changed_record_is_cleared_at_the_end(setup: Setup) -> None:
    agent = echo_agent()
    watcher = await Watcher().watch(await setup.connected("watcher"), TOPIC)
    async with agent.running(on(setup)):
        agent.update(ECHO, description="once")
        await watcher.until(lambda: b"once" in watcher.last.get(TOPIC, b""))
        agent.update(ECHO, description="twice")
    agent.update(ECHO, description="after the end")
    await watcher.until(lambda: watcher.last[TOPIC] == b"")


async def test_many_changes_are_few_messages_and_the_last_one_counts(memory_broker: MemoryBroker) -> None:
    agent = echo_agent(update_s=0.05)
    async with agent.running(on(memory_broker)), client().running(on(memory_broker)) as asker:
        watcher = await Watcher().watch(asker.transport, TOPIC)
        await watcher.until(lambda: records(watcher))
        for number in range(100):
            agent.update(ECHO, description=f"version {number}")
        await watcher.until(lambda: records(watcher)[-1].description == "version 99")
        assert len(records(watcher)) <= 3  # as it was, then at most the first change and the last one


async def test_a_change_made_without_a_connection_is_announced_with_the_next(setup: Setup) -> None:
    agent = echo_agent(update_s=0.01)
    async with agent.running(on(setup)), client().running(on(setup)) as asker:
        registry = await asker.follow()
        await known(lambda: registry.offers(ECHO))
        await setup.go_away()
        for number in range(3):
            agent.update(ECHO, description=f"version {number}")
        await setup.come_back()
        await known(lambda: registry.offers(ECHO)[0].record.description == "version 2")


async def test_a_broker_that_forgets_gets_the_changed_record(mosquitto: Any) -> None:
    setup = MqttSetup(mosquitto, "5")
    agent = echo_agent(update_s=0.01)
    async with agent.running(on(setup)), client().running(on(setup)) as asker:
        registry = await asker.follow()
        agent.update(ECHO, description="changed")
        await known(lambda: registry.offers(ECHO)[0].record.description == "changed")
        await setup.go_away()
        await setup.come_back()
        async with client("later").running(on(setup)) as later:
            again = await later.follow()
            await known(lambda: again.offers(ECHO)[0].record.description == "changed")
    await setup.close()


async def test_a_change_before_the_start_and_in_between_is_in_the_birth(memory_broker: MemoryBroker) -> None:
    agent = echo_agent()
    agent.update(ECHO, description="before the start")
    async with client().running(on(memory_broker)) as asker:
        watcher = await Watcher().watch(asker.transport, TOPIC)
        async with agent.running(on(memory_broker)):
            await watcher.until(lambda: records(watcher))
        async with agent.running(on(memory_broker)):
            await watcher.until(lambda: len(records(watcher)) == 2)
        assert {record.description for record in records(watcher)} == {"before the start"}


async def test_a_change_while_the_services_start_is_announced_once(memory_broker: MemoryBroker) -> None:
    agent = Agent("echo-1", options=AgentOptions(update_s=0))

    class Loading(Service):
        name = ECHO

        async def started(self) -> None:
            agent.update(ECHO, description="loaded")

        async def handle(self, request: Request) -> str:
            return request.text

    agent.add(Loading())
    async with client().running(on(memory_broker)) as asker:
        watcher = await Watcher().watch(asker.transport, TOPIC)
        async with agent.running(on(memory_broker)):
            assert (await asker.ask("hello", service=ECHO, agent="echo-1")).output == "hello"
        await watcher.until(lambda: watcher.last.get(TOPIC) == b"")
        assert [record.description for record in records(watcher)] == ["loaded"]


async def test_an_agent_that_only_asks_announces_no_change(memory_broker: MemoryBroker) -> None:
    hidden = echo_agent("hidden", visible=False)
    async with hidden.running(on(memory_broker)), client().running(on(memory_broker)) as asker:
        watcher = await Watcher().watch(asker.transport, "#")
        hidden.update(ECHO, description="changed")
        await asker.transport.publish(TransportMessage("slm/models/m/k", b"last"))
        await watcher.until(lambda: "slm/models/m/k" in watcher.last)
        assert f"{ECHO}/@hidden" not in watcher.last


@pytest.mark.parametrize(
    ("service", "changes", "words"),
    [
        (ECHO, {"examples": ["?"] * 257}, "examples: .*at most 256 items.*not 257"),
        (ECHO, {"examples": ["?"] * 10_000}, "examples: .*at most 256 items"),
        (ECHO, {"examples": "Say hello"}, "are a string; pass a list"),
        (ECHO, {"examples": ["x" * 2000] * 200}, r"\d+ bytes, over the limit of 262144: give it fewer"),
        (ECHO, {"description": "x" * 5000}, "description: .*4096"),
        (ECHO, {"accuracy": 1.5}, "accuracy: .*less than or equal to 1"),
        (ECHO, {"price_usd": math.nan}, "price_usd: .*finite"),
        (HEART, {"description": "x"}, f"no service {HEART} to update; its services: {ECHO}"),
    ],
)
async def test_a_wrong_change_is_refused_and_changes_nothing(
    memory_broker: MemoryBroker, service: str, changes: dict[str, Any], words: str
) -> None:
    agent = echo_agent()
    async with agent.running(on(memory_broker)):
        before = agent.record(ECHO)
        with pytest.raises(ConfigError, match=words) as error:
            agent.update(service, **changes)
        assert "\n" not in str(error.value)
        assert agent.record(ECHO) == before


def test_the_pause_is_not_negative() -> None:
    with pytest.raises(ConfigError, match="update_s is -1"):
        AgentOptions(update_s=-1)


# Centroids


def agent_with(embedder: Embedder | None, examples: Sequence[str], description: str = "") -> Agent:
    agent = Agent("echo-1", embedder=embedder)

    @agent.service(ECHO, description=description, examples=examples)
    async def echo(request: Request) -> str:
        return request.text

    return agent


def test_a_record_has_the_mean_direction_of_its_examples(embedder: Embedder) -> None:
    examples = ["What do I do about a burn?", "How do I stop a nosebleed?", "What helps against a sting?"]
    record = agent_with(embedder, examples).record(ECHO)
    assert record.centroid is not None
    mean = embedder.embed(examples).mean(axis=0)
    assert np.allclose(record.centroid, mean / np.linalg.norm(mean), atol=1e-4)
    assert (record.embedding_model, record.dimension) == (embedder.model, len(record.centroid))
    assert math.isclose(math.hypot(*record.centroid), 1, abs_tol=1e-3)


@pytest.mark.parametrize(
    ("examples", "description", "letters"),
    [(["a", "b"], "c", "ab"), ([], "c", "c"), ([], "", ""), (["  "], "c", ""), (["a", "", "a"], "", "a")],
)
def test_the_centroid_is_of_the_examples_else_of_the_description(
    examples: list[str], description: str, letters: str
) -> None:
    centroid = agent_with(CountingEmbedder(), examples, description).record(ECHO).centroid
    assert "".join(chr(ord("a") + i) for i, value in enumerate(centroid or []) if value) == letters


def test_without_an_embedder_or_direction_there_is_no_centroid() -> None:
    assert agent_with(None, ["a"]).record(ECHO).centroid is None
    assert agent_with(CountingEmbedder(), ["1"]).record(ECHO).centroid is None


def test_every_example_is_embedded_once() -> None:
    counting = CountingEmbedder()
    agent = agent_with(counting, ["a", "b"])
    agent.update(ECHO, examples=["b", "c"])
    for _ in range(3):
        list(agent.descriptions())
    assert counting.texts == ["a", "b", "c"]


def test_what_a_centroid_costs(embedder: Embedder) -> None:
    examples = [f"What do I do about a burn number {n}?" for n in range(10)]
    record = agent_with(embedder, examples).record(ECHO)
    bare = record.model_copy(update={"centroid": None})
    assert len(encode(record)) - len(encode(bare)) < 2400
    assert len(encode(record, CBOR, vectors="int8")) - len(encode(bare, CBOR)) < 300


RECORD = {"type": "mqttcollab.service.v1", "agent": "echo-1", "service": ECHO, "description": ""}
AB = [1.0, 1.0] + [0.0] * 24


@pytest.mark.parametrize(
    ("fields", "usable"),
    [
        ({"embedding_model": "letters", "dimension": 26, "centroid": AB}, True),
        ({"embedding_model": "letters", "centroid": AB}, True),
        ({"embedding_model": "other", "dimension": 26, "centroid": AB}, False),
        ({"dimension": 26, "centroid": AB}, False),
        ({"embedding_model": "letters", "dimension": 26, "centroid": AB[:25]}, False),
        ({"embedding_model": "letters", "dimension": 25, "centroid": AB}, False),
        ({"embedding_model": "letters", "dimension": 26, "centroid": [0.0] * 26}, False),
        ({"embedding_model": "letters", "dimension": 26, "centroid": [1e308] * 26}, False),
        ({"embedding_model": "letters", "dimension": 26}, False),
    ],
)
async def test_a_centroid_that_does_not_compare_is_passed_over(
    memory_broker: MemoryBroker, fields: dict[str, Any], usable: bool
) -> None:
    async with client(embedder=CountingEmbedder()).running(on(memory_broker)) as asker:
        registry = await asker.follow()
        await asker.transport.publish(TransportMessage("slm/agents/@echo-1/status", b"online 1", retain=True))
        await known(lambda: registry.agents["echo-1"].present)
        await asker.transport.publish(TransportMessage(TOPIC, json.dumps(RECORD | fields).encode(), retain=True))
        await known(lambda: registry.offers(ECHO))  # the record itself holds
        record = registry.offers(ECHO)[0].record
        vector = record.centroid_for("letters", 26)
        assert (vector is not None) == usable
        # Without examples it stands for the service; else the name does, which begins with a k.
        assert registry.nearest("a")[0].score == pytest.approx(math.sqrt(0.5) if usable else 0)
        assert registry.nearest("k")[0].score == pytest.approx(0 if usable else 1)


async def test_records_of_two_embedding_models_are_both_found(memory_broker: MemoryBroker, embedder: Embedder) -> None:
    one, two = agent_with(embedder, ["What do I do about a burn?"]), agent_with(CountingEmbedder(), ["burns"])
    two.name = "echo-2"
    asker = client(embedder=embedder)
    async with one.running(on(memory_broker)), two.running(on(memory_broker)), asker.running(on(memory_broker)):
        registry = await asker.follow()
        await known(lambda: len(registry.offers(ECHO)) == 2)
        found = {m.offer.agent.name: m.score for m in registry.nearest("What do I do about a burn?")}
        assert found["echo-1"] == pytest.approx(1, abs=1e-3) and 0.3 < found["echo-2"] < 1
        models = {o.record.embedding_model: o.record for o in registry.offers(ECHO)}
        assert models[embedder.model].centroid_for(embedder.model, embedder.dimension) is not None
        assert models["letters"].centroid_for(embedder.model, embedder.dimension) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [('"examples": [' + '"?",' * 9_999 + '"?"]', "examples.*256"), ('"centroid": [NaN, 1]', "centroid")],
)
async def test_ten_thousand_examples_or_nan_are_a_problem_of_that_record_alone(
    setup: Setup, fields: str, words: str
) -> None:
    topic = f"{ECHO}/@bad-1"
    payload = (json.dumps(RECORD | {"agent": "bad-1"})[:-1] + f", {fields}}}").encode()
    async with echo_agent().running(on(setup)), client().running(on(setup)) as asker:
        registry = await asker.follow()
        await asker.transport.publish(TransportMessage(topic, payload, retain=True))
        await asker.transport.publish(TransportMessage("slm/agents/@bad-1/status", b"online 1", retain=True))
        await known(lambda: re.search(words, registry.problems[topic]))
        await known(lambda: [offer.agent.name for offer in registry.offers(ECHO)] == ["echo-1"])
        assert (await asker.ask("hello", service=ECHO)).output == "@echo-1: hello"

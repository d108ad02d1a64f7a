"""An area's unified view over the brokers: what arrives, what is refused, what is reused, what is unusual."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from typing import Any

import cbor2
import numpy as np
import pytest
from fleet import on, together
from harness import Setup, eventually
from numpy.typing import NDArray

from mqttcollab import Agent, ConfigError, SubscribeError, TopicError
from mqttcollab.codec import CBOR, encode
from mqttcollab.cooperation.area import Area
from mqttcollab.cooperation.area_report import report_of
from mqttcollab.cooperation.area_reuse import SharedEmbedder
from mqttcollab.cooperation.area_stream import stream_filters
from mqttcollab.cooperation.area_windows import SourceKey, StreamLimits
from mqttcollab.messages import Embedding, Observation
from mqttcollab.topics import data_topic, matches
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.memory import MemoryBroker

AIR, WATER = "data.gpt/air/nox", "data.gpt/water"
Broker = Setup | MemoryBroker


class Letters:
    """An embedder that counts letters, and how often it was asked."""

    model = "letters-1"
    dimension = 26

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += texts
        rows = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def sensor(name: str, place: str | None = "square", embedder: Letters | None = None) -> Agent:
    return Agent(name, place=place, embedder=embedder)


def observation(agent: str, number: int, value: float, service: str = AIR, **fields: Any) -> TransportMessage:
    content = Observation(id=f"{agent}-{number}", agent=agent, service=service, values={"nox": value}, **fields)
    return TransportMessage(data_topic(service, agent, "observation"), encode(content), qos=0)


def embedding(agent: str, vector: list[float], service: str = AIR, **fields: Any) -> TransportMessage:
    content = Embedding(agent=agent, service=service, **{"model": "letters-1", **fields}, vector=vector)
    return TransportMessage(data_topic(service, agent, "embedding"), encode(content, CBOR), qos=0)


async def send(agent: Agent, *messages: TransportMessage) -> None:
    for message in messages:
        await agent.transport.publish(message)


# --- what it subscribes


@pytest.mark.parametrize(
    ("domain", "services"),
    [
        ("data.gpt/weather", ["data.gpt/weather"]),
        ("data.gpt/air/#", ["data.gpt/air", "data.gpt/air/nox", "data.gpt/air/a/b/c"]),
        ("data.gpt/+/nox", ["data.gpt/air/nox"]),
        ("data.gpt/#", ["data.gpt/air", "data.gpt/a/b", "data.gpt/a/b/c", "data.gpt/a/b/c/d"]),
    ],
)
def test_the_filters_match_what_is_sensed_and_nothing_else(domain: str, services: list[str]) -> None:
    filters = stream_filters(domain)
    for service in services:
        for leaf in ("observation", "embedding"):
            assert sum(matches(f, f"{service}/@a/{leaf}") for f in filters) == 1
        for other in (f"{service}/@a", f"{service}/@a/request", f"{service}/request", f"{service}/@a/cancel"):
            assert not any(matches(f, other) for f in filters)
    assert not any("#" in f for f in filters)


@pytest.mark.parametrize("domain", ["", "#", "data.gpt", "knowledge.gpt/x", "data.gpt/A", "data.gpt/#/x", "+/air"])
async def test_a_domain_that_is_none(domain: str, memory_broker: MemoryBroker) -> None:
    async with sensor("a").running(on(memory_broker)) as agent:
        with pytest.raises(TopicError, match="area of domain"):
            Area(agent, domain)


async def test_a_broker_that_refuses_is_heard(setup: Setup) -> None:
    async with sensor("a").running(on(setup)) as agent:
        area = Area(agent, "data.gpt/#")

        async def refuse(*_: Any, **__: Any) -> None:
            raise SubscribeError("not authorized")

        subscribe, agent.transport.subscribe = agent.transport.subscribe, refuse  # type: ignore[method-assign]
        with pytest.raises(SubscribeError):
            async with area:
                pass
        agent.transport.subscribe = subscribe  # type: ignore[method-assign]
        async with area:
            await send(agent, observation("a", 1, 5.0))
            await eventually(lambda: len(area.latest()) == 1)


# --- the unified view


async def test_peers_are_seen_as_one_area_also_by_who_comes_late(setup: Setup) -> None:
    embedder = Letters()
    north, south, looker = sensor("north"), sensor("south", "harbour", embedder), sensor("looker", embedder=embedder)
    async with north.running(on(setup)), south.running(on(setup)), looker.running(on(setup)):
        first = await north.observe(AIR, text="clean", values={"nox": 5.0}, units={"nox": "ppb"})
        async with Area(looker, "data.gpt/air/#") as area:
            await eventually(lambda: len(area.latest()) == 1)  # retained
            (kept,) = area.latest().values()
            assert (kept.id, kept.values, kept.text) == (first.id, {"nox": 5.0}, "clean")
            second = await south.observe(AIR, text="smoke", values={"nox": 80.0}, units={"nox": "ppb"})
            await south.observe(WATER, text="wet", values={"nox": 1.0})
            await eventually(
                lambda: area.embedding_of(second.id) is not None and area.embedding_of("smoke") is not None
            )
            series = {s.key.agent: s for s in area.values("nox")}
            assert {name: s.points[-1][1] for name, s in series.items()} == {"north": 5.0, "south": 80.0}
            assert {(s.unit, s.place) for s in series.values()} == {("ppb", "square"), ("ppb", "harbour")}
            assert list(area.latest(place="harbour")) == [SourceKey("south", AIR)]
            assert not area.problems
            report = await area.report()
            assert "2 values of 2 agents" in report.text
            assert {source.observation for source in report.sources} == {first.id, second.id}


async def test_arrivals_can_be_iterated_over_by_several_and_end_with_the_area(memory_broker: MemoryBroker) -> None:
    async def collect(area: Area) -> list[str]:
        return [a.observation.id async for a in area if a.observation is not None]

    async with sensor("a").running(on(memory_broker)) as agent:
        async with Area(agent) as area:
            tasks = [asyncio.create_task(collect(area)) for _ in range(2)]
            await asyncio.sleep(0)
            await send(agent, *(observation("a", n, 1.0) for n in range(3)))
            await eventually(lambda: area.stream.received == 3)
        assert await asyncio.gather(*tasks) == [["a-0", "a-1", "a-2"]] * 2


async def test_two_areas_of_one_agent_do_not_disturb_each_other(setup: Setup) -> None:
    async with sensor("a").running(on(setup)) as agent, Area(agent) as one:
        async with Area(agent, "data.gpt/air/#") as other, Area(agent) as same:
            await send(agent, observation("a", 1, 5.0))
            await eventually(lambda: all(len(area.latest()) == 1 for area in (one, other, same)))
        await send(agent, observation("a", 2, 6.0))
        await eventually(lambda: one.latest()[SourceKey("a", AIR)].id == "a-2")
        assert other.latest()[SourceKey("a", AIR)].id == same.latest()[SourceKey("a", AIR)].id == "a-1"


async def test_the_window_survives_a_restart_of_the_broker(setup: Setup) -> None:
    async with sensor("a").running(on(setup)) as agent, sensor("b").running(on(setup)) as other, Area(other) as area:
        for value in range(5):
            await agent.observe(AIR, values={"nox": float(value)})
        await eventually(lambda: len(area.values("nox")) == 1 and len(area.values("nox")[0].points) == 5)
        await setup.go_away()
        await setup.come_back()
        await eventually(lambda: agent.transport.online and other.transport.online)
        await agent.observe(AIR, values={"nox": 5.0})
        await eventually(lambda: area.values("nox")[0].points[-1][1] == 5.0)
        assert [value for _, value in area.values("nox")[0].points] == [0, 1, 2, 3, 4, 5]  # nothing twice


# --- what is refused


def cbor(**content: Any) -> bytes:
    return b"\xd9\xd9\xf7" + cbor2.dumps({"type": "mqttcollab.embedding.v1", "agent": "a", "service": AIR, **content})


GARBAGE = [
    (b"", None),
    (b"\x00\xff" * 50, "not valid JSON"),
    (b"\xd9\xd9\xf7\xa1", "no valid CBOR"),
    (b"[" * 100_000, "not valid JSON"),
    (cbor(model="letters-1", vector=[math.nan] * 26), "finite"),
    (cbor(model="letters-1", vector=[0.0] * 26), "no direction"),
    (cbor(model="letters-1", vector=[1.7e308] * 26), "no direction"),
    (cbor(model="letters-1", vector=[1.0] * 25), "25 dimensions"),
    (cbor(model="letters-1", vector=[]), "vector"),
    (cbor(model="letters-1", vector=cbor2.CBORTag(85, b"abc")), "typed array"),
    (cbor(model="other", vector=[1.0] * 26), "of model 'other'"),
    (cbor(model="letters-1", vector=[1.0] * 26, kind="image"), "of kind 'image'"),
    (cbor(model="letters-1", vector=[1.0] * 26, agent="b"), "another agent"),
    (cbor(model="letters-1", vector=[1.0] * 26, service=WATER), f"speaks of {WATER}"),
    (encode(Observation(id="x", agent="a", service=AIR)), "expected mqttcollab.embedding.v1"),
]


@pytest.mark.parametrize("number", range(len(GARBAGE)))
async def test_garbage_is_named_and_harms_nobody(number: int, memory_broker: MemoryBroker) -> None:
    payload, problem = GARBAGE[number]
    topic = data_topic(AIR, "a", "embedding")
    async with sensor("b", embedder=Letters()).running(on(memory_broker)) as agent, Area(agent, kind="text") as area:
        await send(agent, TransportMessage(topic, payload, qos=0), embedding("c", [1.0] * 26))
        await eventually(lambda: len(area.windows()) == 1)
        assert [window.key.agent for window in area.windows()] == ["c"]
        assert (problem is None) == (not area.problems)
        assert problem is None or problem in area.problems[topic]
        await send(agent, embedding("a", [1.0] * 26))
        await eventually(lambda: len(area.windows()) == 2)
        assert not area.problems  # put right, it is forgotten


async def test_garbage_over_a_real_broker(setup: Setup) -> None:
    async with sensor("b", embedder=Letters()).running(on(setup)) as agent, Area(agent) as area:
        await send(agent, *(TransportMessage(data_topic(AIR, "a", "embedding"), p, qos=0) for p, _ in GARBAGE))
        await send(agent, observation("c", 1, 3.0))
        await eventually(lambda: len(area.latest()) == 1)
        assert list(area.problems) == [data_topic(AIR, "a", "embedding")]


async def test_values_that_nothing_can_be_computed_with_are_left_out(memory_broker: MemoryBroker) -> None:
    values = {"ok": 1.0, "huge": 1e308, "n" * 65: 1.0, **{f"v{i}": 1.0 for i in range(100)}}
    content = Observation(id="1", agent="a", service=AIR, values=values, text="x" * 200_000)
    async with sensor("b").running(on(memory_broker)) as agent, Area(agent) as area:
        await send(agent, TransportMessage(data_topic(AIR, "a", "observation"), encode(content), qos=0))
        await send(agent, embedding("a", [1.0], observation="1"), embedding("a", [1.0], model="m" * 129))
        await eventually(lambda: area.stream.received == 3)
        (kept,) = area.latest().values()
        assert len(kept.values) == 64 and kept.values["ok"] == 1.0 and "huge" not in kept.values
        assert len(kept.text) == 4000
        assert area.embedding_of("x" * 4000) is None
        left_out, long_name = area.problems.values()
        assert "are left out" in left_out and "more than 128" in long_name
        assert len(area.windows()[0].embeddings) == 1


async def test_a_flood_is_bounded_and_others_are_heard(setup: Setup) -> None:
    limits = StreamLimits(observations=16, burst=30)
    flooding, following = sensor("a").running(on(setup)), sensor("b").running(on(setup))
    async with flooding as agent, following as other, Area(other, limits=limits) as area:
        await send(agent, observation("quiet", 0, 1.0))
        await eventually(lambda: len(area.latest()) == 1)
        await send(agent, *(observation("flood", n, float(n)) for n in range(10_000)))
        await send(agent, *(TransportMessage(f"{AIR}/@f{n}/embedding", b"junk", qos=0) for n in range(2000)))
        await send(agent, observation("quiet", 1, 2.0))
        await eventually(lambda: area.latest()[SourceKey("quiet", AIR)].id == "quiet-1")
        window = area.stream.sources[SourceKey("flood", AIR)]
        assert len(window.observations) == 16
        assert area.stream.dropped > 9000
        assert len(area.problems) <= 256


async def test_the_number_of_sources_is_bounded(memory_broker: MemoryBroker) -> None:
    async with sensor("b").running(on(memory_broker)) as agent:
        async with Area(agent, limits=StreamLimits(sources=5)) as area:
            await send(agent, *(observation(f"s{n}", 1, 1.0) for n in range(20)))
            await eventually(lambda: area.stream.received == 20)
            assert sorted(area.latest()) == [SourceKey(f"s{n}", AIR) for n in range(5)]
            assert area.stream.dropped == 15
        async with Area(agent, limits=StreamLimits(sources=5, silent_s=0.0)) as area:
            await send(agent, *(observation(f"s{n}", 1, 1.0) for n in range(20)))
            await eventually(lambda: area.stream.received == 20)
            assert len(area.latest()) == 5
            assert SourceKey("s19", AIR) in area.latest()


# --- reusing embeddings


async def test_what_a_peer_has_embedded_is_not_embedded_again(setup: Setup) -> None:
    theirs, ours = Letters(), Letters()
    peer, looker = sensor("peer", embedder=theirs), sensor("looker", embedder=ours)
    async with peer.running(on(setup)), looker.running(on(setup)), Area(looker) as area:
        for text in ("smoke over the harbour", "clear sky"):
            await peer.observe(AIR, text=text)
        await eventually(lambda: area.embedding_of("clear sky") is not None)
        shared = SharedEmbedder(ours, area)
        texts = ["clear sky", "new text", "smoke over the harbour", "clear sky", ""]
        rows = shared.embed(texts)
        assert ours.texts == ["clear sky", "new text", ""]  # the first, to check the peer
        assert (shared.hits, shared.misses, shared.checks) == (3, 2, 1)
        assert rows.dtype == np.float32
        assert np.allclose(rows, Letters().embed(texts), atol=0.02)  # int8 on the wire
        assert np.allclose(np.linalg.norm(rows[:4], axis=1), 1, atol=1e-3)


async def test_a_peer_with_wrong_vectors_is_not_trusted_any_more(memory_broker: MemoryBroker) -> None:
    ours = Letters()
    async with sensor("looker", embedder=ours).running(on(memory_broker)) as agent, Area(agent) as area:
        await send(agent, *(embedding("liar", [1.0, *[0.0] * 25], text=text) for text in ("zzz", "yyy")))
        await eventually(lambda: area.embedding_of("yyy") is not None)
        shared = SharedEmbedder(ours, area)
        rows = shared.embed(["zzz", "yyy"])
        assert np.array_equal(rows, Letters().embed(["zzz", "yyy"]))
        assert area.distrusted == {"liar"}
        assert "'zzz' is not that of letters-1" in area.problems["@liar"]
        await send(agent, embedding("liar", [1.0, *[0.0] * 25], text="xxx"))
        await eventually(lambda: area.stream.received == 3)
        assert area.embedding_of("xxx") is None


async def test_the_nearest_are_found_without_embedding_them(memory_broker: MemoryBroker) -> None:
    theirs, ours = Letters(), Letters()
    agents = [sensor(f"s{n}", embedder=theirs) for n in range(3)]
    looking = sensor("l", None, ours).running(on(memory_broker))
    async with together(memory_broker, *agents), looking as looker, Area(looker) as area:
        for agent, text in zip(agents, ("fog", "traffic jam", "rain"), strict=True):
            await agent.observe(AIR, text=text)
        await eventually(lambda: sum(bool(w.embeddings) for w in area.windows()) == 3)
        first, second = area.nearest("jam in traffic", 2)
        assert (first.source.agent, first.text) == ("s1", "traffic jam")
        assert first.score > second.score
        assert ours.texts == ["jam in traffic"]
        assert area.nearest("fog", 1)[0].score == pytest.approx(1, abs=0.01)
        assert ours.texts == ["jam in traffic"]  # a peer had that one
        vector = Letters().embed(["rain"])[0].tolist()
        assert area.nearest(vector, 1)[0].source.agent == "s2"
        assert area.nearest(vector, model="other") == []
        for query, words in (([0.0] * 26, "no direction"), ("123", "has no meaning")):
            with pytest.raises(ConfigError, match=words):
                area.nearest(query)


async def test_models_are_never_mixed(memory_broker: MemoryBroker) -> None:
    async with sensor("a").running(on(memory_broker)) as agent, Area(agent) as area:
        await send(agent, embedding("b", [1.0, 0.0], model="m1"), embedding("c", [1.0, 0.0], model="m2"))
        await eventually(lambda: len(area.windows()) == 2)
        assert [near.source.agent for near in area.nearest([1.0, 0.0], model="m2")] == ["c"]
        for query, words in (("text", "takes an embedder"), ([1.0, 0.0], "name it, model=")):
            with pytest.raises(ConfigError, match=words):
                area.nearest(query)
        with pytest.raises(ConfigError, match="follows embeddings of any model"):
            SharedEmbedder(Letters(), area)
        with pytest.raises(ConfigError, match="never compared"):
            Area(agent, model="m1", embedder=Letters())


# --- what is unusual


async def feed(agent: Agent, area: Area, readings: dict[str, list[float]], place: str | None = "square") -> None:
    """Publishes readings of several sensors, one after the other."""
    before = area.stream.received
    for number, values in enumerate(zip(*readings.values(), strict=True)):
        await send(agent, *(observation(n, number, v, place=place) for n, v in zip(readings, values, strict=True)))
    await eventually(lambda: area.stream.received == before + sum(map(len, readings.values())))


def wave(offset: float, seed: int) -> list[float]:
    dice = random.Random(seed)
    return [offset + 10 * math.sin(i / 6) + dice.gauss(0, 0.5) for i in range(45)]


ROOMY = StreamLimits(rate=10_000, burst=10_000)


@pytest.mark.parametrize(
    ("last", "verdicts"),
    [
        ({"a": 0.0, "b": 0.0, "c": 0.0}, {"a": "usual", "b": "usual", "c": "usual"}),
        ({"a": 60.0, "b": 0.0, "c": 0.0}, {"a": "alone", "b": "usual", "c": "usual"}),
        ({"a": 60.0, "b": 55.0, "c": 62.0}, {"a": "together", "b": "together", "c": "together"}),
    ],
)
async def test_one_sensor_off_is_told_from_all_moving(
    last: dict[str, float], verdicts: dict[str, str], memory_broker: MemoryBroker
) -> None:
    readings = {name: wave(20.0 * seed, seed) for seed, name in enumerate("abc")}
    for name, change in last.items():
        readings[name][-1] += change
    async with sensor("l").running(on(memory_broker)) as agent, Area(agent, limits=ROOMY) as area:
        await feed(agent, area, readings)
        report = await area.report()
        assert {f.series.key.agent: f.verdict for f in report.findings} == verdicts
        assert {f.series.key.agent for f in report.unusual} == {n for n, change in last.items() if change}
        assert ("nothing unusual" in report.text) == (not any(last.values()))
        assert all(source.agent in readings and source.observation == f"{source.agent}-44" for source in report.sources)
        assert cbor2.loads(cbor2.dumps(report.data)) == report.data


async def test_a_stuck_sensor_a_rise_and_a_change_of_meaning_are_told(memory_broker: MemoryBroker) -> None:
    readings = {"stuck": wave(0, 1)[:30] + [7.25] * 15, "rises": [2.0 * i + x / 20 for i, x in enumerate(wave(0, 2))]}
    embedder = Letters()
    async with sensor("l", None, embedder).running(on(memory_broker)) as agent, Area(agent, limits=ROOMY) as area:
        await feed(agent, area, readings, place=None)
        for number in range(12):
            await agent.observe(AIR, text="calm " + "and clear " * number)
        await agent.observe(AIR, text="fff fire fff")
        await eventually(lambda: area.embedding_of("fff fire fff") is not None)
        report = await area.report()
        assert {f.series.key.agent: f.verdict for f in report.unusual} == {"stuck": "stuck"}
        assert {f.series.key.agent for f in report.trends} == {"rises"}
        assert "the same 15 times" in report.text
        assert "rising by" in report.text
        assert "@l reports something new" in report.text and "fff fire fff" in report.text


async def test_who_falls_silent_is_named(memory_broker: MemoryBroker) -> None:
    async with sensor("l").running(on(memory_broker)) as agent, Area(agent, limits=ROOMY) as area:
        await feed(agent, area, {"a": wave(0, 1), "b": wave(0, 2)})
        now = asyncio.get_running_loop().time()
        assert report_of(area.domain, None, area.windows(), now).silent == ()
        later = report_of(area.domain, None, area.windows(), now + 8000)
        assert [key.agent for key, _ in later.silent] == ["a", "b"]
        assert "@a has been silent for 2 h" in later.text


async def test_an_empty_area(memory_broker: MemoryBroker) -> None:
    async with sensor("l").running(on(memory_broker)) as agent, Area(agent, place="moon") as area:
        report = await area.report()
        assert report.text == "Nothing was heard from data.gpt/# at moon so far."
        assert report.data["findings"] == []
        assert area.nearest([1.0], model="m") == []

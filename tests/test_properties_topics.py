"""Properties of names, topics and filters: built and parsed again; filters against MQTT's own words and a broker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from fuzz.targets import built, is_filter, reference_matches
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab import topics
from mqttcollab.broker import Broker
from mqttcollab.errors import TopicError
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.router import Router

LABEL = st.from_regex(topics.LABEL_RE, fullmatch=True)
KEY = st.from_regex(topics.KEY_RE, fullmatch=True)
SERVICE = st.builds(
    lambda zone, labels: "/".join([zone, *labels]),
    st.sampled_from(topics.ZONES),
    st.lists(LABEL, min_size=1, max_size=4),
)
DATA = SERVICE.map(lambda service: "data.gpt/" + service.partition("/")[2])
BUILT = st.one_of(
    st.builds(topics.record_topic, SERVICE, LABEL),
    st.builds(topics.request_topic, SERVICE, LABEL | st.none()),
    st.builds(topics.cancel_topic, SERVICE, LABEL),
    st.builds(topics.data_topic, DATA, LABEL, st.sampled_from(["embedding", "observation"])),
    st.builds(topics.reply_topic, LABEL, KEY),
    st.builds(topics.agent_topic, LABEL, st.sampled_from(["status", "profile", "load"])),
    st.builds(topics.slm_topic, KEY.filter(lambda key: key != "agents"), KEY, KEY),
)
# Levels that are likely to meet, and some that mean something: empty ones, `$`, names that begin alike.
LEVEL = st.sampled_from(["a", "b", "ab", "", "$x", "@a", "é"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTER = (
    st.builds(
        lambda levels, rest: "/".join([*levels, *rest]),
        st.lists(LEVEL | st.just("+"), min_size=1, max_size=4),
        st.sampled_from([[], ["#"]]),
    )
    | st.just("#")
).filter(bool)


@given(BUILT)
def test_what_is_built_parses_to_what_it_was_built_of(topic: str) -> None:
    assert built(topics.parse(topic)) == topic
    assert len(topic.split("/")) <= topics.MAX_LEVELS
    assert topic.isascii() and not set(topic) & set("+# *>$")


@given(st.text(max_size=60) | BUILT.flatmap(lambda topic: _changed(topic)))
def test_what_parses_is_what_is_built_again(text: str) -> None:
    try:
        parsed = topics.parse(text)
    except TopicError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert built(parsed) == text
        assert topics.matches(text, text)


def _changed(topic: str) -> st.SearchStrategy[str]:
    """A character more, less or another one."""
    place, letter = st.integers(0, len(topic)), st.sampled_from("/@+#$ aA0-._\0é\n")
    return st.builds(
        lambda at, new, cut: topic[:at] + new + topic[at + cut :], place, letter | st.just(""), st.integers(0, 2)
    )


@given(SERVICE, LABEL)
def test_filters_of_an_agents_records_match_these_and_nothing_else_of_it(service: str, agent: str) -> None:
    filters = topics.record_filters(agent)
    record = topics.record_topic(service, agent)
    assert sum(topics.matches(filter_, record) for filter_ in filters) == 1
    others = [topics.request_topic(service, agent), topics.cancel_topic(service, agent), topics.request_topic(service)]
    assert not any(topics.matches(filter_, other) for filter_ in filters for other in others)


@given(FILTER | FILTER.map("$share/group/{}".format), TOPIC)
def test_filters_match_as_the_standard_says(filter_: str, topic: str) -> None:
    assert is_filter(filter_)
    assert topics.matches(filter_, topic) == reference_matches(filter_, topic)


@given(st.lists(st.tuples(FILTER, st.booleans()), max_size=12), st.lists(TOPIC, max_size=4))
def test_a_router_agrees_after_any_adding_and_removing(steps: list[tuple[str, bool]], sent: list[str]) -> None:
    router, kept, called = Router(), set[str](), list[str]()

    def note(filter_: str) -> Callable[[TransportMessage], None]:
        return lambda _: called.append(filter_)

    for filter_, add in steps:
        if add:
            router.add(filter_, note(filter_), 1)
            kept.add(filter_)
        else:
            assert router.remove(filter_) == (filter_ in kept)
            kept.discard(filter_)
    for topic in sent:
        called.clear()
        router.route(TransportMessage(topic, b""))
        assert sorted(called) == sorted(filter_ for filter_ in kept if topics.matches(filter_, topic))
    for filter_ in kept:
        router.remove(filter_)
    assert not router._root.below and not router.filters


# --- against a real broker, by a client that has no filters of its own

_END = "the/end/of/the/test/is/here"


def _string(text: str) -> bytes:
    return len(text.encode()).to_bytes(2, "big") + text.encode()


def _packet(head: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([head, len(body)]) + body


async def _received(broker: Broker, number: int, filter_: str, ready: asyncio.Barrier) -> set[str]:
    """The topics that Mosquitto sends for one subscription."""
    reader, writer = await asyncio.open_connection(broker.info.host, broker.info.port)
    writer.write(_packet(0x10, _string("MQTT") + bytes([4, 2, 0, 60]) + _string(f"c{number}")))
    assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
    writer.write(_packet(0x82, b"\x00\x01" + _string(filter_) + b"\x00"))
    writer.write(_packet(0x82, b"\x00\x02" + _string(_END) + b"\x00"))
    assert await reader.readexactly(10) == b"\x90\x03\x00\x01\x00\x90\x03\x00\x02\x00"
    await ready.wait()
    found: set[str] = set()
    while True:
        _, size = await reader.readexactly(2)
        body = await reader.readexactly(size)
        topic = body[2 : 2 + int.from_bytes(body[:2], "big")].decode()
        if topic == _END:
            writer.close()
            return found
        found.add(topic)


async def _published(broker: Broker, sent: list[str], ready: asyncio.Barrier) -> None:
    reader, writer = await asyncio.open_connection(broker.info.host, broker.info.port)
    writer.write(_packet(0x10, _string("MQTT") + bytes([4, 2, 0, 60]) + _string("publisher")))
    assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
    await ready.wait()
    for topic in [*sent, _END]:
        writer.write(_packet(0x30, _string(topic)))
    await writer.drain()
    writer.close()


def _sample(strategy_levels: list[str], count: int, seed: int) -> list[str]:
    """Random levels joined; `random` rather than hypothesis, so that one broker serves all."""
    chance = random.Random(seed)
    found = {"/".join(chance.choices(strategy_levels, k=chance.randint(1, 4))) for _ in range(4 * count)}
    return sorted(text for text in found if text)[:count]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
async def test_filters_match_as_mosquitto_does(mosquitto: Broker, seed: int) -> None:
    sent = [t for t in _sample(["a", "b", "ab", "", "x$", "@a", "é"], 150, seed)]
    filters = [f for f in _sample(["a", "b", "ab", "", "x$", "@a", "+", "+", "#"], 400, seed) if is_filter(f)][:100]
    ready = asyncio.Barrier(len(filters) + 1)
    async with asyncio.timeout(30):
        *got, _ = await asyncio.gather(
            *(_received(mosquitto, number, filter_, ready) for number, filter_ in enumerate(filters)),
            _published(mosquitto, sent, ready),
        )
    for filter_, found in zip(filters, got, strict=True):
        assert found - {_END} == {topic for topic in sent if topics.matches(filter_, topic)}, filter_

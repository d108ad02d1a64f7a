"""Sessions with the broker: what they keep for a client that is away, and that they end with it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from harness import LIMIT_S, Inbox, MqttSetup, eventually
from test_behaviour_transport import RECORD, STATUS, message

from mqttcollab.broker import Broker
from mqttcollab.cli.client import running_client
from mqttcollab.config import BrokerAddress
from mqttcollab.topics import anycast_filter, request_topic
from mqttcollab.transport.mqtt import MqttOptions, MqttTransport

LASTING = MqttOptions(session_expiry_s=60, backoff_s=0.02, backoff_max_s=0.2)
everywhere = pytest.mark.parametrize("setup", ["mosquitto-5", "mosquitto-3.1.1", "nats-3.1.1"], indirect=True)


async def reader_of(setup: MqttSetup, *filters: str) -> tuple[MqttTransport, Inbox]:
    """A client with a session that lasts."""
    reader, inbox = setup.client("reader", options=LASTING), Inbox()
    for filter_ in filters:
        await reader.subscribe(filter_, inbox)
    await reader.connect(patience_s=LIMIT_S)
    return reader, inbox


@everywhere
async def test_a_session_that_is_kept_queues_what_comes_meanwhile(setup: MqttSetup) -> None:
    reader, _ = await reader_of(setup, RECORD)
    await reader.close()
    writer = await setup.connected("writer")
    for number in range(100):  # all of them reach the broker before the reader's subscription does
        await writer.publish(message(payload=b"%d" % number))
    _, inbox = await reader_of(setup, RECORD)
    assert [got.payload for got in await inbox.count(100)] == [b"%d" % number for number in range(100)]


@everywhere
async def test_a_clean_stop_ends_the_session(setup: MqttSetup) -> None:
    many = 100 if setup.broker.info.kind == "mosquitto" else 40  # nats-server grants 63: see brokers/README.md
    filters = [RECORD, *(f"knowledge.gpt/topic-{number}/@a" for number in range(many))]
    reader, _ = await reader_of(setup, *filters)
    await reader.close(end_session=True)
    writer = await setup.connected("writer")
    for topic in (RECORD, filters[-1]):
        assert await writer.publish(message(topic, b"meanwhile")) is not setup.mqtt5
    again, inbox = await reader_of(setup, *filters)
    await again.publish(message(payload=b"afterwards"))
    assert await inbox.before(b"afterwards") == []


@everywhere
async def test_what_a_former_life_subscribed_is_noticed_and_ended(
    setup: MqttSetup, caplog: pytest.LogCaptureFixture
) -> None:
    reader, _ = await reader_of(setup, RECORD, STATUS)
    await reader.close()
    writer = await setup.connected("writer")
    for number in range(3):
        await writer.publish(message(RECORD, b"%d" % number))
    again, inbox, strays = setup.client("reader", options=LASTING), Inbox(), Inbox()
    await again.subscribe(STATUS, inbox)
    again.on_stray(strays)
    with caplog.at_level(logging.INFO, logger="mqttcollab.transport.strays"):
        await again.connect()
        await strays.count(3)
    assert len(caplog.records) == 1
    await again.publish(message(STATUS, b"behind the end of the subscription"))
    await inbox.count(1)
    assert await writer.publish(message(RECORD, b"3")) is not setup.mqtt5
    await again.publish(message(STATUS, b"last"))
    await inbox.count(2)
    assert strays.payloads == [b"0", b"1", b"2"]


@pytest.mark.parametrize("setup", ["mosquitto-5", "mosquitto-3.1.1"], indirect=True)
async def test_what_a_former_life_took_by_anycast_goes_to_others(setup: MqttSetup) -> None:
    service = "knowledge.gpt/echo"
    reader, _ = await reader_of(setup, anycast_filter(service), STATUS)
    await reader.close()
    other, heard = await setup.connected("other"), Inbox()
    await other.subscribe(anycast_filter(service), heard)
    again, inbox, strays = setup.client("reader", options=LASTING), Inbox(), Inbox()
    await again.subscribe(STATUS, inbox)
    again.on_stray(strays)
    await again.connect()
    for number in range(2):
        await other.publish(message(request_topic(service), b"%d" % number))
    await strays.count(1)
    await again.publish(message(STATUS, b"behind the end of the subscription"))
    await inbox.count(1)
    for number in range(2, 6):
        await other.publish(message(request_topic(service), b"%d" % number))
    await heard.count(5)
    assert len(strays.messages) == 1


@pytest.mark.slow
async def test_two_hundred_clients_that_only_ask_leave_nothing_at_the_broker() -> None:
    async with Broker("mosquitto", extra_config="sys_interval 1\n") as broker:
        address = BrokerAddress.parse(broker.info.url)
        kept = MqttTransport(address, "kept", options=LASTING)
        await kept.subscribe(RECORD, Inbox())
        await kept.connect()
        await kept.close()
        watcher, latest = MqttTransport(address, "watcher"), {}
        await watcher.subscribe("$SYS/broker/clients/+", lambda m: latest.__setitem__(m.topic, int(m.payload)))
        await watcher.connect()
        gone = lambda: (  # noqa: E731
            latest.get("$SYS/broker/clients/disconnected"),
            latest.get("$SYS/broker/clients/total"),
        )
        await eventually(lambda: gone() == (1, 2))

        async def live() -> None:
            async with running_client(broker.info.url):
                pass

        for _ in range(10):
            await asyncio.gather(*(live() for _ in range(20)))
        last = MqttTransport(address, "last")
        await last.connect()
        await eventually(lambda: gone() == (1, 3))
        await last.close()
        await watcher.close()

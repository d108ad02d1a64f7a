"""What brokers promise, on which docs/reliability.md builds: each line of its table that says "tested" is one of these.

A test that fails with a newer broker is news, not a mistake of ours: then the table changes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from harness import LIMIT_S, Inbox, MqttSetup, eventually
from test_behaviour_transport import message

from mqttcollab.broker import Broker, BrokerKind
from mqttcollab.config import BrokerAddress
from mqttcollab.topics import anycast_filter, request_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.mqtt import MqttOptions, MqttTransport

SERVICE = "knowledge.gpt/echo"
TOPIC = request_topic(SERVICE)
LASTING = MqttOptions(session_expiry_s=60, backoff_s=0.02, backoff_max_s=0.2)
mosquitto_only = pytest.mark.parametrize("setup", ["mosquitto-5", "mosquitto-3.1.1"], indirect=True)


def payloads(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


async def connected(broker: Broker, name: str, *filters: str) -> tuple[MqttTransport, Inbox]:
    transport, inbox = MqttTransport(BrokerAddress.parse(broker.info.url), name, options=LASTING), Inbox()
    for filter_ in filters:
        await transport.subscribe(filter_, inbox)
    await transport.connect(patience_s=LIMIT_S)
    return transport, inbox


@mosquitto_only
async def test_a_dead_member_of_a_shared_subscription_keeps_getting_its_share(setup: MqttSetup) -> None:
    alive, heard = await setup.connected("alive", options=LASTING), Inbox()
    await alive.subscribe(anycast_filter(SERVICE), heard)
    dead = setup.client("dead", options=LASTING)
    await dead.subscribe(anycast_filter(SERVICE), Inbox())
    await dead.connect()
    await dead.close()  # its session stays
    writer = await setup.connected("writer")
    for number in range(10):
        await writer.publish(message(TOPIC, b"%d" % number))
    await writer.publish(message("knowledge.gpt/echo/@alive/request", b"last"))
    again, missed = setup.client("dead", options=LASTING), Inbox()
    await again.subscribe(anycast_filter(SERVICE), missed)
    await again.connect()
    await eventually(lambda: len(heard.messages) + len(missed.messages) == 10)
    assert len(missed.messages) == 5
    assert sorted(heard.payloads + missed.payloads) == payloads(*range(10))


@mosquitto_only
async def test_what_a_dead_member_holds_is_not_given_to_another_while_its_session_lasts(setup: MqttSetup) -> None:
    cable, forever = await setup.cable(), asyncio.Event()
    holder, held = setup.client("holder", options=LASTING, cable=cable), Inbox()

    def hold(got: TransportMessage):  # type: ignore[no-untyped-def]
        held(got)
        return forever.wait()

    await holder.subscribe(anycast_filter(SERVICE), hold)
    await holder.connect()
    other, heard = await setup.connected("other", options=LASTING), Inbox()
    await other.subscribe(anycast_filter(SERVICE), heard)
    await other.subscribe("knowledge.gpt/echo/@other", heard)
    writer = await setup.connected("writer")
    for number in range(4):
        await writer.publish(message(TOPIC, b"%d" % number))
    await held.count(2)
    await cable.pull()
    await eventually(lambda: not holder.online)
    await writer.publish(message("knowledge.gpt/echo/@other", b"last"))
    assert len(await heard.before(b"last")) == 2
    await cable.plug()
    await held.count(4)  # the same two again, and to nobody else
    assert held.payloads[2:] == held.payloads[:2]
    assert len(heard.messages) == 3
    forever.set()


async def test_what_a_dead_member_holds_is_lost_with_its_session() -> None:
    async with Broker("mosquitto") as broker:
        held, forever = Inbox(), asyncio.Event()

        def hold(got: TransportMessage):  # type: ignore[no-untyped-def]
            held(got)
            return forever.wait()

        holder = MqttTransport(BrokerAddress.parse(broker.info.url), "holder")  # its session ends with the connection
        await holder.subscribe(anycast_filter(SERVICE), hold)
        await holder.connect()
        writer, _ = await connected(broker, "writer")
        await writer.publish(message(TOPIC, b"held"))
        await held.count(1)
        other, heard = await connected(broker, "other", anycast_filter(SERVICE))
        await holder.close()
        async with asyncio.timeout(LIMIT_S):  # the broker may still take it for a member
            while not heard.messages:
                await writer.publish(message(TOPIC, b"next"))
                await asyncio.sleep(0.02)
        assert set(heard.payloads) == {b"next"}
        for client in (writer, other):
            await client.close()


async def crash(folder: Path, kind: BrokerKind, extra_config: str, pause_s: float) -> list[bytes]:
    """What a session and the retained topic bring back after kill -9 of the broker."""
    async with Broker(kind, data_dir=folder, extra_config=extra_config) as broker:
        reader, _ = await connected(broker, "reader", TOPIC)
        await reader.close()
        writer, _ = await connected(broker, "writer")
        await writer.publish(message(TOPIC, b"queued"))
        await writer.publish(message(f"{SERVICE}/@a", b"retained", retain=True))
        await asyncio.sleep(pause_s)
        await writer.close()
        await broker.kill()
        await broker.start()
        reader, inbox = await connected(broker, "reader", TOPIC, f"{SERVICE}/@a")
        await eventually(
            lambda: inbox.payloads.count(b"retained") + inbox.payloads.count(b"queued") == 2 or not pause_s
        )
        await reader.publish(message(TOPIC, b"last"))
        before = await inbox.before(b"last")
        await reader.close()
        return sorted(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra_config", "pause_s", "survives"),
    [
        ("autosave_interval 60\n", 0, []),  # as in mosquitto.production.conf
        ("autosave_interval 1\n", 2.5, [b"queued", b"retained"]),
        ("autosave_interval 1\nautosave_on_changes true\n", 0, [b"queued"]),  # it saves once there are two changes
    ],
    ids=["at once", "saved since", "saved on changes"],
)
async def test_a_crash_of_mosquitto_loses_what_it_has_not_saved(
    tmp_path: Path, extra_config: str, pause_s: float, survives: list[bytes]
) -> None:
    assert await crash(tmp_path, "mosquitto", extra_config, pause_s) == survives


async def test_a_crash_of_nats_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    assert await crash(tmp_path, "nats", "", 0.1) == [b"queued", b"retained"]


async def test_a_clean_restart_of_mosquitto_loses_nothing(tmp_path: Path) -> None:
    async with Broker("mosquitto", data_dir=tmp_path, extra_config="autosave_interval 60\n") as broker:
        reader, _ = await connected(broker, "reader", TOPIC)
        await reader.close()
        writer, _ = await connected(broker, "writer")
        await writer.publish(message(TOPIC, b"queued"))
        await writer.close()
        await broker.restart()
        reader, inbox = await connected(broker, "reader", TOPIC)
        await inbox.count(1)
        await reader.close()


@pytest.mark.parametrize("setup", ["mosquitto-5"], indirect=True)
async def test_what_is_past_its_expiry_is_not_delivered(setup: MqttSetup) -> None:
    reader = setup.client("reader", options=LASTING)
    await reader.subscribe(TOPIC, Inbox())
    await reader.connect()
    await reader.close()
    writer = await setup.connected("writer")
    await writer.publish(message(TOPIC, b"brief", expiry_s=1))
    await writer.publish(message(TOPIC, b"long", expiry_s=60))
    await asyncio.sleep(2.1)
    again, inbox = setup.client("reader", options=LASTING), Inbox()
    await again.subscribe(TOPIC, inbox)
    await again.connect()
    await again.publish(message(TOPIC, b"last"))
    assert await inbox.before(b"last") == [b"long"]
    assert inbox.messages[0].expiry_s is not None
    assert inbox.messages[0].expiry_s < 60

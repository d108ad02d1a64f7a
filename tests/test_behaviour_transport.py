"""What every transport does, on the broker in memory, on Mosquitto with MQTT 5 and 3.1.1, and on nats-server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from harness import Inbox, MqttSetup, Setup, eventually

from mqttcollab.errors import PublishError, TransportError
from mqttcollab.transport.base import Transport, TransportMessage
from mqttcollab.transport.mqtt import MqttOptions

RECORD = "knowledge.gpt/medicine/@medic-1"
STATUS = "slm/agents/@medic-1/status"
REAL = pytest.mark.parametrize("setup", ["mosquitto-5", "mosquitto-3.1.1", "nats-3.1.1"], indirect=True)


def message(topic: str = RECORD, payload: bytes = b"hello", **fields: object) -> TransportMessage:
    return TransportMessage(topic, payload, **fields)  # type: ignore[arg-type]


async def listening(setup: Setup, filters: str | list[str], client_id: str = "reader") -> tuple[Transport, Inbox]:
    transport, inbox = await setup.connected(client_id), Inbox()
    await transport.subscribe(filters, inbox)
    return transport, inbox


# --- publish and subscribe


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("payload", [b"hello", bytes(range(256)), b"x" * 200_000], ids=["text", "bytes", "long"])
async def test_a_message_reaches_whoever_subscribed(setup: Setup, qos: int, payload: bytes) -> None:
    _, one = await listening(setup, RECORD, "reader-1")
    _, two = await listening(setup, RECORD, "reader-2")
    _, other = await listening(setup, STATUS, "reader-3")
    writer = await setup.connected("writer")
    assert await writer.publish(message(payload=payload, qos=qos))
    for inbox in (one, two):
        (got,) = await inbox.count(1)
        assert (got.topic, got.payload, got.retain) == (RECORD, payload, False)
    await writer.publish(message(STATUS, b"last"))
    assert await other.before(b"last") == []


async def test_a_client_hears_itself(setup: Setup) -> None:
    transport, inbox = await listening(setup, RECORD)
    await transport.publish(message())
    assert (await inbox.count(1))[0].payload == b"hello"


async def test_properties_travel_with_mqtt_5_only(setup: Setup) -> None:
    reader, inbox = await listening(setup, RECORD)
    sent = message(
        content_type="application/cbor",
        response_topic="reply.gpt/@phone/1",
        correlation=b"\x00\xff",
        expiry_s=60,
        type="mqttcollab.request.v1",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    await (await setup.connected("writer")).publish(sent)
    (got,) = await inbox.count(1)
    assert reader.mqtt5 is setup.mqtt5
    if setup.mqtt5:
        assert got.expiry_s in range(50, 61)
        assert replace(got, expiry_s=60) == sent
    else:
        assert got == message()


async def test_subscribing_before_connecting_only_registers(setup: Setup) -> None:
    reader, inbox = setup.client("reader"), Inbox()
    await reader.subscribe(RECORD, inbox)
    await reader.connect()
    await reader.publish(message())
    await inbox.count(1)


async def test_unsubscribing_ends_it(setup: Setup) -> None:
    reader, inbox = await listening(setup, [RECORD, STATUS])
    await reader.unsubscribe([RECORD, "never/subscribed"])
    await reader.publish(message())
    await reader.publish(message(STATUS, b"last"))
    assert await inbox.before(b"last") == []


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ("knowledge.gpt/medicine/#", [b"1", b"2", b"3"]),
        ("knowledge.gpt/medicine/+", [b"1"]),
        ("knowledge.gpt/+/@medic-1/request", [b"2"]),
        ("+/+/@medic-1", [b"1", b"4"]),
        ("knowledge.gpt/medicine/@medic-1/#", [b"1", b"2"]),
    ],
)
async def test_wildcards(setup: Setup, filter_: str, expected: list[bytes]) -> None:
    reader, inbox = await listening(setup, [filter_, STATUS])
    topics = [RECORD, f"{RECORD}/request", "knowledge.gpt/medicine/heart/@medic-2", "data.gpt/air/@medic-1"]
    for number, topic in enumerate(topics, 1):
        await reader.publish(message(topic, b"%d" % number))
    await inbox.count(len(expected))  # nats-server keeps the order of each subscription, not across them
    await reader.publish(message(STATUS, b"last"))
    got = await inbox.before(b"last")
    # For nats-server what ends in # is two subscriptions, which may come in any order.
    assert (got if setup.shared else sorted(got)) == expected


async def test_a_message_that_matches_two_filters_reaches_both_handlers(setup: Setup) -> None:
    reader, exact, pattern = await setup.connected("reader"), Inbox(), Inbox()
    await reader.subscribe(RECORD, exact)
    await reader.subscribe("knowledge.gpt/#", pattern)
    await reader.publish(message())
    await exact.count(1)
    await pattern.count(1)  # a broker may deliver a copy for each filter: what is handled must bear repeats


async def test_messages_of_one_publisher_come_in_order(setup: Setup) -> None:
    _, inbox = await listening(setup, RECORD)
    writer = await setup.connected("writer")
    payloads = [b"%d" % number for number in range(500)]
    await asyncio.gather(*(writer.publish(message(payload=payload)) for payload in payloads))
    await inbox.count(500)
    assert inbox.payloads == payloads


async def test_agents_of_a_service_take_its_requests_in_turn(setup: Setup) -> None:
    if not setup.shared:
        pytest.skip("nats-server has no shared subscriptions")
    filter_ = "$share/knowledge.gpt.medicine/knowledge.gpt/medicine/request"
    _, one = await listening(setup, filter_, "medic-1")
    _, two = await listening(setup, filter_, "medic-2")
    writer = await setup.connected("writer")
    for number in range(20):
        await writer.publish(message("knowledge.gpt/medicine/request", b"%d" % number))
    await eventually(lambda: len(one.messages) + len(two.messages) == 20)
    assert sorted(one.payloads + two.payloads, key=int) == [b"%d" % number for number in range(20)]
    assert one.messages and two.messages


async def test_a_filter_of_a_shared_subscription_harms_nobody_where_there_are_none(setup: Setup) -> None:
    reader, inbox = await listening(setup, ["$share/knowledge.gpt.medicine/knowledge.gpt/medicine/request", RECORD])
    await reader.publish(message())
    await inbox.count(1)


# --- retained messages


async def test_the_latest_retained_message_is_replayed_to_who_comes_later(setup: Setup) -> None:
    writer, live = await listening(setup, RECORD, "writer")
    for payload in (b"old", b"new"):
        await writer.publish(message(payload=payload, retain=True))
    assert [m.retain for m in await live.count(2)] == [False, False]
    _, late = await listening(setup, "knowledge.gpt/medicine/+")
    (got,) = await late.count(1)
    assert (got.topic, got.payload, got.retain) == (RECORD, b"new", True)
    await writer.publish(message(payload=b"last"))
    assert await late.before(b"last") == [b"new"]


async def test_an_empty_retained_message_clears_the_topic(setup: Setup) -> None:
    writer, live = await listening(setup, [RECORD, STATUS], "writer")
    for topic in (RECORD, STATUS):
        await writer.publish(message(topic, retain=True))
    await writer.publish(message(payload=b"", retain=True))
    await live.until(lambda: b"" in live.payloads)
    _, late = await listening(setup, [RECORD, STATUS])
    await late.count(1)
    await writer.publish(message(payload=b"last"))
    await late.until(lambda: b"last" in late.payloads)
    assert [m.topic for m in late.messages if m.retain] == [STATUS]


# --- wills


async def test_the_will_is_published_when_a_client_vanishes(setup: Setup) -> None:
    _, inbox = await listening(setup, STATUS)
    vanish = await setup.vanishing("medic-1", message(STATUS, b"offline 1", retain=True))
    await vanish()
    assert (await inbox.count(1))[0].payload == b"offline 1"
    _, late = await listening(setup, STATUS, "late")
    assert (await late.count(1))[0].retain


async def test_the_will_is_not_published_when_a_client_closes(setup: Setup) -> None:
    _, inbox = await listening(setup, STATUS)
    dying = await setup.connected("medic-1", will=message(STATUS, b"offline 1"))
    await dying.publish(message(STATUS, b"offline 1 said by itself"))
    await dying.publish(message(STATUS, b"not waited for", qos=0))
    await dying.close()
    await inbox.until(lambda: b"not waited for" in inbox.payloads)
    await (await setup.connected("writer")).publish(message(STATUS, b"last"))
    assert b"offline 1" not in await inbox.before(b"last")


async def test_of_two_clients_with_one_id_the_older_loses_its_connection(setup: Setup) -> None:
    old, times = setup.client("medic-1"), []

    async def note() -> None:
        times.append(len(times))

    old.on_connected(note)
    await old.subscribe(RECORD, Inbox())
    await old.connect()
    new, inbox = await listening(setup, RECORD, "medic-1")
    failed = asyncio.create_task(old.failed())
    # A broker that says why (MQTT 5) ends the older for good; Mosquitto 2.0 does not, and the two oust each other.
    await eventually(lambda: failed.done() or len(times) > 1)
    if failed.done():
        assert "another client took over the id 'medic-1'" in str(failed.exception())
    failed.cancel()
    await old.close()
    with pytest.raises(TransportError, match="was closed"):
        await old.publish(message())
    async with asyncio.timeout(10):
        while not inbox.messages:
            await new.publish(message())
            await asyncio.sleep(0.05)


# --- the broker goes away and comes back


async def test_all_goes_on_when_the_broker_comes_back(setup: Setup) -> None:
    reader, inbox = await listening(setup, [RECORD, STATUS])
    writer, births = setup.client("writer"), []

    async def announce() -> None:
        births.append(await writer.publish(message(STATUS, b"online 1")))

    writer.on_connected(announce)
    await writer.connect()
    await inbox.count(1)
    await setup.go_away()
    waiting = [asyncio.create_task(writer.publish(message(payload=b"%d" % n))) for n in range(10)]
    done, _ = await asyncio.wait(waiting, timeout=0.05)
    assert not done
    later = Inbox()
    await reader.subscribe("knowledge.gpt/weather/@w-1", later)  # counts once the connection stands again
    await setup.come_back()
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    await eventually(lambda: len(births) == 2)

    async def until_heard(inbox: Inbox, topic: str) -> None:  # the reader may come back after the writer
        while not any(m.topic == topic for m in inbox.messages):
            await writer.publish(message(topic, b"again"))
            await asyncio.sleep(0.05)

    async with asyncio.timeout(10):
        inbox.messages.clear()
        await until_heard(inbox, RECORD)
        await until_heard(later, "knowledge.gpt/weather/@w-1")


async def test_what_was_published_meanwhile_arrives(setup: Setup) -> None:
    reader, inbox = await listening(setup, RECORD)
    back = asyncio.Event()

    async def note() -> None:
        back.set()

    reader.on_connected(note)
    await setup.go_away()
    publishing = asyncio.create_task(reader.publish(message(payload=b"waited")))
    given_up = asyncio.create_task(reader.publish(message(payload=b"given up")))
    await asyncio.sleep(0.01)
    given_up.cancel()
    await setup.come_back()
    async with asyncio.timeout(10):
        await publishing
        await back.wait()
    await reader.publish(message(payload=b"last"))
    assert await inbox.before(b"last") == [b"waited"]


async def test_closing_fails_what_waits(setup: Setup) -> None:
    writer = await setup.connected("writer")
    await setup.go_away()
    waiting = [asyncio.create_task(writer.publish(message(payload=b"%d" % n, qos=n % 2))) for n in range(600)]
    await asyncio.sleep(0.01)
    await writer.close()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {TransportError}
    assert all("was closed" in str(result) for result in results)
    with pytest.raises(TransportError, match="was closed"):
        await writer.publish(message())
    await writer.close()


# --- pressure


async def test_thousands_of_publishes_at_once_all_arrive(setup: Setup) -> None:
    _, inbox = await listening(setup, RECORD)
    writer = await setup.connected("writer")
    payloads = [b"%d" % number for number in range(3000)]
    await asyncio.gather(*(writer.publish(message(payload=payload)) for payload in payloads))
    await inbox.count(3000)
    assert inbox.payloads == payloads


@REAL
async def test_control_overtakes_bulk(setup: MqttSetup) -> None:
    _, inbox = await listening(setup, [RECORD, STATUS])
    cable = await setup.cable()
    writer = setup.client("writer", cable=cable, options=MqttOptions(window=64))
    await writer.connect()
    cable.hold("up")
    bulk = [asyncio.create_task(writer.publish(message(payload=b"bulk"), bulk=True)) for _ in range(1000)]
    await asyncio.sleep(0)
    control = asyncio.create_task(writer.publish(message(STATUS, b"control")))
    await asyncio.sleep(0.01)
    cable.release()
    await asyncio.gather(control, *bulk)
    # nats-server keeps no order across topics: there it is enough that it did not wait for all.
    assert len(await inbox.before(b"control")) <= (32 if setup.shared else 500)
    await inbox.count(1001)


# nats-server sends again only after 30 s, whether or not the client came back.
@pytest.mark.parametrize("setup", ["mosquitto-5", "mosquitto-3.1.1"], indirect=True)
async def test_what_is_not_handled_to_the_end_comes_again(setup: MqttSetup) -> None:
    cable = await setup.cable()
    started, release = [], asyncio.Event()
    reader = setup.client("reader", cable=cable, options=MqttOptions(session_expiry_s=60, backoff_s=0.01))

    def handle(got: TransportMessage):  # type: ignore[no-untyped-def]
        started.append(got.payload)
        return release.wait()

    await reader.subscribe(RECORD, handle)  # type: ignore[arg-type]
    await reader.connect()
    writer = await setup.connected("writer")
    for payload in (b"1", b"2"):
        await writer.publish(message(payload=payload))
    await eventually(lambda: started == [b"1", b"2"])
    cable.cut()
    await eventually(lambda: started[2:] == [b"1", b"2"])
    release.set()
    await writer.publish(message(payload=b"3"))
    await eventually(lambda: started[4:] == [b"3"])
    await reader.publish(message(STATUS))  # behind the acknowledgements
    cable.cut()
    await writer.publish(message(payload=b"4"))
    await eventually(lambda: started[5:] == [b"4"])


@pytest.mark.parametrize("setup", ["memory", "mosquitto-5"], indirect=True)
async def test_a_slow_handler_holds_back_the_acknowledgement(setup: Setup) -> None:
    reader, started, release = setup.client("reader", options=MqttOptions(receive_maximum=5)), [], asyncio.Event()

    def handle(got: TransportMessage):  # type: ignore[no-untyped-def]
        if got.topic == STATUS:
            return None
        started.append(got.payload)
        return release.wait()

    await reader.subscribe([RECORD, STATUS], handle)  # type: ignore[arg-type]
    await reader.connect()
    writer = await setup.connected("writer")
    for number in range(20):
        await writer.publish(message(payload=b"%d" % number))
    await eventually(lambda: len(started) == 5)
    heard = Inbox()
    await reader.subscribe("data.gpt/air/@a-1", heard, qos=0)
    await writer.publish(message("data.gpt/air/@a-1", b"QoS 0 passes by", qos=0))
    await heard.count(1)
    assert len(started) == 5
    release.set()
    await eventually(lambda: len(started) == 20)
    assert started == [b"%d" % number for number in range(20)]


# --- mistakes


async def test_a_handler_that_fails_breaks_nothing(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    reader, inbox = await listening(setup, STATUS)

    def fail(_: TransportMessage) -> None:
        raise ZeroDivisionError("in a handler")

    async def fail_later() -> None:
        raise ZeroDivisionError("in its coroutine")

    handlers: dict[str, Callable[[TransportMessage], object]] = {
        RECORD: fail,
        "data.gpt/a/@a": lambda _: fail_later(),
        "data.gpt/b/@b": lambda _: fail_later(),
    }
    for topic, handler in handlers.items():
        await reader.subscribe(topic, handler)  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        for number, topic in enumerate(handlers):
            await asyncio.gather(*(reader.publish(message(topic, qos=min(number, 1))) for _ in range(3)))
        await reader.publish(message(STATUS, b"last"))
        await inbox.count(1)
        await eventually(lambda: len([r for r in caplog.records if r.exc_info]) == 9)
    assert await reader.publish(message(STATUS, b"and on"))


@pytest.mark.parametrize("topic", ["knowledge.gpt/#", "knowledge.gpt/+/@a", ""])
async def test_a_topic_that_is_none_is_refused_before_it_is_sent(setup: Setup, topic: str) -> None:
    transport, inbox = await listening(setup, RECORD)
    for qos in (0, 1):
        with pytest.raises(PublishError, match="can't publish to"):
            await transport.publish(message(topic, qos=qos))
    await transport.publish(message())
    await inbox.count(1)


async def test_the_broker_says_who_is_not_there(setup: Setup) -> None:
    transport = await setup.connected("writer")
    assert await transport.publish(message()) is not setup.mqtt5
    await transport.subscribe(RECORD, Inbox())
    assert await transport.publish(message()) is True

"""What only real brokers and real sockets show: TLS, WebSockets, passwords, refusals, limits, sessions, silence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import LIMIT_S, QUICK, Cable, Inbox, MqttSetup, eventually
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.broker import Broker
from mqttcollab.config import BrokerAddress
from mqttcollab.errors import (
    ConfigError,
    ConnectError,
    PublishError,
    RequestError,
    SubscribeError,
    TooLarge,
    TransportError,
)
from mqttcollab.messages import Reply, Request
from mqttcollab.rpc import PartSender, Requester, Responder
from mqttcollab.topics import request_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.mqtt import MqttOptions, MqttTransport

RECORD = "knowledge.gpt/medicine/@medic"
STATUS = "slm/agents/@medic/status"
HASTY = MqttOptions(timeout_s=0.2, backoff_s=0.01, backoff_max_s=0.05)


def message(topic: str = RECORD, payload: bytes = b"hello", qos: int = 1) -> TransportMessage:
    return TransportMessage(topic, payload, qos)


@contextlib.asynccontextmanager
async def connected(
    url: str, client_id: str = "watch-7", *, options: MqttOptions = QUICK, patience_s: float | None = 0.0
) -> AsyncIterator[MqttTransport]:
    transport = MqttTransport(BrokerAddress.parse(url), client_id, options=options)
    try:
        await transport.connect(patience_s=patience_s)
        yield transport
    finally:
        await transport.close()


async def refusal(url: str, *, options: MqttOptions = HASTY, patience_s: float | None = 0.0) -> ConnectError:
    with pytest.raises(ConnectError) as error:
        async with asyncio.timeout(LIMIT_S), connected(url, options=options, patience_s=patience_s):
            pass
    assert "\n" not in str(error.value)
    assert url.partition("?")[0].rpartition("@")[2].partition("//")[2] in str(error.value)
    return error.value


async def carries(transport: MqttTransport, payload: bytes = b"hello") -> None:
    inbox = Inbox()
    await transport.subscribe(RECORD, inbox)
    await transport.publish(message(payload=payload))
    assert (await inbox.count(1))[0].payload == payload
    await transport.unsubscribe(RECORD)


def url_of(scheme: str, port: int) -> str:
    return f"{scheme}://127.0.0.1:{port}{'/' if scheme.startswith('ws') else ''}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


# --- TLS and WebSockets


@pytest.mark.parametrize("setup", ["mosquitto-5", "mosquitto-3.1.1", "nats-3.1.1"], indirect=True)
@pytest.mark.parametrize("version", ["auto", "own"])
async def test_websockets(setup: MqttSetup, version: str) -> None:
    url = setup.broker.info.websocket_url
    assert url is not None
    async with connected(url + (setup.query if version == "own" else "")) as transport:
        assert transport.mqtt5 is (setup.mqtt5 if version == "own" else setup.broker.info.kind == "mosquitto")
        await carries(transport)
        await carries(transport, b"x" * 10_000)  # Mosquitto 2.0 sends 4 kB of a message each 0.1 s
        await asyncio.gather(*(transport.publish(message(payload=b"x" * 3000)) for _ in range(500)))


@pytest.fixture
async def tls_urls(request: pytest.FixtureRequest, certificates: Path, tmp_path: Path) -> AsyncIterator[list[str]]:
    """The mqtts and the wss URL of a broker with our certificates."""
    plain, web, files = free_port(), free_port(), certificates
    if request.param == "mosquitto":
        secure = f"certfile {files}/server.crt\nkeyfile {files}/server.key\n"
        rest = f"listener {web} 127.0.0.1\nprotocol websockets\n{secure}"
        extra = f"listener {plain} 127.0.0.1\n{secure}{rest}"
        broker = Broker("mosquitto", extra_config=extra)
    else:
        secure = f'tls {{ cert_file: "{files}/server.crt", key_file: "{files}/server.key" }}'
        config = tmp_path / "nats.conf"
        config.write_text(
            f'server_name: tls\nlisten: "127.0.0.1:-1"\njetstream {{ store_dir: "{tmp_path}/data" }}\n'
            f'mqtt {{ listen: "127.0.0.1:{plain}", {secure} }}\nwebsocket {{ listen: "127.0.0.1:{web}", {secure} }}\n'
        )
        broker = Broker("nats", config=config)
    await broker.start()
    yield [f"mqtts://localhost:{plain}", f"wss://127.0.0.1:{web}/mqtt"]
    await broker.kill()
    await broker.stop()


both_with_tls = pytest.mark.parametrize("tls_urls", ["mosquitto", "nats"], indirect=True)


@both_with_tls
async def test_tls(tls_urls: list[str], certificates: Path) -> None:
    for url in tls_urls:
        async with connected(f"{url}?ca={certificates}/ca.crt") as transport:
            await carries(transport)
            await carries(transport, b"x" * (10_000 if url.startswith("ws") else 300_000))
            await asyncio.gather(*(transport.publish(message(payload=b"x" * 3000)) for _ in range(300)))


@both_with_tls
async def test_a_certificate_of_an_authority_that_nobody_trusts_is_refused(tls_urls: list[str]) -> None:
    for url in tls_urls:
        assert "certificate verify failed" in str(await refusal(url))


async def test_a_certificate_of_another_host_is_refused(mosquitto: Broker, certificates: Path, tmp_path: Path) -> None:
    port = free_port()
    secure = f"certfile {certificates}/server.crt\nkeyfile {certificates}/server.key"
    async with Broker("mosquitto", extra_config=f"listener {port} 127.0.0.2\n{secure}") as broker:
        error = await refusal(f"mqtts://127.0.0.2:{port}?ca={certificates}/ca.crt")
        assert "certificate verify failed" in str(error)
        await broker.kill()


@pytest.mark.parametrize("wrong", ["ca", "cert"])
def test_files_that_are_no_certificates_are_named(tmp_path: Path, certificates: Path, wrong: str) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no certificate")
    files = {"ca": certificates / "ca.crt", "cert": certificates / "server.crt", "key": certificates / "server.key"}
    query = "&".join(f"{name}={nonsense if name == wrong else path}" for name, path in files.items())
    with pytest.raises(ConfigError, match="the certificate or key files can't be used"):
        MqttTransport(BrokerAddress.parse(f"mqtts://localhost?{query}"), "watch-7")


# --- versions


async def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1(nats: Broker) -> None:
    async with connected(nats.info.url) as transport:
        assert not transport.mqtt5
        await carries(transport)
    error = await refusal(f"{nats.info.url}?version=5")
    assert error.refused and "Unsupported protocol version" in str(error)


async def test_a_broker_is_replaced_by_one_without_mqtt_5(mosquitto: Broker, nats: Broker) -> None:
    async with Cable(mosquitto.info) as cable, connected(cable.url()) as transport:
        assert transport.mqtt5
        inbox = Inbox()
        await transport.subscribe(RECORD, inbox)
        cable.hold("up")
        lost = asyncio.create_task(transport.publish(message()))
        await asyncio.sleep(0.01)
        cable.target = (nats.info.host, nats.info.port)
        cable.cut()
        with pytest.raises(TransportError, match="was replaced by one without MQTT 5"):
            await asyncio.wait_for(lost, LIMIT_S)
        await eventually(lambda: transport.online)
        assert not transport.mqtt5
        await transport.publish(message(payload=b"again"))
        await inbox.until(lambda: b"again" in inbox.payloads)


# --- refusals


@pytest.fixture
async def strict_mosquitto(tmp_path: Path) -> AsyncIterator[Broker]:
    """A Mosquitto that knows watch-7, who may do what it likes under slm/ and read all else."""
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed")
    passwords, acl = tmp_path / "passwords", tmp_path / "acl"
    passwords.write_text("watch-7:right\n")
    await asyncio.to_thread(subprocess.run, ["mosquitto_passwd", "-U", str(passwords)], check=True)
    acl.write_text("user watch-7\ntopic readwrite slm/#\ntopic read #\n")
    acl.chmod(0o600)
    lines = f"allow_anonymous false\npassword_file {passwords}\nacl_file {acl}"
    broker = Broker("mosquitto", extra_config=lines)
    await broker.start()
    yield broker
    await broker.kill()
    await broker.stop()


NATS_USERS = """
server_name: strict
listen: "127.0.0.1:-1"
jetstream {{ store_dir: "{folder}" }}
mqtt {{ listen: "127.0.0.1:{port}" }}
authorization {{ users: [ {{ user: "watch-7", password: "right", permissions: {{
  publish: [">"], subscribe: [{subscribe}]
}} }} ] }}
"""


@pytest.fixture
async def strict_nats(tmp_path: Path) -> AsyncIterator[Broker]:
    """A nats-server that lets watch-7 subscribe to slm/# only."""
    config = tmp_path / "nats.conf"
    config.write_text(NATS_USERS.format(folder=tmp_path / "data", port=free_port(), subscribe='"slm.>"'))
    broker = Broker("nats", config=config)
    await broker.start()
    yield broker
    await broker.kill()
    await broker.stop()


def as_user(broker: Broker, password: str, query: str = "") -> str:
    return broker.info.url.replace("//", f"//watch-7:{password}@") + query


@pytest.mark.parametrize("query", ["", "?version=3.1.1"])
async def test_a_wrong_password_is_refused_and_not_tried_again(strict_mosquitto: Broker, query: str) -> None:
    async with connected(as_user(strict_mosquitto, "right", query)) as transport:
        await transport.publish(message(STATUS))
    for url in (as_user(strict_mosquitto, "wrong", query), strict_mosquitto.info.url + query):
        error = await refusal(url, patience_s=None)
        assert error.refused and "refuses 'watch-7': Not authorized" in str(error)


async def test_a_wrong_password_is_refused_by_nats(strict_nats: Broker) -> None:
    async with connected(as_user(strict_nats, "right")) as transport:
        await transport.publish(message(STATUS))
    error = await refusal(as_user(strict_nats, "wrong"), patience_s=None)
    assert error.refused and "refuses 'watch-7'" in str(error)


async def test_a_publish_that_is_denied_raises_where_the_broker_says_so(strict_mosquitto: Broker) -> None:
    async with connected(as_user(strict_mosquitto, "right")) as transport:
        with pytest.raises(PublishError, match=f"refuses a publish to {RECORD}: Not authorized"):
            await transport.publish(message())
        assert await transport.publish(message(STATUS, qos=0))
        inbox = Inbox()
        await transport.subscribe(STATUS, inbox)
        await transport.publish(message(STATUS))
        await inbox.count(1)
    async with connected(as_user(strict_mosquitto, "right", "?version=3.1.1")) as transport:
        assert await transport.publish(message())  # 3.1.1 has no way to say no


async def test_a_subscription_that_is_denied_raises(strict_nats: Broker) -> None:
    inbox = Inbox()
    async with connected(as_user(strict_nats, "right")) as transport:
        for filters in (RECORD, [STATUS, RECORD]):
            with pytest.raises(SubscribeError, match=f"refuses the subscription to {RECORD}"):
                await transport.subscribe(filters, inbox)
        await transport.subscribe(STATUS, inbox)
        await transport.publish(message())
        await transport.publish(message(STATUS))
        assert [got.topic for got in await inbox.count(1)] == [STATUS]


async def test_a_denied_subscription_of_the_first_connection_raises(strict_nats: Broker) -> None:
    born, inbox = [], Inbox()

    async def announce() -> None:
        born.append(1)

    transport = MqttTransport(BrokerAddress.parse(as_user(strict_nats, "right")), "watch-7")
    transport.on_connected(announce)
    await transport.subscribe([STATUS, RECORD], inbox)
    with pytest.raises(SubscribeError, match=f"refuses the subscription to {RECORD}"):
        await transport.connect()
    assert not transport.online
    await transport.close()
    assert born == []


async def test_what_is_denied_after_a_break_does_not_keep_the_rest_away(
    strict_nats: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()
    async with connected(as_user(strict_nats, "right")) as transport:
        await transport.subscribe([STATUS, "slm/models/#"], inbox)
        await strict_nats.kill()
        port = strict_nats.info.port
        config = NATS_USERS.format(folder=tmp_path / "data", port=port, subscribe='"slm.agents.>"')
        (tmp_path / "nats.conf").write_text(config)
        with caplog.at_level(logging.ERROR):
            await strict_nats.start()
            await eventually(lambda: any("slm/models/# (" in record.getMessage() for record in caplog.records))
        await eventually(lambda: transport.online)
        await transport.publish(message(STATUS))
        await inbox.count(1)


@pytest.mark.parametrize("bad", ["a/#/b", "a+", ""])
async def test_a_filter_that_is_none_is_refused(mosquitto: Broker, bad: str) -> None:
    inbox = Inbox()
    async with connected(mosquitto.info.url) as transport:
        with pytest.raises(SubscribeError, match="can't subscribe to"):
            await transport.subscribe(bad, inbox)
        await carries(transport)


# --- limits


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[Broker]:
    """A Mosquitto that takes packets of up to 10,000 bytes."""
    broker = Broker("mosquitto", extra_config="max_packet_size 10000")
    await broker.start()
    yield broker
    await broker.kill()
    await broker.stop()


async def test_a_message_over_the_brokers_limit_is_not_sent(narrow: Broker) -> None:
    async with connected(narrow.info.url) as transport:
        for qos in (0, 1):
            with pytest.raises(TooLarge, match=f"{RECORD}: .* bytes are over the limit of 10000"):
                await transport.publish(message(payload=b"x" * 10_000, qos=qos))
        await carries(transport, b"x" * 9_900)


async def test_a_message_over_our_own_limit_is_not_sent(mosquitto: Broker) -> None:
    options = MqttOptions(maximum_packet=5000)
    async with connected(f"{mosquitto.info.url}?version=3.1.1", options=options) as transport:
        with pytest.raises(TooLarge, match="over the limit of 5000"):
            await transport.publish(message(payload=b"x" * 5000))
        await carries(transport, b"x" * 4900)


async def test_answers_and_questions_over_the_brokers_limit_have_a_code(narrow: Broker) -> None:
    async def answer(request: Request, send: PartSender) -> Reply:
        return Reply(id=request.id, output="x" * 20_000)

    topic = request_topic("knowledge.gpt/medicine", "medic")
    async with connected(narrow.info.url, "medic") as medic, connected(narrow.info.url, "phone") as phone:
        responder, requester = Responder(medic, "medic"), Requester(phone, "phone")
        await responder.serve("knowledge.gpt/medicine", answer)
        await requester.start()
        for text in ("?", "x" * 20_000):
            with pytest.raises(RequestError, match="over the limit of 10000") as error:
                await asyncio.wait_for(requester.ask(topic, requester.new_request(text)), LIMIT_S)
            assert error.value.code == "too_large"
        await responder.stop()


# --- sessions


@pytest.mark.parametrize("setup", ["mosquitto-5", "mosquitto-3.1.1", "nats-3.1.1"], indirect=True)
@pytest.mark.parametrize("expiry_s", [60, 0])
async def test_what_is_sent_meanwhile_waits_where_the_session_does(setup: MqttSetup, expiry_s: int) -> None:
    cable = await setup.cable()
    options = MqttOptions(session_expiry_s=expiry_s, backoff_s=0.02, backoff_max_s=0.1)
    reader, inbox = setup.client("reader", cable=cable, options=options), Inbox()
    await reader.subscribe(RECORD, inbox)
    await reader.connect()
    writer = await setup.connected("writer")
    await cable.pull()
    await eventually(lambda: not reader.online)
    for number in range(3):
        await writer.publish(message(payload=b"%d" % number))
    await cable.plug()
    await eventually(lambda: reader.online)
    await eventually(lambda: len(inbox.messages) == 3 or not expiry_s)
    async with asyncio.timeout(LIMIT_S):  # the subscription may stand a moment later
        while b"last" not in inbox.payloads:
            await writer.publish(message(payload=b"last"))
            await asyncio.sleep(0.02)
    assert await inbox.before(b"last") == ([b"0", b"1", b"2"] if expiry_s else [])


# --- nobody there, or somebody odd


async def test_a_broker_that_is_down_is_said_so(mosquitto: Broker) -> None:
    await mosquitto.kill()
    error = await refusal(mosquitto.info.url)
    assert not error.refused and "can't be reached: Connection refused" in str(error)


async def test_patience_waits_for_a_broker_that_comes_later(mosquitto: Broker) -> None:
    await mosquitto.kill()
    transport = MqttTransport(BrokerAddress.parse(mosquitto.info.url), "watch-7", options=QUICK)
    connecting = asyncio.create_task(transport.connect(patience_s=LIMIT_S))
    await asyncio.sleep(0.1)
    assert not connecting.done()
    await mosquitto.start()
    await connecting
    await carries(transport)
    await transport.close()


class Odd:
    """A server that says what it is told to, to everybody who connects."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = answers  # to what comes in, one by one; None closes the connection
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            for answer in self._answers:
                if not await reader.read(1000) or answer is None:
                    break
                writer.write(answer)
            else:
                while await reader.read(1000):
                    pass
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


CONNACK = bytes.fromhex("2003000000")
SUBACK_1 = bytes.fromhex("90040001 00 01")


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
async def test_a_port_that_accepts_and_says_nothing_is_given_up(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        error = await refusal(url_of(scheme, server.getsockname()[1]))
    assert "does not answer" in str(error) or "timed out" in str(error)


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x00", b"\x20\x03\x00\xee\x00", b"\xff" * 100, None]
)
async def test_a_port_that_speaks_no_mqtt_is_given_up(scheme: str, answer: bytes | None) -> None:
    async with Odd(answer) as port:
        error = await refusal(url_of(scheme, port))
    assert not error.refused


@pytest.mark.parametrize("code", ["80", "8f", "97", "ff"])
async def test_a_refused_subscription_of_any_code_raises(code: str) -> None:
    async with (
        Odd(CONNACK, bytes.fromhex(f"90040001 00 {code}")) as port,
        connected(f"mqtt://127.0.0.1:{port}", options=HASTY) as transport,
    ):
        with pytest.raises(TransportError):
            await asyncio.wait_for(transport.subscribe(RECORD, Inbox()), LIMIT_S)


@pytest.mark.parametrize(
    "packet",
    [b"\xf0\x00", b"\x30\x01\x00", b"\x30\x05\x00\x01a\x05\x00", b"\x40\x01\x00", b"\x90\x01\x00", b"\xe0\x01\xff"],
    ids=["reserved", "short publish", "bad properties", "short puback", "short suback", "odd disconnect"],
)
async def test_a_packet_that_is_none_costs_the_connection_and_no_more(packet: bytes) -> None:
    async with Odd(CONNACK, packet) as port, connected(f"mqtt://127.0.0.1:{port}", options=HASTY) as transport:
        seen = []

        async def note() -> None:
            seen.append(1)

        transport.on_connected(note)
        subscribing = asyncio.create_task(transport.subscribe(RECORD, Inbox()))
        with pytest.raises(TransportError, match="broke"):
            await asyncio.wait_for(subscribing, LIMIT_S)
        await transport.unsubscribe(RECORD)
        await eventually(lambda: len(seen) > 0)


async def test_a_client_that_is_told_so_gives_way_to_another_of_its_id() -> None:
    async with (
        Odd(CONNACK, bytes.fromhex("e0018e")) as port,
        connected(f"mqtt://127.0.0.1:{port}", options=HASTY) as transport,
    ):
        publishing = asyncio.create_task(transport.publish(message()))
        with pytest.raises(TransportError, match="another client took over the id 'watch-7'"):
            await asyncio.wait_for(transport.failed(), LIMIT_S)
        await asyncio.sleep(0.1)
        assert not transport.online  # it does not come back to oust the other
        await transport.close()
        with pytest.raises(TransportError, match="was closed"):
            await publishing


async def test_a_broker_that_falls_silent_is_left(mosquitto: Broker) -> None:
    options = MqttOptions(keepalive_s=1, backoff_s=0.01, backoff_max_s=0.05)
    births = []
    async with Cable(mosquitto.info) as cable, connected(cable.url(), options=options) as transport:

        async def announce() -> None:
            births.append(1)

        transport.on_connected(announce)
        cable.hold(None)
        await eventually(lambda: len(births) == 1)
        await carries(transport)


# --- breaks


@given(st.integers(0, 10_000), st.floats(0.001, 10), st.floats(0.001, 100))
def test_pauses_between_attempts_grow_to_a_bound(attempt: int, first_s: float, longest_s: float) -> None:
    options = MqttOptions(backoff_s=first_s, backoff_max_s=longest_s)
    assert 0 <= options.pause(attempt) <= min(longest_s, first_s * 2.0 ** min(attempt, 16))


def test_pauses_between_attempts_differ() -> None:
    pauses = [MqttOptions(backoff_s=1.0, backoff_max_s=100.0).pause(3) for _ in range(1000)]
    assert len(set(pauses)) > 900
    assert min(pauses) < 2.0 and max(pauses) > 6.0


async def test_closing_while_the_broker_is_away_leaves_nothing_behind(mosquitto: Broker) -> None:
    transport = MqttTransport(BrokerAddress.parse(mosquitto.info.url), "watch-7", options=QUICK)
    await transport.connect()
    await mosquitto.kill()
    await eventually(lambda: not transport.online)
    await asyncio.sleep(0.05)
    await transport.close()
    await transport.close()


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
async def test_closing_in_the_middle_of_an_attempt_leaves_nothing_behind(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/"
        transport = MqttTransport(BrokerAddress.parse(url), "watch-7", options=HASTY)
        connecting = asyncio.create_task(transport.connect(patience_s=None))
        await asyncio.sleep(0.05)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        await transport.close()


async def test_closing_while_the_subscriptions_are_not_answered_leaves_nothing_behind(mosquitto: Broker) -> None:
    async with Cable(mosquitto.info) as cable, Odd(CONNACK) as port, connected(cable.url()) as transport:
        await transport.subscribe(RECORD, Inbox())
        await cable.pull()
        cable.target = ("127.0.0.1", port)
        await cable.plug()
        await eventually(lambda: transport.online)
        async with asyncio.timeout(LIMIT_S):
            await transport.close()


async def test_publishes_of_an_outage_are_not_sent_twice(mosquitto: Broker) -> None:
    inbox = Inbox()
    async with connected(mosquitto.info.url, "reader") as reader, Cable(mosquitto.info) as cable:
        await reader.subscribe(RECORD, inbox)
        async with connected(cable.url(), "writer") as writer:
            await cable.pull()
            await eventually(lambda: not writer.online)
            waiting = [asyncio.create_task(writer.publish(message(payload=b"%d" % n))) for n in range(300)]
            await asyncio.sleep(0.05)
            await cable.plug()
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*waiting)
            await writer.publish(message(payload=b"last"))
        assert await inbox.before(b"last") == [b"%d" % n for n in range(300)]


async def test_what_was_not_acknowledged_is_sent_again(mosquitto: Broker) -> None:
    inbox = Inbox()
    async with connected(mosquitto.info.url, "reader") as reader, Cable(mosquitto.info) as cable:
        await reader.subscribe(RECORD, inbox)
        async with connected(cable.url(), "writer") as writer:
            cable.hold("down")  # what is sent arrives, what acknowledges it does not
            waiting = [asyncio.create_task(writer.publish(message(payload=b"%d" % n))) for n in range(20)]
            await inbox.count(20)
            assert not any(publishing.done() for publishing in waiting)
            cable.cut()
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*waiting)
        await inbox.count(40)
        assert set(inbox.payloads) == {b"%d" % n for n in range(20)}

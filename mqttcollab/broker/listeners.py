"""Where brokers listen: ports, and the configurations that say so."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mqttcollab.errors import BrokerError


@dataclass(frozen=True, slots=True)
class BrokerInfo:
    """What runs, and where clients reach it."""

    kind: str
    version: str
    host: str
    port: int
    websocket_port: int | None
    url: str
    websocket_url: str | None
    pid: int


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where clients connect: the MQTT port, the WebSocket port, and which of them speak TLS."""

    host: str
    port: int
    websocket_port: int | None
    tls: bool = False
    websocket_tls: bool = False

    @property
    def ports(self) -> list[int]:
        """Every port that is opened."""
        return [port for port in (self.port, self.websocket_port) if port is not None]


class PortTaken(Exception):
    """Somebody else listens on the port (args: the port)."""


def mosquitto_config(listeners: Listeners, data: Path, keep: bool) -> str:
    """Render a Mosquitto configuration."""
    domain = "ipv6" if ":" in listeners.host else "ipv4"
    lines = [
        # Without it a request and its reply take 88 ms on loopback: Nagle waits for a delayed ACK.
        "set_tcp_nodelay true",
        # The default of 1,000 drops QoS 1 messages of an online subscriber in a burst. Not 0 (no limit):
        # Mosquitto before 2.0.22 then closes the connection after a publish that it refuses (its issue 3244).
        "max_queued_messages 1000000",
        "max_queued_bytes 33554432",
        # Mosquitto announces it as Receive Maximum: with the default of 20 a client with more requests under
        # way stalls, and a cancel waits behind them. Bounded: who stopped acknowledging is not flooded.
        "max_inflight_messages 1024",
        "allow_anonymous true",
        "log_dest stderr",
        "persistence true",
        f"persistence_location {data}/",
        # 0 writes at a clean stop only, which suffices for restart(); kept data shall also survive a crash.
        f"autosave_interval {1 if keep else 0}",
        f"listener {listeners.port} {listeners.host}",
        f"socket_domain {domain}",
    ]
    if listeners.websocket_port is not None:
        lines += [
            f"listener {listeners.websocket_port} {listeners.host}",
            "protocol websockets",
            f"socket_domain {domain}",
        ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # Else Mosquitto becomes the user `mosquitto`, who may neither read our files nor write the data.
        lines.append("user root")
    return "\n".join(lines) + "\n"


def nats_config(listeners: Listeners, data: Path, keep: bool) -> str:
    """Render a nats-server configuration."""
    address = bracketed(listeners.host)
    lines = [
        "server_name: mqttcollab",
        # The NATS protocol itself is of no use here, but its listener can't be switched off: any free port.
        'listen: "127.0.0.1:-1"',
        # MQTT sessions and retained messages live in JetStream.
        f'jetstream {{ store_dir: "{data.as_posix()}" }}',
        f'mqtt {{ listen: "{address}:{listeners.port}" }}',
    ]
    if listeners.websocket_port is not None:
        lines.append(f'websocket {{ listen: "{address}:{listeners.websocket_port}", no_tls: true }}')
    return "\n".join(lines) + "\n"


def mosquitto_listeners(config: Path) -> Listeners:
    """Read the first MQTT and the first WebSocket listener from a Mosquitto configuration."""
    found: list[dict[str, str]] = [{"port": "1883"}]
    for line in config.read_text(errors="replace").splitlines():
        key, _, value = line.strip().partition(" ")
        if key == "listener":
            port, _, host = value.strip().partition(" ")
            found.append({"port": port, "host": host.strip(), "given": "yes"})
        elif key == "port":
            found[0] |= {"port": value.strip(), "given": "yes"}
        elif key in ("protocol", "certfile"):
            found[-1][key] = value.strip()
    # Without any listener Mosquitto opens the default port, on loopback.
    given = [listener for listener in found if "given" in listener and listener["port"] != "0"] or found[:1]
    plain = [listener for listener in given if listener.get("protocol") != "websockets"]
    sockets = [listener for listener in given if listener.get("protocol") == "websockets"]
    if not plain or not all(listener["port"].isdigit() for listener in given):
        raise BrokerError(f"{config} has no MQTT listener with a port; add a line `listener 1883 127.0.0.1`")
    return Listeners(
        host=plain[0].get("host") or "127.0.0.1",
        port=int(plain[0]["port"]),
        websocket_port=int(sockets[0]["port"]) if sockets else None,
        tls="certfile" in plain[0],
        websocket_tls=bool(sockets) and "certfile" in sockets[0],
    )


def nats_listeners(lines: Iterable[str], config: Path) -> Listeners:
    """Read from what nats-server logged where it listens."""
    text = "\n".join(lines)
    mqtt = re.search(r"MQTT clients on (mqtt|tls)://(\S+):(\d+)", text)
    websocket = re.search(r"websocket clients on (wss?)://\S+:(\d+)", text)
    if mqtt is None:
        raise BrokerError(f'{config} opens no MQTT listener; add `mqtt {{ listen: "127.0.0.1:1883" }}`')
    return Listeners(
        host=mqtt[2].strip("[]"),
        port=int(mqtt[3]),
        websocket_port=int(websocket[2]) if websocket else None,
        tls=mqtt[1] == "tls",
        websocket_tls=websocket is not None and websocket[1] == "wss",
    )


def describe(kind: str, version: str, listeners: Listeners, pid: int) -> BrokerInfo:
    """What runs, with the URLs that clients use."""
    host = reachable(listeners.host)
    url = f"{'mqtts' if listeners.tls else 'mqtt'}://{bracketed(host)}:{listeners.port}"
    websocket_url = None
    if listeners.websocket_port is not None:
        # nats-server speaks MQTT on this path only; Mosquitto takes any.
        path = "/mqtt" if kind == "nats" else "/"
        scheme = "wss" if listeners.websocket_tls else "ws"
        websocket_url = f"{scheme}://{bracketed(host)}:{listeners.websocket_port}{path}"
    return BrokerInfo(kind, version, host, listeners.port, listeners.websocket_port, url, websocket_url, pid)


def free_port(host: str) -> int:
    """Let the system choose a port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        _bind(probe, host, 0)
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Raise where nobody could listen on this port now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the brokers do: connections of the last run that are still closing are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probe, host, port)


def _bind(probe: socket.socket, host: str, port: int) -> None:
    try:
        probe.bind((host, port))
    except socket.gaierror:
        raise BrokerError(f"the host name {host} is unknown; listen on an address such as 127.0.0.1") from None
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise PortTaken(port) from None
        what = {
            errno.EACCES: "ports below 1024 need root; choose a higher one",
            errno.EADDRNOTAVAIL: "it is no address of this machine; choose one that is, such as 127.0.0.1",
        }
        reason = what.get(exc.errno or 0, exc.strerror)
        raise BrokerError(f"the broker can't listen on {host} port {port}: {reason}") from None


def port_in_use(port: int) -> str:
    """What to tell who wanted a port that is taken."""
    return f"port {port} is in use; stop what listens there (`ss -ltnp` says), or choose another (0: a free one)"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """Where a client on this machine connects, for the address that a broker listens on."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def bracketed(host: str) -> str:
    """The address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host

"""Start a broker process: Mosquitto where it is installed, else the nats-server from its wheel.

    async with Broker() as broker:
        print(broker.info.kind, broker.info.url)

The broker listens on loopback, on free ports unless told otherwise, and is gone with its files at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import re
import shutil
import socket
import sysconfig
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from mqttcollab.errors import BrokerError

BrokerKind = Literal["auto", "mosquitto", "nats"]

START_LIMIT_S: Final = 5.0
STOP_LIMIT_S: Final = 5.0
_PORT_ATTEMPTS: Final = 5
_SYSTEM_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin")
_EXECUTABLE: Final = {"mosquitto": "mosquitto", "nats": "nats-server"}
_INSTALL: Final = {"mosquitto": "apt-get install mosquitto", "nats": "pip install 'mqttcollab[broker]'"}
_READY: Final = {"mosquitto": re.compile(r"version \S+ running"), "nats": re.compile(r"Server is ready")}
_PREFIX: Final = re.compile(r"^(\d+: |\[\d+\] \S+ \S+ )")
_TROUBLE: Final = re.compile(r"Error|\[(FTL|ERR)\]|^nats-server: ")
_log = logging.getLogger(__name__)


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
class _Listeners:
    """Where clients connect: the MQTT port, the WebSocket port, and which of them speak TLS."""

    host: str
    port: int
    websocket_port: int | None
    tls: bool = False
    websocket_tls: bool = False

    @property
    def ports(self) -> list[int]:
        return [port for port in (self.port, self.websocket_port) if port is not None]


class _PortTaken(Exception):
    """Somebody else listens on the port (args: the port)."""


def find_broker(kind: BrokerKind = "auto", *, path: str | None = None) -> tuple[str, Path]:
    """Find the broker's executable.

    Args:
        kind: `auto` takes Mosquitto where it is installed, else nats-server.
        path: folders to search, joined like PATH; None searches PATH, the system's sbin folders and
            this environment's scripts.

    Returns:
        `mosquitto` or `nats`, and the executable.

    Raises:
        BrokerError: it is not installed; the message says how to install it.
    """
    if path is None:
        scripts = sysconfig.get_path("scripts")
        path = os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS, scripts])
    wanted = ["mosquitto", "nats"] if kind == "auto" else [kind]
    for name in wanted:
        # An empty path must not make `which` fall back to the system's default one.
        if path and (found := shutil.which(_EXECUTABLE[name], path=path)):
            return name, Path(found)
    what = " and no ".join(_EXECUTABLE[name] for name in wanted)
    how = ", or ".join(_INSTALL[name] for name in wanted)
    raise BrokerError(f"no {what} on this machine; install one: {how}")


class Broker:
    """One broker process; an async context manager, or `start()` and `stop()`.

    Args:
        kind: which broker; `auto` takes Mosquitto where it is installed, else nats-server.
        host: the loopback address to listen on: anybody may connect. Beyond it takes a `config` of one's own.
        port: the MQTT port; None or 0 takes a free one.
        websocket_port: the WebSocket port; None or 0 takes a free one, "off" opens none.
        data_dir: where sessions and retained messages are kept; None keeps them until `stop()` only.
        config: a configuration file of one's own (Mosquitto's, or nats-server's with kind="nats"), used as
            it is: ports and data are what it says.
        extra_config: lines appended to the generated configuration.
        verbose: the broker logs every packet; its output goes to this module's logger at INFO, else DEBUG.
    """

    def __init__(
        self,
        kind: BrokerKind = "auto",
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        websocket_port: int | Literal["off"] | None = None,
        data_dir: Path | None = None,
        config: Path | None = None,
        extra_config: str = "",
        verbose: bool = False,
    ) -> None:
        if config is not None and (port or websocket_port or data_dir or extra_config):
            raise BrokerError(
                f"ports, data_dir and extra_config can't be set beside {config}; write them into that file"
            )
        if config is None and not _is_loopback(host):
            raise BrokerError(
                f"a broker on {host} needs passwords: give a configuration of your own (brokers/ has one for "
                "production), or listen on 127.0.0.1"
            )
        for given in (port, websocket_port):
            if isinstance(given, int) and not 0 <= given <= 65535:
                raise BrokerError(f"port {given} does not exist; choose one from 1 to 65535, or 0 for a free one")
        self._kind: BrokerKind = "mosquitto" if config is not None and kind == "auto" else kind
        self._host = host
        self._port = port or 0
        self._websocket_port = websocket_port or 0
        self._data_dir = data_dir
        self._config = config
        self._extra_config = extra_config
        self._verbose = verbose
        self._listeners: _Listeners | None = None
        self._temporary: Path | None = None
        self._generated = ""
        self._process: _Process | None = None
        self._info: BrokerInfo | None = None

    @property
    def info(self) -> BrokerInfo:
        """What runs, and where; kept after the process has ended.

        Raises:
            BrokerError: the broker was never started.
        """
        if self._info is None:
            raise BrokerError("the broker was not started; call start() first")
        return self._info

    @property
    def log(self) -> list[str]:
        """The last lines that the broker wrote (at most 1,000)."""
        return list(self._process.lines) if self._process else []

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and not self._process.ended.is_set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the broker and return once its ports accept connections.

        After `kill()` or a crash, it comes back on the same ports with the same data.

        Raises:
            BrokerError: no executable, a port in use, a bad configuration, or it died or hung at start.
        """
        if self.running:
            raise BrokerError(f"the broker already runs at {self.info.url} (pid {self.info.pid})")
        try:
            kind, executable = await asyncio.to_thread(find_broker, self._kind)
            version = await _version(kind, executable)
            for attempt in range(_PORT_ATTEMPTS):
                try:
                    return await self._launch(kind, executable, version)
                except _PortTaken as exc:
                    await self._reap()
                    # A port that we chose can be taken by somebody else before the broker listens on it.
                    ours = self._config is None and exc.args[0] not in (self._port, self._websocket_port)
                    if not ours or self._info is not None or attempt == _PORT_ATTEMPTS - 1:
                        raise BrokerError(_port_in_use(exc.args[0])) from None
        except BaseException:
            await self._reap()
            if self._info is None:
                await self._remove_files()
            raise

    async def stop(self) -> None:
        """SIGTERM, after 5 s SIGKILL; then the temporary files are removed. Twice does no harm."""
        if self._process is not None:
            await self._process.terminate()
        await self._remove_files()

    async def restart(self) -> None:
        """Stop and start again on the same ports with the same data."""
        if self._process is not None:
            await self._process.terminate()
        await self.start()

    async def kill(self) -> None:
        """SIGKILL, as a crash would be, and wait until the process is gone; `start()` brings it back."""
        await self._reap()

    async def wait(self) -> int:
        """Wait until the process ends, and return its exit code (minus the signal where one ended it)."""
        if self._process is None:
            raise BrokerError("the broker was not started; call start() first")
        return await self._process.wait()

    async def _launch(self, kind: str, executable: Path, version: str) -> None:
        listeners = self._listeners if self._info else None
        if listeners is None and self._config is None:
            listeners = self._choose_ports()
        config = await asyncio.to_thread(self._prepare, kind, listeners)
        if listeners is None and kind == "mosquitto":
            listeners = await asyncio.to_thread(_mosquitto_listeners, config)
        for port in listeners.ports if listeners else ():
            _check_port(listeners.host if listeners else self._host, port)
        process = self._process = await _Process.start(executable, config, kind, self._verbose)
        # An own Mosquitto configuration may log elsewhere, so there only the ports tell.
        ready = None if self._config is not None and kind == "mosquitto" else _READY[kind]
        try:
            async with asyncio.timeout(START_LIMIT_S):
                if ready is not None:
                    await process.wait_for(ready)
                listeners = listeners or _nats_listeners(process.lines, config)
                for port in listeners.ports:
                    await _accepts(listeners.host, port, process)
        except TimeoutError:
            raise BrokerError(
                f"{_EXECUTABLE[kind]} does not accept connections within {START_LIMIT_S:g} s with {config}: "
                f"{process.trouble()}; correct the file, or look at why it hangs"
            ) from None
        except _Died:
            raise self._death(kind, config, process, listeners) from None
        self._listeners = listeners
        self._info = _info(kind, version, listeners, process.pid)

    def _death(
        self, kind: str, config: Path, process: _Process, listeners: _Listeners | None
    ) -> BrokerError | _PortTaken:
        trouble = process.trouble()
        if listeners and "address already in use" in trouble.lower():
            for port in listeners.ports:
                try:
                    _check_port(listeners.host, port)
                except _PortTaken as taken:
                    return taken
        code = process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        what = "correct the file" if self._config else "correct extra_config"
        if self._config is None and (at := re.search(rf"{re.escape(str(config))}:(\d+)", trouble)):
            # The generated file is gone when this is read.
            what += f', here "{self._generated.splitlines()[int(at[1]) - 1]}"'
        return BrokerError(f"{_EXECUTABLE[kind]} ended at start ({how}) with {config}: {trouble}; {what}")

    def _choose_ports(self) -> _Listeners:
        port = self._port or _free_port(self._host)
        if self._websocket_port == "off":
            return _Listeners(self._host, port, None)
        return _Listeners(self._host, port, self._websocket_port or _free_port(self._host))

    def _prepare(self, kind: str, listeners: _Listeners | None) -> Path:
        """Write the generated configuration; return the file the broker shall read. Blocks on the disk."""
        if listeners is None or self._config is not None:
            assert self._config is not None
            if not self._config.is_file():
                raise BrokerError(f"the broker's configuration {self._config} does not exist; give an existing file")
            return self._config.absolute()
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="mqttcollab-broker-"))
        data = self._data_dir or self._temporary / "data"
        try:
            data.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise BrokerError(f"the broker's data_dir {data} can't be made: {exc.strerror}; choose another") from None
        if not os.access(data, os.W_OK | os.X_OK):
            # Mosquitto itself would run on and lose everything at its end.
            raise BrokerError(f"the broker's data_dir {data} can't be written; choose another")
        generate = _mosquitto_config if kind == "mosquitto" else _nats_config
        config = self._temporary / ("mosquitto.conf" if kind == "mosquitto" else "nats-server.conf")
        keep = self._data_dir is not None
        self._generated = generate(listeners, data.absolute(), keep) + self._extra_config + "\n"
        config.write_text(self._generated)
        return config

    async def _reap(self) -> None:
        if self._process is not None:
            await self._process.kill()

    async def _remove_files(self) -> None:
        if self._temporary is not None:
            folder, self._temporary = self._temporary, None
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


class _Died(Exception):
    """The process ended while we waited for it to be ready."""


class _Process(asyncio.SubprocessProtocol):
    """The process and its output; a protocol, not a stream, so that no task has to be stopped."""

    def __init__(self, level: int) -> None:
        self.lines: deque[str] = deque(maxlen=1000)
        self.ended = asyncio.Event()
        self.returncode = 0
        self.pid = 0
        self._level = level
        self._rest = b""
        self._news = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None

    @classmethod
    async def start(cls, executable: Path, config: Path, kind: str, verbose: bool) -> _Process:
        """Start the executable with its configuration; its signals are ours to send."""
        arguments = ["-c", str(config)]
        if verbose:
            arguments.append("-v" if kind == "mosquitto" else "-DV")
        # A session of its own, so that Ctrl-C reaches us alone and the broker goes last.
        _, process = await asyncio.get_running_loop().subprocess_exec(
            lambda: cls(logging.INFO if verbose else logging.DEBUG),
            str(executable),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the process."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport
        self.pid = transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        """Keep the output by lines."""
        assert isinstance(data, bytes)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            self.lines.append(text)
            _log.log(self._level, "%s", text)
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended and all its output was read."""
        assert self._transport is not None
        if self._rest:
            self.pipe_data_received(1, b"\n")
        self.returncode = self._transport.get_returncode() or 0
        self._transport.close()
        self.ended.set()
        self._news.set()

    async def wait(self) -> int:
        """Wait for the end; return the exit code."""
        await self.ended.wait()
        return self.returncode

    async def wait_for(self, pattern: re.Pattern[str]) -> None:
        """Wait for a line of output; raise _Died where the process ends before."""
        while not any(pattern.search(line) for line in self.lines):
            if self.ended.is_set():
                raise _Died
            self._news.clear()
            await self._news.wait()

    async def terminate(self) -> None:
        """SIGTERM, and SIGKILL to one that does not listen."""
        assert self._transport is not None
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                while not self.ended.is_set():
                    # Repeated: Mosquitto forgets a SIGTERM that comes just before it enters its main loop.
                    with contextlib.suppress(ProcessLookupError):
                        self._transport.terminate()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.ended.wait(), 0.25)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self._transport is not None
        with contextlib.suppress(ProcessLookupError):
            self._transport.kill()
        await self.ended.wait()

    def trouble(self) -> str:
        """What the broker itself said was wrong, in one line."""
        said = [_PREFIX.sub("", line) for line in self.lines if _TROUBLE.search(line)]
        if not said and self.lines:
            said = [_PREFIX.sub("", self.lines[-1])]
        return "; ".join(line.rstrip(".;") for line in said) or "it said nothing"


def _mosquitto_config(listeners: _Listeners, data: Path, keep: bool) -> str:
    """Render a Mosquitto configuration."""
    domain = "ipv6" if ":" in listeners.host else "ipv4"
    lines = [
        # Without it a request and its reply take 88 ms on loopback: Nagle waits for a delayed ACK.
        "set_tcp_nodelay true",
        # The default of 1,000 drops QoS 1 messages of an online subscriber in a burst. Not 0 (no limit):
        # Mosquitto before 2.0.22 then closes the connection after a publish that it refuses (its issue 3244).
        "max_queued_messages 1000000",
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


def _nats_config(listeners: _Listeners, data: Path, keep: bool) -> str:
    """Render a nats-server configuration."""
    address = _bracketed(listeners.host)
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


def _mosquitto_listeners(config: Path) -> _Listeners:
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
    return _Listeners(
        host=plain[0].get("host") or "127.0.0.1",
        port=int(plain[0]["port"]),
        websocket_port=int(sockets[0]["port"]) if sockets else None,
        tls="certfile" in plain[0],
        websocket_tls=bool(sockets) and "certfile" in sockets[0],
    )


def _nats_listeners(lines: deque[str], config: Path) -> _Listeners:
    """Read from what nats-server logged where it listens."""
    text = "\n".join(lines)
    mqtt = re.search(r"MQTT clients on (mqtt|tls)://(\S+):(\d+)", text)
    websocket = re.search(r"websocket clients on (wss?)://\S+:(\d+)", text)
    if mqtt is None:
        raise BrokerError(f'{config} opens no MQTT listener; add `mqtt {{ listen: "127.0.0.1:1883" }}`')
    return _Listeners(
        host=mqtt[2].strip("[]"),
        port=int(mqtt[3]),
        websocket_port=int(websocket[2]) if websocket else None,
        tls=mqtt[1] == "tls",
        websocket_tls=websocket is not None and websocket[1] == "wss",
    )


def _info(kind: str, version: str, listeners: _Listeners, pid: int) -> BrokerInfo:
    host = _reachable(listeners.host)
    url = f"{'mqtts' if listeners.tls else 'mqtt'}://{_bracketed(host)}:{listeners.port}"
    websocket_url = None
    if listeners.websocket_port is not None:
        # nats-server speaks MQTT on this path only; Mosquitto takes any.
        path = "/mqtt" if kind == "nats" else "/"
        scheme = "wss" if listeners.websocket_tls else "ws"
        websocket_url = f"{scheme}://{_bracketed(host)}:{listeners.websocket_port}{path}"
    return BrokerInfo(kind, version, host, listeners.port, listeners.websocket_port, url, websocket_url, pid)


async def _version(kind: str, executable: Path) -> str:
    """Ask the executable for its version, and refuse one that can't carry our topics."""
    option = "-h" if kind == "mosquitto" else "--version"
    try:
        process = await asyncio.create_subprocess_exec(
            str(executable),
            option,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as exc:
        raise BrokerError(f"{executable} can't be run: {exc.strerror}; install it again: {_INSTALL[kind]}") from None
    output, _ = await process.communicate()
    found = re.search(rb"v(?:ersion )?(\d+)\.(\d+)(\.[\w.-]+)?", output)
    if found is None:
        raise BrokerError(f"{executable} does not say its version; install it again: {_INSTALL[kind]}")
    if kind == "nats" and (int(found[1]), int(found[2])) < (2, 10):
        raise BrokerError(
            f"{executable} is older than 2.10, which refuses topics with dots; upgrade it: {_INSTALL[kind]}"
        )
    return b"".join([found[1], b".", found[2], found[3] or b""]).decode()


async def _accepts(host: str, port: int, process: _Process) -> None:
    """Return once the port accepts a connection; raise _Died where the process ends before."""
    while True:
        if process.ended.is_set():
            raise _Died
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(_reachable(host), port)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return
        await asyncio.sleep(0.005)


def _free_port(host: str) -> int:
    """Let the system choose a port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        _bind(probe, host, 0)
        return int(probe.getsockname()[1])


def _check_port(host: str, port: int) -> None:
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
            raise _PortTaken(port) from None
        what = {
            errno.EACCES: "ports below 1024 need root; choose a higher one",
            errno.EADDRNOTAVAIL: "it is no address of this machine; choose one that is, such as 127.0.0.1",
        }
        reason = what.get(exc.errno or 0, exc.strerror)
        raise BrokerError(f"the broker can't listen on {host} port {port}: {reason}") from None


def _port_in_use(port: int) -> str:
    return f"port {port} is in use; stop what listens there (`ss -ltnp` says), or choose another (0: a free one)"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> str:
    """Where a client on this machine connects, for the address that a broker listens on."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

"""One broker process, from its start to its end."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Final, Literal, Self

from mqttcollab.broker.listeners import (
    BrokerInfo,
    Listeners,
    PortTaken,
    check_port,
    describe,
    free_port,
    is_loopback,
    mosquitto_config,
    mosquitto_listeners,
    nats_config,
    nats_listeners,
    port_in_use,
)
from mqttcollab.broker.process import INSTALL, Died, Process, accepts, read_version
from mqttcollab.errors import BrokerError

BrokerKind = Literal["auto", "mosquitto", "nats"]

START_LIMIT_S: Final = 5.0
_PORT_ATTEMPTS: Final = 5
_SYSTEM_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_EXECUTABLE: Final = {"mosquitto": "mosquitto", "nats": "nats-server"}
_READY: Final = {"mosquitto": re.compile(r"version \S+ running"), "nats": re.compile(r"Server is ready")}


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
    how = ", or ".join(INSTALL[name] for name in wanted)
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
        if config is None and not is_loopback(host):
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
        self._listeners: Listeners | None = None
        self._temporary: Path | None = None
        self._generated = ""
        self._process: Process | None = None
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
            version = await read_version(kind, executable)
            for attempt in range(_PORT_ATTEMPTS):
                try:
                    return await self._launch(kind, executable, version)
                except PortTaken as exc:
                    await self._reap()
                    # A port that we chose can be taken by somebody else before the broker listens on it.
                    ours = self._config is None and exc.args[0] not in (self._port, self._websocket_port)
                    if not ours or self._info is not None or attempt == _PORT_ATTEMPTS - 1:
                        raise BrokerError(port_in_use(exc.args[0])) from None
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
            listeners = await asyncio.to_thread(mosquitto_listeners, config)
        for port in listeners.ports if listeners else ():
            check_port(listeners.host if listeners else self._host, port)
        process = self._process = await Process.start(executable, config, kind, self._verbose)
        # An own Mosquitto configuration may log elsewhere, so there only the ports tell.
        ready = None if self._config is not None and kind == "mosquitto" else _READY[kind]
        try:
            async with asyncio.timeout(START_LIMIT_S):
                if ready is not None:
                    await process.wait_for(ready)
                listeners = listeners or nats_listeners(process.lines, config)
                for port in listeners.ports:
                    await accepts(listeners.host, port, process)
        except TimeoutError:
            raise BrokerError(
                f"{_EXECUTABLE[kind]} does not accept connections within {START_LIMIT_S:g} s with {config}: "
                f"{process.trouble()}; correct the file, or look at why it hangs"
            ) from None
        except Died:
            raise self._death(kind, config, process, listeners) from None
        self._listeners = listeners
        self._info = describe(kind, version, listeners, process.pid)

    def _death(self, kind: str, config: Path, process: Process, listeners: Listeners | None) -> BrokerError | PortTaken:
        trouble = process.trouble()
        if listeners and "address already in use" in trouble.lower():
            for port in listeners.ports:
                try:
                    check_port(listeners.host, port)
                except PortTaken as taken:
                    return taken
        code = process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        what = "correct the file" if self._config else "correct extra_config"
        if self._config is None and (at := re.search(rf"{re.escape(str(config))}:(\d+)", trouble)):
            # The generated file is gone when this is read.
            what += f', here "{self._generated.splitlines()[int(at[1]) - 1]}"'
        return BrokerError(f"{_EXECUTABLE[kind]} ended at start ({how}) with {config}: {trouble}; {what}")

    def _choose_ports(self) -> Listeners:
        port = self._port or free_port(self._host)
        if self._websocket_port == "off":
            return Listeners(self._host, port, None)
        return Listeners(self._host, port, self._websocket_port or free_port(self._host))

    def _prepare(self, kind: str, listeners: Listeners | None) -> Path:
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
        generate = mosquitto_config if kind == "mosquitto" else nats_config
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

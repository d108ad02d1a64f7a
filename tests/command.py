"""Runs `mqttcollab` as a user does: in a process of its own, in a pipe or in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a failed command may write."""
        assert self.code == 1, (self.code, self.out, self.err)
        assert not self.out
        (line,) = self.err.splitlines()
        return line


class Command:
    """A running `mqttcollab`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._out = self._err = b""

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def line(self, start: str, *, err: bool = False) -> str:
        """Reads up to the first line that begins so."""
        stream = self.process.stderr if err else self.process.stdout
        assert stream is not None
        while line := await stream.readline():
            if err:
                self._err += line
            else:
                self._out += line
            if line.decode().startswith(start):
                return line.decode().rstrip("\n")
        raise AssertionError(f"no line begins with {start!r}: {self._out!r} {self._err!r}")

    async def result(self) -> Result:
        """What it wrote and its exit code, once it ends."""
        out, err = await self.process.communicate()
        return Result(self.process.returncode or 0, (self._out + out).decode(), (self._err + err).decode())


@contextlib.asynccontextmanager
async def started(
    *words: str, broker: str | None = None, module: str = "mqttcollab", **more: str
) -> AsyncIterator[Command]:
    """Starts a command; it is gone at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(broker, **more),
    )
    try:
        yield Command(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def run(*words: str, broker: str | None = None, **more: str) -> Result:
    """Runs a command to its end."""
    async with started(*words, broker=broker, **more) as command:
        return await command.result()


async def in_terminal(columns: int, *words: str, broker: str) -> list[str]:
    """Runs a command in a terminal that is so wide; its lines without colours and cursor movements."""
    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mqttcollab", *words),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(broker, TERM="xterm-256color"),
        )
    finally:
        os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO is the end
        while data := await asyncio.to_thread(os.read, ours, 4096):
            written += data
    os.close(ours)
    await process.wait()
    return _ESCAPES.sub("", written.decode()).replace("\r", "\n").splitlines()


def environment(broker: str | None, **more: str) -> dict[str, str]:
    """The environment, with this broker or none."""
    left_out = ("MQTTCOLLAB_BROKER", "COLUMNS", "NO_COLOR", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    path = os.pathsep.join([str(_HERE.parent), *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, **({"MQTTCOLLAB_BROKER": broker} if broker else {}), **more}


def processes_with(name: str, value: str) -> list[str]:
    """The command lines of all processes with this in their environment (elsewhere than on Linux: none is seen)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{name}={value}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found

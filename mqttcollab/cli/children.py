"""Commands of ours as child processes: none of them outlives the process that started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from mqttcollab.config import BROKER_VARIABLE

_STOP_LIMIT_S = 8.0
_KEPT_LINES = 50
_LOG_LINE = re.compile(r"^[\d-]{10} [\d:,]{8,12} (?:WARNING|ERROR) ")


class Child:
    """A `mqttcollab` command in a process of its own; its standard input is the line on which it hangs.

    Attributes:
        name: how the parent calls it.
        lines: the last lines of its standard error, if that is captured.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.process.returncode is not None

    @property
    def fate(self) -> str:
        """How it ended, with the last thing it said."""
        code = self.process.returncode or 0
        how = f"ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        said = _LOG_LINE.sub("", self.lines[-1]).removeprefix("error: ") if self.lines else ""
        return said if said and code > 0 else how


class Children:
    """Starts commands and ends them together.

    Args:
        capture: keeps what they write to standard error, instead of passing it on.
        on_line: called with every line of a captured standard error.
        on_end: called when one ends, unless it was asked to.
    """

    def __init__(
        self,
        *,
        capture: bool = False,
        on_line: Callable[[Child, str], None] | None = None,
        on_end: Callable[[Child], None] | None = None,
    ) -> None:
        self.all: list[Child] = []
        self._capture = capture
        self._on_line = on_line
        self._on_end = on_end
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, name: str, *words: str, broker: str | None = None, stdout: int | None = None) -> Child:
        """Starts `mqttcollab <words>`; `broker` becomes its MQTTCOLLAB_BROKER."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mqttcollab", "--until-stdin-ends", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE if self._capture else None,
            env={**os.environ, BROKER_VARIABLE: broker} if broker else None,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end them in order
        )
        child = Child(name, process)
        self.all.append(child)
        self._tasks.append(asyncio.create_task(self._follow(child)))
        return child

    async def stop(self) -> None:
        """SIGTERM to those that run, all at once; SIGKILL to one that does not end within 8 s."""
        self._stopping = True
        running = [child for child in self.all if not child.ended]
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
        try:
            async with asyncio.timeout(_STOP_LIMIT_S):
                await asyncio.gather(*(child.process.wait() for child in running))
        except TimeoutError:
            for child in running:
                with contextlib.suppress(ProcessLookupError):
                    child.process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, child: Child) -> None:
        if child.process.stderr is not None:
            while line := await _line(child.process.stderr):
                if text := line.decode("utf-8", "replace").rstrip():
                    child.lines.append(text)
                    if self._on_line is not None:
                        self._on_line(child, text)
        await child.process.wait()
        if not self._stopping and self._on_end is not None:
            self._on_end(child)


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:
        return b"(a line too long to show)\n"


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

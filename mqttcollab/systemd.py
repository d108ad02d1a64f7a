"""What systemd is told about an agent that it runs (sd_notify): ready, how it is, alive, stopping.

Written here, not taken from a package: it is one datagram, and those packages are bindings to be compiled against
libsystemd or have long been left alone. Without NOTIFY_SOCKET nothing happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

from mqttcollab.trouble import Troubles


def notify(state: str) -> None:
    """Sends assignments, one per line (`READY=1`), to the service manager, if there is one that listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        address = "\0" + address[1:]  # in Linux's abstract namespace
    elif not address.startswith("/"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(state.encode(errors="replace"), address)


def watchdog_s() -> float | None:
    """How long this process may be silent, in seconds; None for ever."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not microseconds.isdecimal():
        return None
    return int(microseconds) / 1e6 or None


class Supervised:
    """While it is entered, systemd knows the agent as ready and how it is, and hears of it while all goes on.

    `WATCHDOG=1` comes from the event loop, so not while that is blocked, and not once the broker has been out of reach
    for as long as systemd's patience lasts: then systemd starts the agent again.

    Args:
        troubles: the agent's.
        online: whether it has its connection.
    """

    def __init__(self, troubles: Troubles, online: Callable[[], bool]) -> None:
        self._troubles = troubles
        self._online = online
        self._pings: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        notify(f"READY=1\n{self._status}")
        self._troubles.listeners.add(self._say)
        if patience_s := watchdog_s():
            self._pings = asyncio.create_task(self._ping(patience_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._troubles.listeners.discard(self._say)
        notify("STOPPING=1")
        if self._pings is not None:
            self._pings.cancel()
            await asyncio.gather(self._pings, return_exceptions=True)

    @property
    def _status(self) -> str:
        reasons = " ".join(str(self._troubles).split())  # one line, or a reason could be taken for an assignment
        return f"STATUS=degraded: {reasons}" if reasons else "STATUS=online"

    def _say(self) -> None:
        notify(self._status)

    async def _ping(self, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        seen = loop.time()
        while True:
            if self._online():
                seen = loop.time()
            if loop.time() - seen <= patience_s:
                notify("WATCHDOG=1")
            await asyncio.sleep(patience_s / 2)

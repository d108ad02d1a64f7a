"""Request and reply over MQTT 5, QoS 1, in four ways; `worker` runs any of them.

A contender is a module with `NOTE`, `respond(url, ready)` and `asking(url)`: the first answers every request with
its own payload until it is cancelled, the second gives a function that sends the payload once and checks what comes
back.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, cast

Ask = Callable[[bytes], Awaitable[bytes]]

MAX_IN_FLIGHT = 64


class Module(Protocol):
    NOTE: str

    async def respond(self, url: str, ready: Callable[[], None]) -> None: ...
    def asking(self, url: str) -> AbstractAsyncContextManager[Ask]: ...


@dataclass(frozen=True)
class Contender:
    """One way to do it: its name, the modules it needs and how to install them."""

    name: str
    label: str
    requires: tuple[str, ...] = ()

    @property
    def missing(self) -> str | None:
        """Why it can't run here, in one line; None if it can."""
        for module in self.requires:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed: pip install 'mqttcollab[bench]'"
        return None

    def load(self) -> Module:
        return cast(Module, importlib.import_module(f"benchmarks.contenders.{self.name}"))


OURS = Contender("ours", "mqttcollab")
DURABLE = Contender("ours_durable", "mqttcollab with a journal", ("aiosqlite",))
PEERS = (
    Contender("bare_paho", "bare paho"),
    Contender("aiomqtt_peer", "aiomqtt", ("aiomqtt",)),
    Contender("faststream_peer", "FastStream", ("faststream", "zmqtt")),
)
BY_NAME = {c.name: c for c in (OURS, DURABLE, *PEERS)}

"""The demo's processes: a broker, the devices of a fleet file and an orchestrator, as a user would start them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from mqttcollab.cli.children import Child, Children
from mqttcollab.cli.show import errors, warn
from mqttcollab.errors import BrokerError, ConfigError

ORCHESTRATOR = "orchestrator"
_ONLINE = re.compile(r"@[a-z0-9-]+ is online: .*")
_TROUBLE = re.compile(r" (?:WARNING|ERROR) (.*)")
_START_LIMIT_S = 90.0


async def start_broker(stack: AsyncExitStack, on_end: Callable[[Child], None]) -> dict[str, Any]:
    """Starts a broker on free ports, in a process that cleans up after itself even if we are killed.

    Returns:
        What `mqttcollab broker --json` prints: kind, version, url, port …

    Raises:
        BrokerError: it can't be started.
    """
    children = await stack.enter_async_context(Children(capture=True, on_end=on_end))
    child = await children.start("the broker", "broker", "--port", "0", "--json", stdout=asyncio.subprocess.PIPE)
    assert child.process.stdout is not None
    line = await child.process.stdout.readline()
    if not line:
        await children.stop()
        raise BrokerError(child.fate)
    info: dict[str, Any] = json.loads(line)
    return info


class Crew:
    """The devices and the orchestrator.

    Args:
        say: called with a line about everybody who comes online.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.children = Children(capture=True, on_line=self._on_line, on_end=self._on_end)
        self._say = say
        self._online: set[str] = set()
        self._news = asyncio.Event()

    async def start(self, fleet: Path, names: list[str], broker: str) -> None:
        """Starts everybody and waits until each is online or has failed, which is said.

        Raises:
            ConfigError: the orchestrator or all devices failed.
        """
        await self.children.start(ORCHESTRATOR, "orchestrator", broker=broker)
        for name in names:
            await self.children.start(name, "agent", str(fleet), name, broker=broker)
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                while waiting := [c for c in self.children.all if not c.ended and c.name not in self._online]:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            names = [child.name for child in waiting]
            warn(f"{', '.join(names)} did not come online within {_START_LIMIT_S:g} s; the demo goes on without")
        for failed in (c for c in self.children.all if c.name == ORCHESTRATOR and c.ended):
            raise ConfigError(f"the orchestrator did not start: {failed.fate}")
        if self._online == {ORCHESTRATOR}:
            raise ConfigError(f"no device of {fleet} came online")

    def _on_line(self, child: Child, line: str) -> None:
        if found := _ONLINE.search(line):
            self._online.add(child.name)
            self._say(f"  {found[0]}")
            self._news.set()
        elif logging.getLogger().isEnabledFor(logging.INFO):
            errors.print(f"{child.name}: {line}", markup=False)
        elif found := _TROUBLE.search(line):
            warn(f"{child.name}: {found[1]}")

    def _on_end(self, child: Child) -> None:
        if child.name != ORCHESTRATOR or child.name in self._online:
            warn(f"{child.name} is missing: {child.fate}; the demo goes on without it")
        self._news.set()

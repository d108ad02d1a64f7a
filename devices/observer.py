"""Publishing a sensor's observations, so that its answers can name them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mqttcollab import Agent, Observation, Source


class Observer:
    """Publishes observations of one service and remembers the last one."""

    def __init__(self, agent: Agent, service: str, units: Mapping[str, str]) -> None:
        self._agent = agent
        self._service = service
        self._units = dict(units)
        self._last: Observation | None = None

    async def publish(self, text: str, values: Mapping[str, float]) -> None:
        """Publish an observation; its units are those of its values."""
        units = {key: unit for key, unit in self._units.items() if key in values}
        self._last = await self._agent.observe(self._service, text=text, values=dict(values), units=units)

    def source(self, document: str, text: str) -> Source:
        """Return the source of an answer given now: the file, and the observation if it is the published one."""
        same = self._last if self._last is not None and self._last.text == text else None
        return Source(
            document=document,
            observation=same.id if same else None,
            time_ms=same.time_ms if same else time.time_ns() // 1_000_000,
        )

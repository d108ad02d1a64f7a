"""A record that is played back as time goes."""

from __future__ import annotations

import time
from collections.abc import Callable

from mqttcollab.errors import ConfigError


class Replay:
    """Walks through `count` positions from `start`, one every `seconds`, and begins again at the end."""

    def __init__(
        self, count: int, *, start: int = 0, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0 <= start < count:
            raise ConfigError(f"setting 'start' is {start}; the record has the rows 0 to {count - 1}")
        if not seconds > 0:
            raise ConfigError(f"the time per row is {seconds} s; it must be above 0")
        self.count = count
        self.start = start
        self.seconds = seconds
        self._clock = clock
        self._began = clock()

    def position(self) -> int:
        """Return the current position."""
        return (self.start + int((self._clock() - self._began) / self.seconds)) % self.count

"""An event loop whose clock runs faster than time, so that real agents go through an hour in minutes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from mqttcollab.errors import ConfigError

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Waits for so much less; `select` counts microseconds, where `epoll` rounds up to milliseconds."""

    def __init__(self, speed_up: float) -> None:
        super().__init__()
        self._speed_up = speed_up

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout if timeout is None else timeout / self._speed_up)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, speed_up: float) -> None:
        self._speed_up = speed_up
        super().__init__(_Selector(speed_up))

    def time(self) -> float:
        return super().time() * self._speed_up


async def in_fast_time(speed_up: float, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs work on an event loop of its own, in a thread, whose every second is so much shorter.

    Time-outs, pauses and all that is measured by the loop's clock shrink alike; a network takes its own time.

    Args:
        speed_up: seconds of the loop's clock per second.
        work: makes the coroutine.

    Raises:
        ConfigError: the speed-up is no number above 0.
    """
    if not 0 < speed_up < math.inf:
        raise ConfigError(f"the speed-up is {speed_up}; it must be a number above 0")
    fast = _Loop(speed_up)
    running: list[asyncio.Task[Any]] = []

    async def kept() -> T:
        running.extend(filter(None, [asyncio.current_task()]))
        return await work()

    def run() -> T:
        with asyncio.Runner(loop_factory=lambda: fast) as runner:
            return runner.run(kept())

    thread = asyncio.ensure_future(asyncio.to_thread(run))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        with contextlib.suppress(RuntimeError):  # it is done and closed
            fast.call_soon_threadsafe(lambda: [task.cancel() for task in running])
        await asyncio.wait([thread])
        raise

"""Threads for handlers that are plain functions."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mqttcollab.places import Places


@dataclass(eq=False, slots=True)
class _LeftBehind:
    """What goes on in a thread after everybody stopped waiting for it."""

    due: float


class Threads:
    """Runs plain functions, each in a thread of its own, at most so many at once.

    Not asyncio's own threads: these are few, and the connection to the broker needs them too, so functions that
    never return would cut the agent off. A thread can't be ended, so it holds its place until its function
    returns, also after everybody stopped waiting for it; but it does not keep the process alive.

    Args:
        name: for the threads' names.
        places: how many run at once; more wait.
    """

    def __init__(self, name: str, places: int) -> None:
        self._name = name
        self._places = asyncio.Semaphore(places)

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls `function(*args)` in a thread, in the caller's context; returns or raises what it does."""
        return await self.run_in(None, math.inf, function, *args)

    async def run_in(self, places: Places | None, due: float, function: Callable[..., Any], *args: Any) -> Any:
        """The same for a caller who holds one of `places`: if he is cancelled it is held until the function returns.

        Args:
            due: the loop time by which it should.
        """
        left_behind = _LeftBehind(due)
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def finish(result: Any, error: BaseException | None) -> None:
            self._places.release()
            if places is not None:
                places.leave(left_behind)
            if done.cancelled():
                return
            if error is None:
                done.set_result(result)
            elif isinstance(error, StopIteration):  # a future can't hold it
                done.set_exception(RuntimeError("the function raised StopIteration"))
            else:
                done.set_exception(error)

        def work() -> None:
            result, failure = None, None
            try:
                result = context.run(function, *args)
            except BaseException as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
                loop.call_soon_threadsafe(finish, result, failure)

        threading.Thread(target=work, name=f"handler of {self._name}", daemon=True).start()
        try:
            return await done
        except asyncio.CancelledError:
            if done.cancelled() and places is not None:
                places.keep(left_behind)
            raise

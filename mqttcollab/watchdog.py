"""Notices what does not go on: an event loop that is blocked, and handlers that hang."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from mqttcollab.places import GRACE_S, Places
from mqttcollab.trouble import Troubles

_log = logging.getLogger(__name__)

_LOOP = "event loop"
_TICK_S = 1.0
# How long an agent is degraded after its event loop was blocked, as a multiple of the time that is allowed.
_REMEMBERED = 12
_SHOWN_FRAMES = 5
_NOT_USERS = (str(Path(__file__).parent), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))


class LoopWatch:
    """A thread that asks an event loop for a sign of life, every second or four times in `stall_s`.

    The agents on one event loop share it.

    Args:
        stall_s: after so many seconds without a sign the loop counts as blocked.
    """

    _shared: ClassVar[dict[tuple[asyncio.AbstractEventLoop, float], LoopWatch]] = {}

    def __init__(self, stall_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._stall_s = stall_s
        self._tick_s = min(_TICK_S, stall_s / 4)
        self._listeners: set[Callable[[str | None], None]] = set()
        self._loop_thread = threading.get_ident()
        self._turned = time.monotonic()
        self._asked = False
        self._where: str | None = None
        self._stood_still_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog of the event loop", daemon=True)

    @classmethod
    def listen(cls, stall_s: float, listener: Callable[[str | None], None]) -> LoopWatch:
        """Calls `listener` on the running loop at every sign of life: with None, or how the loop was blocked before."""
        key = (asyncio.get_running_loop(), stall_s)
        watch = cls._shared.get(key)
        if watch is None:
            watch = cls._shared[key] = cls(stall_s)
            watch._thread.start()
        watch._listeners.add(listener)
        return watch

    def leave(self, listener: Callable[[str | None], None]) -> None:
        """Calls the listener no more; without one the thread ends."""
        self._listeners.discard(listener)
        if not self._listeners:
            del self._shared[self._loop, self._stall_s]
            self._stop.set()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self._tick_s):
            now = time.monotonic()
            if now - before - self._tick_s > self._stall_s / 2:
                # We could not run either: the process was stopped, or C code held the interpreter's lock.
                self._stood_still_s += now - before
                self._turned = max(self._turned, now - self._stall_s / 2)
            elif now - self._turned > self._stall_s and self._where is None:
                self._where = self._report(now - self._turned)
            before = now
            if not self._asked:
                self._asked = True
                with contextlib.suppress(RuntimeError):  # the loop was closed
                    self._loop.call_soon_threadsafe(self._turn)

    def _report(self, seconds: float) -> str:
        """Logs where the loop hangs; returns the innermost place in the user's code."""
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return "an unknown place"
        stack = traceback.extract_stack(frame)
        lines = "".join(traceback.format_list(stack[-_SHOWN_FRAMES:])).rstrip()
        _log.error("the event loop has been blocked for %.1f s; await what takes long. It is here:\n%s", seconds, lines)
        users = [place for place in stack if not place.filename.startswith((*_NOT_USERS, "<"))]
        place = (users or stack)[-1]
        return f"{Path(place.filename).name}:{place.lineno}"

    def _turn(self) -> None:
        now, blocked = time.monotonic(), None
        if self._where is not None:
            blocked = f"the event loop was blocked for {now - self._turned:.1f} s in {self._where}"
        elif self._stood_still_s > self._stall_s:
            blocked = f"the process stood still for {self._stood_still_s:.1f} s"
            _log.warning("%s: it was stopped, or code held the interpreter's lock", blocked)
        self._turned, self._where, self._stood_still_s, self._asked = now, None, 0.0, False
        for listener in list(self._listeners):
            listener(blocked)


class Watchdog:
    """Degrades an agent while handlers of it hang, and for a while after its event loop was blocked.

    Args:
        troubles: the agent's.
        places: where its services' handlers run, by service.
        stall_s: how long the event loop may be blocked, in seconds.
    """

    def __init__(self, troubles: Troubles, places: Mapping[str, Places], stall_s: float) -> None:
        self._troubles = troubles
        self._places = places
        self._stall_s = stall_s
        self._blocked = 0.0
        self._hanging: dict[str, int] = {}
        self._watch: LoopWatch | None = None

    def start(self) -> None:
        """Starts to watch the running event loop."""
        self._watch = LoopWatch.listen(self._stall_s, self._look)

    def stop(self) -> None:
        """Watches no more; what it said is taken back."""
        if self._watch is not None:
            self._watch.leave(self._look)
        for source in (_LOOP, *map(_handlers_of, self._places)):
            self._troubles.tell(source, None)

    def _look(self, blocked: str | None) -> None:
        now = time.monotonic()
        if blocked is not None:
            self._blocked = now
            self._troubles.tell(_LOOP, blocked)
        elif now - self._blocked > _REMEMBERED * self._stall_s:
            self._troubles.tell(_LOOP, None)
        for service, places in self._places.items():
            hanging = places.look()
            if len(hanging) != self._hanging.get(service, 0):
                self._hanging[service] = len(hanging)
                self._troubles.tell(_handlers_of(service), _describe(service, hanging))


async def end_tasks(problem: str | None) -> None:
    """Cancels what still runs, at the end of a process; what ignores it does not keep the process alive.

    Args:
        problem: what the process ends with, if it is an error.
    """
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    stubborn = (await asyncio.wait(tasks, timeout=GRACE_S))[1] if tasks else None
    if stubborn:  # asyncio would wait for them for ever
        _log.error("%d of its tasks ignore that they are cancelled: the process ends without them", len(stubborn))
        if problem is not None:
            sys.stderr.write(f"{problem}\n")
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if problem is None else 1)


def _handlers_of(service: str) -> str:
    return f"handlers of {service}"


def _describe(service: str, hanging: list[float]) -> str | None:
    """Since when, not for how long: the status stays as it is until something changes."""
    if not hanging:
        return None
    since = time.strftime("%H:%M:%S UTC", time.gmtime(time.time() - hanging[0]))
    who = f"a handler of {service} has" if len(hanging) == 1 else f"{len(hanging)} handlers of {service} have"
    reason = f"{who} hung since {since}"
    _log.error("%s: it goes on past its deadline; nobody waits for it any more", reason)
    return reason

"""How a command ends: Ctrl-C, SIGTERM, a closed terminal, and the death of the program that started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from mqttcollab.cli.show import errors

T = TypeVar("T")

# On Windows there is no SIGHUP.
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_ORPHAN_LIMIT_S = 5.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a command that has something to close. A signal cancels it and makes the exit code 128 + its number."""
    received: list[int] = []

    async def cancellable() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            received.append(number)
            task.cancel()

        on_signal(stop)
        return await main

    try:
        return asyncio.run(cancellable())
    except (asyncio.CancelledError, Exception):
        if not received:
            raise
        raise SystemExit(128 + received[0]) from None


def on_signal(react: Callable[[int], None]) -> None:
    """Calls `react` on the running loop with the first signal that asks the process to end; a second one ends it."""
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def receive(number: int) -> None:
        if received:
            errors.show_cursor()
            os._exit(128 + number)
        received.append(number)
        react(number)

    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, receive, number)


def stop_event() -> asyncio.Event:
    """An event that is set when the process is asked to end, for commands that run until then."""
    stop = asyncio.Event()
    on_signal(lambda _: stop.set())
    return stop


def die_at_once() -> None:
    """For commands that leave nothing behind: Ctrl-C ends them whatever they wait for, without a word."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_with_stdin() -> None:
    """Ends this process with SIGTERM once standard input is closed; 5 s later, if need be, at once.

    Whoever starts it holds the other end of that pipe, which the system closes however he dies (also by SIGKILL).
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_LIMIT_S)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-stdin", daemon=True).start()

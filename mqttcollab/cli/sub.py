"""`mqttcollab sub`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import deque
from typing import Any

from mqttcollab.cli import show
from mqttcollab.cli.client import running_client
from mqttcollab.cli.filters import check_filter
from mqttcollab.cli.show import clean, console, errors, safe
from mqttcollab.codec import decode_map
from mqttcollab.errors import MessageError
from mqttcollab.transport.base import TransportMessage

_SHOWN_ELEMENTS = 4
_MOST_WAITING = 10_000
_MOST_WAITING_BYTES = 32 << 20
_MOST_BYTES = 16 << 20
_BATCH = 100
_NEWS_S = 5.0


async def subscribe(
    filters: list[str], broker: str | None, *, count: int | None, seconds: float | None, retained: bool, as_json: bool
) -> None:
    """Prints messages until it is interrupted, has shown `count`, or `seconds` are over."""
    for name in filters:
        check_filter(name)
    async with running_client(broker) as me:
        printer = Printer(as_json=as_json, count=count)

        last: TransportMessage | None = None

        def on_message(message: TransportMessage) -> None:
            nonlocal last
            if message is not last and (retained or not message.retain):  # filters may overlap
                printer.put(message)
            last = message

        interrupted = True
        try:
            await me.transport.subscribe(filters, on_message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await printer.done.wait()
            interrupted = False
        finally:
            printer.stop(discard=interrupted)


class Printer:
    """Prints messages in a thread of its own, so that a slow reader of our output holds up nobody but itself.

    What comes while 10,000 messages or 32 MiB wait is dropped, and how many that were is said on standard error.

    Args:
        as_json: a line of JSON for each message.
        count: how many to print; None for all.

    Attributes:
        done: set when `count` is reached or nobody reads our output any more.
    """

    def __init__(self, *, as_json: bool, count: int | None) -> None:
        self.done = asyncio.Event()
        self._as_json = as_json
        self._left = count
        self._waiting: deque[TransportMessage] = deque()
        self._bytes = 0
        self._dropped = 0
        self._closed = False
        self._ready = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="printer", daemon=True)
        self._thread.start()

    def put(self, message: TransportMessage) -> None:
        """Takes a message, or drops it."""
        with self._ready:
            size = len(message.payload)
            if len(self._waiting) >= _MOST_WAITING or self._bytes + size > _MOST_WAITING_BYTES:
                self._dropped += 1
                return
            self._bytes += size
            self._waiting.append(message)
            self._ready.notify()

    def stop(self, *, discard: bool) -> None:
        """Prints what waits unless it is to be discarded, and ends the process if our reader has stopped reading."""
        with self._ready:
            self._closed = True
            if discard:
                self._waiting.clear()
            self._ready.notify()
        self._thread.join(1.0)
        self._say_dropped()
        if self._thread.is_alive():
            os._exit(1)  # it holds the lock of standard output, for which Python would wait

    def _run(self) -> None:
        said, said_at = 0, time.monotonic()
        try:
            while batch := self._take():
                self._print(batch)
                if self._dropped > said and time.monotonic() > said_at + _NEWS_S:
                    said, said_at = self._dropped, time.monotonic()
                    self._say_dropped()
        except OSError:
            with contextlib.suppress(
                OSError, ValueError
            ):  # the reader has gone: what Python still flushes goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self.done.set)

    def _take(self) -> list[TransportMessage]:
        """The next messages, at least one; none at the end."""
        with self._ready:
            while not self._waiting and not self._closed and self._left != 0:
                self._ready.wait()
            most = _BATCH if self._left is None else min(_BATCH, self._left)
            batch = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._bytes -= sum(len(message.payload) for message in batch)
            if self._left is not None:
                self._left -= len(batch)
        return batch

    def _print(self, batch: list[TransportMessage]) -> None:
        text = "\n".join(line(message, as_json=self._as_json) for message in batch)
        if self._as_json or not console.is_terminal:
            show.print_plain(text)
        else:
            console.print(text, soft_wrap=True)

    def _say_dropped(self) -> None:
        if self._dropped:
            text = f"{self._dropped} messages were dropped so far: they come faster than they are read"
            errors.print(text, style="yellow")


def line(message: TransportMessage, *, as_json: bool) -> str:
    """A message in one line, with rich's markup if it goes to a terminal."""
    content = readable(message.payload)
    if as_json:
        whole = {"topic": message.topic, "retain": message.retain, "qos": message.qos, "payload": content}
        return show.as_json(whole)
    text = content if isinstance(content, str) else _fields(content)
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    if not console.is_terminal:
        return f"{message.topic}{' (retained)' if message.retain else ''} {clean(text)}"
    return f"[cyan]{safe(message.topic)}[/]{' [dim](retained)[/]' if message.retain else ''} {safe(text)}"


def readable(payload: bytes) -> Any:
    """A payload for people: a map for JSON and CBOR, text for text, else its size and first bytes."""
    try:
        return decode_map(payload, limit=_MOST_BYTES)
    except MessageError:
        pass
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        return f"{len(payload)} bytes: {payload[:16].hex(' ')}{' …' if len(payload) > 16 else ''}"


def _fields(content: dict[str, Any]) -> str:
    return "  ".join(f"{key}={_short(value)}" for key, value in content.items())


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) > 2 * _SHOWN_ELEMENTS and all(isinstance(v, int | float) for v in value):
        norm = sum(v * v for v in value) ** 0.5
        head = ", ".join(f"{v:.3f}" for v in value[:_SHOWN_ELEMENTS])
        return f"[{head}, … {len(value)} dimensions, norm {norm:.3f}]"
    return show.as_json(value)

"""`mqttcollab sub`."""

from __future__ import annotations

import asyncio
from typing import Any

from rich.markup import escape

from mqttcollab.cli.show import client, console, print_json
from mqttcollab.codec import decode_map
from mqttcollab.errors import MessageError
from mqttcollab.transport.base import TransportMessage

_SHOWN_ELEMENTS = 4
_MOST_BYTES = 16 << 20


async def subscribe(
    filters: list[str], broker: str | None, *, count: int | None, seconds: float | None, retained: bool, as_json: bool
) -> None:
    """Prints messages until it is interrupted, has seen `count`, or `seconds` are over."""
    messages: asyncio.Queue[TransportMessage] = asyncio.Queue()
    me = client(broker)
    async with me.running(broker):
        await me.transport.subscribe(filters, messages.put_nowait)
        shown = 0
        try:
            async with asyncio.timeout(seconds):
                while count is None or shown < count:
                    message = await messages.get()
                    if message.retain and not retained:
                        continue
                    show(message, as_json=as_json)
                    shown += 1
        except TimeoutError:
            return


def show(message: TransportMessage, *, as_json: bool) -> None:
    """Prints one message."""
    content = readable(message.payload)
    if as_json:
        print_json({"topic": message.topic, "retain": message.retain, "qos": message.qos, "payload": content})
        return
    text = content if isinstance(content, str) else _line(content)
    console.print(f"[cyan]{escape(message.topic)}[/]{' [dim](retained)[/]' if message.retain else ''} {escape(text)}")


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


def _line(content: dict[str, Any]) -> str:
    return "  ".join(f"{key}={_short(value)}" for key, value in content.items())


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 2 * _SHOWN_ELEMENTS and all(isinstance(v, int | float) for v in value):
        norm = sum(v * v for v in value) ** 0.5
        head = ", ".join(f"{v:.3f}" for v in value[:_SHOWN_ELEMENTS])
        return f"[{head}, … {len(value)} dimensions, norm {norm:.3f}]"
    return str(value)

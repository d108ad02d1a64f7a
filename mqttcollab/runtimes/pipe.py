"""What passes between a runtime and its model's process: CBOR items, each after its length in four bytes.

To the child: `None` (load the model) or a request, then for each piece of news whether to go on. From the child: lists,
their kind first: `reading` (a slice of the prompt is read) and `chunk` are news; `ready`, `done`, `stopped`, `refused`
and `failed` end a request.
"""

from __future__ import annotations

import json
import os
import select
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import cbor2

from mqttcollab.errors import ConfigError, MqttCollabError, RequestError, RuntimeFailure
from mqttcollab.runtimes.base import ChatMessage, GenerationParameters
from mqttcollab.runtimes.grammar import as_json

_HEAD = struct.Struct(">I")
_PIECE = 65536


class Ended(Exception):
    """The other side has closed its end."""


class Silent(Exception):
    """The other side said nothing for as long as it may."""


class Pipe:
    """Both directions, blocking; to be used by one reader and one writer at a time.

    Args:
        read, write: file descriptors, which stay the caller's.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = bytearray()

    def send(self, item: Any, limit_s: float | None = None) -> None:
        """Raises Ended where nobody reads any more; Silent where nothing is read for so long (of what blocks not)."""
        data = cbor2.dumps(item)
        rest = memoryview(_HEAD.pack(len(data)) + data)
        while rest:
            try:
                rest = rest[os.write(self._write, rest) :]
            except BlockingIOError:
                _wait(self._write, select.POLLOUT, limit_s)
            except OSError as error:
                raise Ended from error

    def receive(self, limit_s: float | None = None) -> Any:
        """The next item. Raises Ended, or Silent where nothing comes for so long."""
        (length,) = _HEAD.unpack(self._take(_HEAD.size, limit_s))
        return cbor2.loads(self._take(length, limit_s))

    def _take(self, count: int, limit_s: float | None) -> bytes:
        while len(self._buffer) < count:
            _wait(self._read, select.POLLIN, limit_s)
            try:
                data = os.read(self._read, _PIECE)
            except OSError as error:
                raise Ended from error
            if not data:
                raise Ended
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def _wait(descriptor: int, event: int, limit_s: float | None) -> None:
    poll = select.poll()  # select() takes no descriptor over 1023
    poll.register(descriptor, event)
    if not poll.poll(None if limit_s is None else limit_s * 1000):
        raise Silent


def pack_request(messages: Sequence[ChatMessage], parameters: GenerationParameters) -> dict[str, Any]:
    """A request as CBOR can hold it. Raises RequestError: `bad_request`, the schema is not JSON."""
    return {
        "messages": [[message.role, _sound(message.content)] for message in messages],
        "max_tokens": parameters.max_tokens,
        "temperature": parameters.temperature,
        "top_p": parameters.top_p,
        "top_k": parameters.top_k,
        "stop": [text for text in parameters.stop if text == _sound(text)],  # another one never comes
        "seed": parameters.seed,
        "schema": None if parameters.schema is None else as_json(parameters.schema),
        "loop_tokens": parameters.loop_tokens,
    }


def unpack_request(packed: Mapping[str, Any]) -> tuple[list[ChatMessage], GenerationParameters]:
    """The request."""
    rest = dict(packed)
    messages = [ChatMessage(role, content) for role, content in rest.pop("messages")]
    schema, stop = rest.pop("schema"), tuple(rest.pop("stop"))
    return messages, GenerationParameters(stop=stop, schema=None if schema is None else json.loads(schema), **rest)


def pack_error(error: MqttCollabError) -> list[Any]:
    """An error that is to be raised at the other end."""
    if isinstance(error, RequestError):
        return ["refused", "request", error.code, error.message, error.retry_after_ms]
    return ["refused", "config" if isinstance(error, ConfigError) else "runtime", str(error)]


def unpack_error(kind: str, *facts: Any) -> MqttCollabError:
    """The error that the other end ran into."""
    if kind == "request":
        code, message, retry_after_ms = facts
        return RequestError(code, message, retry_after_ms=retry_after_ms)
    return ConfigError(*facts) if kind == "config" else RuntimeFailure(*facts)


def _sound(text: str) -> str:
    """Without halves of surrogate pairs, which are no characters."""
    return text.encode(errors="replace").decode()

"""A buffered socket between paho and the operating system: one read and one write per turn of the loop.

paho reads a packet in three system calls and writes each packet in one of its own; with this in between, a
burst of packets costs one of each, and TLS records that were decrypted ahead can't be overlooked.
"""

from __future__ import annotations

import ssl
from typing import Protocol

_CHUNK = 64 * 1024


class SocketLike(Protocol):
    """What paho hands over: a TCP or TLS socket, or its WebSocket wrapper."""

    def recv(self, size: int, /) -> bytes: ...  # noqa: D102
    def send(self, data: bytes, /) -> int: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102
    def fileno(self) -> int: ...  # noqa: D102
    def setblocking(self, flag: bool, /) -> None: ...  # noqa: D102


class BufferedSocket:
    """Wraps a non-blocking socket; `recv` serves from a buffer, `send` fills one that `flush` empties."""

    def __init__(self, inner: SocketLike, *, plain: bool) -> None:
        self._inner = inner
        self._plain = plain
        self._in = b""
        self._pos = 0
        self._drained = False
        self._served = 0
        self._out = bytearray()

    @property
    def unread(self) -> bool:
        """Whether there may be bytes that nobody has read yet, without a word from the event loop."""
        return self._pos < len(self._in) or self._served >= _CHUNK

    @property
    def unsent(self) -> int:
        """How many bytes wait for the operating system to take them."""
        return len(self._out)

    def readable(self) -> None:
        """The event loop says that there is something to read."""
        self._drained = False

    def new_turn(self) -> None:
        """Lets 64 KiB be read; paho on its own goes on for as long as there is something."""
        self._served = 0

    def recv(self, size: int) -> bytes:
        """Up to `size` bytes; raises BlockingIOError when there are none for this turn, returns b"" at the end."""
        if self._served >= _CHUNK:
            raise BlockingIOError
        if self._pos >= len(self._in):
            if self._drained:
                raise BlockingIOError
            self._in, self._pos = self._inner.recv(_CHUNK), 0
            # A short read of a plain socket means that it is empty: spares the call that would say so.
            self._drained = self._plain and len(self._in) < _CHUNK
            if not self._in:
                return b""
        chunk = self._in[self._pos : self._pos + size]
        self._pos += len(chunk)
        self._served += len(chunk)
        return chunk

    def send(self, data: bytes | bytearray) -> int:
        """Takes all of `data`; `flush` sends it."""
        self._out += data
        return len(data)

    def flush(self) -> bool:
        """Sends what is buffered; False if the socket is full for now. Raises OSError when it is broken."""
        while self._out:
            try:
                sent = self._inner.send(bytes(self._out))
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            del self._out[:sent]
        return True

    def close(self) -> None:
        """Closes the socket."""
        self._inner.close()

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._inner.fileno()

    def setblocking(self, flag: bool) -> None:
        """Passes it on."""
        self._inner.setblocking(flag)

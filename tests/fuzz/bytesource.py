"""What a target reads its decisions from: the fuzzer's bytes, in order; once they are used up, zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_LEAVES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**53, 2**64 - 1, -(2**64), 0.5, -0.0, 1e308, "", "a", "\0", "é\U0001f600", "#1", "+",
)  # fmt: skip


class ByteSource:
    """Bytes as numbers, texts and choices."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return max(0, len(self._data) - self._at)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def chunk(self) -> bytes:
        """As many bytes as the next two say, at most what is left."""
        size = self.byte() << 8 | self.byte()
        found = self._data[self._at : self._at + size]
        self._at += size
        return found

    def rest(self) -> bytes:
        found = self._data[self._at :]
        self._at = len(self._data)
        return found

    def text(self) -> str:
        size = self.byte() % 64
        found = self._data[self._at : self._at + size]
        self._at += size
        return found.decode("utf-8", "replace")

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.byte() % len(choices)]

    def tree(self, names: Sequence[str], depth: int = 0) -> Any:
        """A value that JSON and CBOR can both hold, with keys that messages have."""
        kind = self.byte() % 8
        if kind < 2 and depth < 16 and self.left:
            return {self.pick(names): self.tree(names, depth + 1) for _ in range(self.byte() % 8)}
        if kind == 2 and depth < 16 and self.left:
            return [self.tree(names, depth + 1) for _ in range(self.byte() % 6)]
        if kind == 3:
            return self.text()
        if kind == 4:
            return self.byte() - 128
        return self.pick(_LEAVES)

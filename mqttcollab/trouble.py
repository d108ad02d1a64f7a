"""What is wrong with a part of an agent, and with the agent as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Troubled(Protocol):
    """A part that may be in trouble and recovers by itself: a journal, a model's runtime."""

    @property
    def trouble(self) -> str | None:
        """What is wrong just now, in one line; None if all is well."""
        ...

    def on_trouble(self, listener: Callable[[str | None], None]) -> None:
        """Calls `listener` on the event loop whenever `trouble` has changed."""
        ...


class Troubles:
    """What is wrong with an agent just now, by source; for use from any thread.

    Attributes:
        listeners: called after every change, by whoever made it.
    """

    def __init__(self) -> None:
        self.listeners: set[Callable[[], None]] = set()
        self._reasons: dict[str, str] = {}

    def __str__(self) -> str:
        """All reasons, the oldest first; empty if nothing is wrong."""
        return "; ".join(self._reasons.copy().values())

    def tell(self, source: str, reason: str | None) -> None:
        """Notes why a source is in trouble; None or nothing: it no longer is."""
        if (reason or None) == self._reasons.get(source):
            return
        if reason:
            self._reasons[source] = reason
        else:
            self._reasons.pop(source, None)
        for listener in self.listeners.copy():
            listener()

"""Which handlers a message goes to. What a lookup costs depends on the topic's levels, not on the number of filters."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from mqttcollab.transport.base import Handler, TransportMessage, Work

_log = logging.getLogger(__name__)


class _Node:
    """A level of the tree of filters: what may follow it, and who ends here (by the filter as it was given)."""

    __slots__ = ("below", "handlers")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.handlers: dict[str, Handler] = {}


class Router:
    """A tree over the levels of all filters; a registry that follows a thousand agents has thousands of them."""

    def __init__(self) -> None:
        self.filters: dict[str, int] = {}
        self._root = _Node()

    def add(self, filter_: str, handler: Handler, qos: int) -> None:
        """Routes a filter; a second handler for the same filter replaces the first."""
        self.filters[filter_] = qos
        node = self._root
        for level in _levels(filter_):
            node = node.below.setdefault(level, _Node())
        node.handlers[filter_] = handler

    def remove(self, filter_: str) -> bool:
        """Forgets a filter; False if it was not known."""
        if self.filters.pop(filter_, None) is None:
            return False
        path, levels = [self._root], _levels(filter_)
        for level in levels:
            path.append(path[-1].below[level])
        del path[-1].handlers[filter_]
        while levels and not (path[-1].handlers or path[-1].below):
            path.pop()
            del path[-1].below[levels.pop()]
        return True

    def route(self, message: TransportMessage, otherwise: Handler | None = None) -> list[Work]:
        """Calls every handler whose filter matches; returns what has to be awaited before the acknowledgement.

        Args:
            message: what came.
            otherwise: called where no filter matches.
        """
        waits: list[Work] = []
        handlers = list(self._handlers(message.topic))
        if not handlers and otherwise is not None:
            handlers.append(otherwise)
        for handler in handlers:
            try:
                if (wait := handler(message)) is not None:
                    waits.append(wait)
            except Exception:  # one handler's mistake may not break the connection of all
                _log.exception("a handler for %s failed", message.topic)
        return waits

    def _handlers(self, topic: str) -> Iterator[Handler]:
        nodes = [self._root]
        hidden = topic.startswith("$")  # wildcards in the first place don't match such topics
        for level in topic.split("/"):
            following = []
            for node in nodes:
                if (exact := node.below.get(level)) is not None:
                    following.append(exact)
                if not hidden:
                    if (any_one := node.below.get("+")) is not None:
                        following.append(any_one)
                    if (rest := node.below.get("#")) is not None:
                        yield from rest.handlers.values()
            nodes, hidden = following, False
        for node in nodes:
            yield from node.handlers.values()
            if (rest := node.below.get("#")) is not None:  # "a/#" matches "a" too
                yield from rest.handlers.values()


def _levels(filter_: str) -> list[str]:
    if filter_.startswith("$share/"):
        filter_ = filter_[len("$share/") :].partition("/")[2]
    return filter_.split("/")

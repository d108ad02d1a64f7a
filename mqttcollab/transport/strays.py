"""Messages that nobody wants: a session may bring the subscriptions of a life before, which wanted more."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from mqttcollab.errors import TopicError
from mqttcollab.topics import anycast_filter
from mqttcollab.transport.base import Handler, TransportMessage, Work

_log = logging.getLogger(__name__)

_MOST_TOPICS = 64


class Strays:
    """Notes each topic of theirs once, and ends the subscription to exactly that topic, or its anycast.

    A wildcard can't be told from the message; it goes with the session, at the next clean stop or by its expiry.

    Args:
        unsubscribe: ends the subscriptions to these filters, if there are such.

    Attributes:
        handler: gets every such message; None where nobody wants even those.
    """

    def __init__(self, unsubscribe: Callable[[list[str]], None]) -> None:
        self.handler: Handler | None = None
        self._unsubscribe = unsubscribe
        self._topics: set[str] = set()

    def __call__(self, message: TransportMessage) -> Work | None:
        """Takes such a message."""
        topic = message.topic
        if topic not in self._topics and len(self._topics) < _MOST_TOPICS:
            self._topics.add(topic)
            _log.info("nobody wants a message on %s: it may come from a subscription of a life before", topic)
            self._unsubscribe(_filters(topic))
        return None if self.handler is None else self.handler(message)


def _filters(topic: str) -> list[str]:
    service, _, leaf = topic.rpartition("/")
    if leaf == "request":
        with contextlib.suppress(TopicError):  # a request to one agent
            return [topic, anycast_filter(service)]
    return [topic]

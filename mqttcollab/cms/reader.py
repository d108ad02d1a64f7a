"""Reads retained messages, and remembers what was wrong with those that nobody could read."""

from __future__ import annotations

import logging
import time
from typing import TypeVar

from mqttcollab.codec import decode
from mqttcollab.errors import MessageError, TopicError
from mqttcollab.messages import Message
from mqttcollab.topics import parse
from mqttcollab.transport.base import TransportMessage

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

_REMEMBERED = 256
# Lines in the log at once; after them one a second.
_BURST = 20


class Reader:
    """Decodes; never raises for what somebody else published.

    Attributes:
        problems: why a message was not understood, by topic (the latest 256); put right, it is forgotten.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self._lines, self._since, self._untold = float(_BURST), time.monotonic(), 0

    def agent_of(self, message: TransportMessage) -> str | None:
        """The agent in the topic; None for a topic that does not parse."""
        try:
            return parse(message.topic).agent
        except TopicError as error:
            self.note(message.topic, str(error))
            return None

    def read(self, kind: type[M], message: TransportMessage) -> tuple[str | None, M | None]:
        """The topic's agent and the message, None if it was cleared.

        Both are None for a message that is not valid or speaks of another agent.
        """
        name = self.agent_of(message)
        if name is None:
            return None, None
        if not message.payload:
            self.problems.pop(message.topic, None)
            return name, None
        try:
            content = decode(kind, message.payload, sent_type=message.type)
        except MessageError as error:
            self.note(message.topic, str(error))
            return None, None
        if getattr(content, "agent", name) != name:
            self.note(message.topic, "it speaks of another agent than its topic")
            return None, None
        self.problems.pop(message.topic, None)
        return name, content

    def note(self, topic: str, text: str) -> None:
        """Remembers a problem; a device that sends garbage at full speed does not fill the log."""
        if self.problems.get(topic) != text:
            self._tell(topic, text)
        self.problems[topic] = text
        if len(self.problems) > _REMEMBERED:
            del self.problems[next(iter(self.problems))]

    def _tell(self, topic: str, text: str) -> None:
        now = time.monotonic()
        self._lines = min(float(_BURST), self._lines + now - self._since)
        self._since = now
        if self._lines < 1:
            self._untold += 1
            return
        self._lines -= 1
        more, self._untold = f" (and {self._untold} more problems)" if self._untold else "", 0
        _log.warning("%s: %s%s", topic if topic.isprintable() else repr(topic), text, more)

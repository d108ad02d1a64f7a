"""Every error of this library, under one root.

MqttCollabError
├── ConfigError             a setting is missing, unknown or wrong
├── TopicError              a name or a topic does not parse
├── MessageError            a payload does not decode or validate (wire code `bad_request`)
│   ├── UnsupportedVersion  another major version of a known message (wire code `unsupported`)
│   └── TooLarge            over the limit of one side (wire code `too_large`)
├── TransportError          the broker or the way to it
│   ├── ConnectError        the broker can't be reached or refuses the connection
│   ├── PublishError        the broker refused a publish
│   ├── SubscribeError      the broker refused a subscription
│   └── DuplicateAgent      another process runs under this agent's name
├── BrokerError             a broker process can't be started
├── JournalError            the journal can't be read or written
├── RuntimeFailure          a model can't be loaded, or failed while it ran
└── RequestError            a request ended in an error code, here or at a peer
    └── DeadlineExceeded    no answer in time (also a TimeoutError)

Each message says what was wrong, where, and what to do.
"""

from __future__ import annotations

from typing import Literal

ErrorCode = Literal[
    "bad_request",
    "unsupported",
    "unauthorized",
    "too_large",
    "busy",
    "no_capability",
    "deadline_exceeded",
    "cancelled",
    "quota_exceeded",
    "internal",
]


class MqttCollabError(Exception):
    """Root of every error that this library raises on purpose."""


class ConfigError(MqttCollabError):
    """A setting is missing, unknown or wrong; the message names it and where it stands."""


class TopicError(MqttCollabError, ValueError):
    """A service name, an agent name or a topic does not parse."""


class MessageError(MqttCollabError, ValueError):
    """A payload does not decode or validate.

    Attributes:
        code: the error code with which it is answered on the wire.
    """

    code: ErrorCode = "bad_request"


class UnsupportedVersion(MessageError):
    """A message of a major version that this library does not speak."""

    code: ErrorCode = "unsupported"


class TooLarge(MessageError):
    """A payload over the limit."""

    code: ErrorCode = "too_large"


class TransportError(MqttCollabError):
    """The broker, or the way to it, failed."""


class ConnectError(TransportError):
    """The broker can't be reached or refuses the connection.

    Attributes:
        refused: True where the broker answered with a refusal (trying again unchanged is of no use).
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class PublishError(TransportError):
    """The broker refused a publish (MQTT 5 PUBACK with a reason code of 0x80 or more)."""


class SubscribeError(TransportError):
    """The broker refused a subscription (SUBACK with a reason code of 0x80 or more)."""


class DuplicateAgent(TransportError):
    """Another process has come up under this agent's name; the older one stops."""


class BrokerError(MqttCollabError):
    """A broker process can't be started: no binary, port in use, bad configuration."""


class JournalError(MqttCollabError):
    """The journal can't be read or written: the disk is full, the file damaged, the server away."""


class RuntimeFailure(MqttCollabError):
    """A model can't be loaded, or failed while it ran."""


class RequestError(MqttCollabError):
    """A request ended in an error. Handlers raise it to answer with a code; requesters get it back.

    Attributes:
        code: one of the protocol's error codes.
        message: what went wrong, for a person.
        retry_after_ms: when asking again makes sense (`busy`, `quota_exceeded`), in milliseconds.
    """

    def __init__(self, code: ErrorCode, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code: ErrorCode = code
        self.message = message
        self.retry_after_ms = retry_after_ms


class DeadlineExceeded(RequestError, TimeoutError):
    """No answer within the request's ttl, or nothing at all for its idle time-out."""

    def __init__(self, message: str) -> None:
        super().__init__("deadline_exceeded", message)

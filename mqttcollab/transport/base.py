"""What the rest of the library knows of a broker connection: a message and a small protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class TransportMessage:
    """One MQTT message, whatever carries it. The properties travel with MQTT 5 only.

    Attributes:
        expiry_s: MQTT 5 message expiry interval in seconds.
        type: MQTT 5 user property `type`.
        traceparent: MQTT 5 user property `traceparent` (W3C trace context).
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None
    type: str | None = None
    traceparent: str | None = None


# What a message's acknowledgement waits for: a coroutine, which is then run, or a future.
Work = Awaitable[Any]
# A handler runs on the event loop and must not block. If it returns something to await, the message is
# acknowledged to the broker only once that is done (see `OrderedAcks`); else at once.
Handler = Callable[[TransportMessage], Work | None]
ConnectedHook = Callable[[], Coroutine[Any, Any, None]]


class Transport(Protocol):
    """A connection to a broker that mends itself. All methods belong to one event loop."""

    client_id: str

    @property
    def mqtt5(self) -> bool:
        """Whether message properties travel on the present connection."""
        ...

    @property
    def online(self) -> bool:
        """Whether the connection stands now."""
        ...

    @property
    def unsent(self) -> int:
        """How many publishes wait: for their acknowledgement, for their turn, or for the connection."""
        ...

    def on_connected(self, hook: ConnectedHook) -> None:
        """Runs `hook` after every connection, the first included, once the subscriptions stand."""
        ...

    async def connect(self, *, patience_s: float | None = 0.0) -> None:
        """Connects and subscribes what was registered.

        Args:
            patience_s: how long to go on trying where the broker can't be reached; None for ever.

        Raises:
            ConnectError: unreachable for longer than that, or refused.
        """
        ...

    async def close(self) -> None:
        """Disconnects cleanly (the will is not sent) and fails what is still waiting."""
        ...

    async def failed(self) -> None:
        """Waits until the connection is given up for good, and raises why; else waits for ever."""
        ...

    async def publish(self, message: TransportMessage, *, bulk: bool = False) -> bool:
        """Publishes; at QoS 1 returns when the broker has it. While disconnected it waits.

        Args:
            message: what to publish.
            bulk: gives way to other messages when the way is narrow.

        Returns:
            False if the broker says that nobody is subscribed (MQTT 5 only), else True.

        Raises:
            PublishError: the broker refuses it.
            TooLarge: it is over the broker's limit.
            TransportError: the transport was closed meanwhile.
        """
        ...

    async def subscribe(self, filters: str | Iterable[str], handler: Handler, *, qos: int = 1) -> None:
        """Subscribes, now and after every reconnection. Before `connect` it only registers.

        Raises:
            SubscribeError: the broker refuses it.
        """
        ...

    async def unsubscribe(self, filters: str | Iterable[str]) -> None:
        """Ends subscriptions; unknown ones are passed over."""
        ...

"""A session with the broker that mends itself: connects, falls back to MQTT 3.1.1, subscribes, comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from mqttcollab.config import BrokerAddress
from mqttcollab.errors import ConnectError, SubscribeError, TransportError
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.link import FILTERS_PER_PACKET, Link, Listener, Reason
from mqttcollab.transport.options import MqttOptions

_log = logging.getLogger(__name__)

_SESSION_TAKEN_OVER = 0x8E
_UNSUPPORTED_VERSION = 0x84


class _State(Enum):
    NEW = auto()
    CONNECTING = auto()
    ONLINE = auto()
    LOST = auto()
    CLOSED = auto()


class _NoMqtt5(ConnectError):
    """The broker does not know MQTT 5, or so it seems."""


@dataclass(frozen=True, slots=True)
class Observer:
    """What a session tells, on the event loop.

    Attributes:
        up: the connection stands and its subscriptions with it.
        down: the connection broke; unacknowledged publishes will be repeated.
        replaced: the broker was replaced by one of another version: unacknowledged publishes are lost.
        message: a packet identifier and a message.
        published: the packet identifier and the reason code of an acknowledged publish.
        drained: all that was written is with the operating system.
    """

    up: Callable[[], None]
    down: Callable[[], None]
    replaced: Callable[[str], None]
    message: Callable[[int, TransportMessage], None]
    published: Callable[[int, int], None]
    drained: Callable[[], None]


class Session:
    """Keeps a `Link` connected.

    Args:
        broker: where the broker is.
        client_id: the MQTT client id.
        will: what the broker publishes if this client vanishes.
        options: time-outs, limits, session.
        filters: what to subscribe after every connection, with its QoS; read anew each time.
        observer: who hears of what happens.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        client_id: str,
        will: TransportMessage | None,
        options: MqttOptions,
        filters: dict[str, int],
        observer: Observer,
    ) -> None:
        self.broker = broker
        self.window = options.window
        self.maximum_packet = options.maximum_packet
        self._client_id = client_id
        self._will = will
        self._options = options
        self._filters = filters
        self._observer = observer
        self.link = self._make_link(4 if broker.version == "3.1.1" else 5)
        self._state = _State.NEW
        self._online = asyncio.Event()
        self._lost = asyncio.Event()
        self._subscribing: dict[int, asyncio.Future[list[Reason]]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._greeted = False

    @property
    def online(self) -> bool:
        """Whether the connection stands now."""
        return self._state is _State.ONLINE

    @property
    def settled(self) -> bool:
        """Whether it stands with its subscriptions."""
        return self._online.is_set()

    async def wait_online(self) -> None:
        """Waits until the connection stands; raises TransportError once it is closed."""
        await self._online.wait()
        if self._state is _State.CLOSED:
            raise TransportError(f"the connection to {self.broker} was closed")

    async def connect(self, patience_s: float | None) -> None:
        """Connects, and keeps connected from then on.

        Args:
            patience_s: how long to go on trying where the broker can't be reached; None for ever.

        Raises:
            ConnectError: unreachable for longer than that, or refused.
            SubscribeError: the broker refuses a subscription.
        """
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._failure.add_done_callback(lambda f: f.cancelled() or f.exception())
        deadline = None if patience_s is None else self._loop.time() + patience_s
        try:
            await self._open_patiently(deadline)
        except BaseException:
            self._state = _State.NEW
            self.link.say_goodbye()
            raise
        self._keeper = self._loop.create_task(self._keep_connected())
        self._tick = self._loop.call_later(1.0, self._housekeeping)

    async def failed(self) -> None:
        """Waits until the connection is given up for good, and raises why."""
        await asyncio.shield(self._failure)

    async def close(self, end_session: bool) -> None:
        """Disconnects cleanly; `end_session` has the broker forget its side of it."""
        ends = end_session and self.online and self._options.session_expiry_s
        self._state = _State.CLOSED
        self.link.say_goodbye(self._filters if ends else ())
        if self._tick is not None:
            self._tick.cancel()
        self._fail_subscribing("was closed")
        self._online.set()  # who waits for it finds out that it is closed
        if self._keeper is not None:
            self._failure.cancel()  # who waits for it would wait for ever
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def subscribe(self, filters: list[str]) -> dict[str, Reason]:
        """Subscribes; returns the filters that the broker refuses, and why.

        Raises:
            SubscribeError: one is no filter.
            TransportError: the connection broke; once it is back, all of `filters` is subscribed.
        """
        refused: dict[str, Reason] = {}
        for start in range(0, len(filters), FILTERS_PER_PACKET):
            chunk = [name for name in filters[start : start + FILTERS_PER_PACKET] if name in self._filters]
            try:
                mid = self.link.subscribe([(name, self._filters[name]) for name in chunk]) if chunk else None
            except ValueError as error:
                raise SubscribeError(f"can't subscribe to {', '.join(map(repr, chunk))}: {error}") from None
            if mid is None:
                raise TransportError(f"the connection to {self.broker} broke")
            answer = self._subscribing[mid] = self._loop.create_future()
            reasons = zip(chunk, await answer, strict=False)
            refused |= {name: reason for name, reason in reasons if reason.failure}
        return refused

    def refusal(self, refused: dict[str, Reason]) -> str:
        """What `subscribe` returned, in words."""
        names = ", ".join(f"{name} ({reason.text})" for name, reason in refused.items())
        return f"broker {self.broker} refuses the subscription to {names}"

    # Connecting

    def _make_link(self, version: Literal[4, 5]) -> Link:
        listener = Listener(
            accepted=self._on_accepted,
            lost=self._on_lost,
            message=self._observer.message,
            published=self._observer.published,
            subscribed=self._on_subscribed,
            drained=self._observer.drained,
        )
        return Link(self.broker, self._client_id, version, self._will, self._options, listener)

    async def _open_patiently(self, deadline: float | None) -> None:
        attempt = 0
        while True:
            try:
                return await self._open(strict=True)
            except ConnectError as error:
                pause = self._options.pause(attempt)
                if error.refused or (deadline is not None and self._loop.time() + pause > deadline):
                    raise
                self._complain(attempt + 1, f"{error}; trying again")
            attempt += 1
            await asyncio.sleep(pause)

    async def _open(self, *, strict: bool) -> None:
        """One attempt; `strict` raises SubscribeError for a refused subscription, else it is logged."""
        try:
            await self._greet()
        except _NoMqtt5:
            newer, self.link = self.link, self._make_link(4)
            try:
                await self._greet()
            except ConnectError:
                self.link = newer
                raise
            self._observer.replaced(f"the broker at {self.broker} was replaced by one without MQTT 5")
        self._greeted = True
        await self._welcome(strict)

    async def _greet(self) -> None:
        """Dials and waits for the broker's answer."""
        self._state = _State.CONNECTING
        self._lost.clear()
        self._accepted: asyncio.Future[tuple[Reason, int | None, int | None]] = self._loop.create_future()
        try:
            await self.link.dial()
        except (OSError, ValueError) as error:
            raise ConnectError(f"broker {self.broker} can't be reached: {_words(error)}") from None
        may_fall_back = self.link.version == 5 and self.broker.version == "auto"
        try:
            async with asyncio.timeout(self._options.timeout_s):
                reason, receive_maximum, maximum_packet = await self._accepted
        except TimeoutError:
            self.link.hang_up()
            raise ConnectError(f"broker {self.broker} accepts connections but does not answer") from None
        except ConnectError as error:
            if may_fall_back and not self._greeted:  # nats-server's WebSocket breaks off instead of answering
                raise _NoMqtt5(str(error)) from None
            raise
        if reason.failure:
            self.link.hang_up()
            if may_fall_back and reason.code == _UNSUPPORTED_VERSION:
                raise _NoMqtt5(reason.text)
            raise ConnectError(f"broker {self.broker} refuses {self._client_id!r}: {reason.text}", refused=True)
        self.window = min(self._options.window, receive_maximum or self._options.window)
        self.maximum_packet = min(self._options.maximum_packet, maximum_packet or self._options.maximum_packet)

    async def _welcome(self, strict: bool) -> None:
        self._state = _State.ONLINE
        try:
            async with asyncio.timeout(self._options.timeout_s):
                refused = await self.subscribe(list(self._filters))
        except SubscribeError:
            raise
        except (TimeoutError, TransportError) as error:
            self._drop()
            raise ConnectError(f"broker {self.broker} does not take the subscriptions: {_words(error)}") from None
        if refused and strict:
            raise SubscribeError(self.refusal(refused))
        if refused:
            _log.error("%s", self.refusal(refused))
        if not self.online:  # it broke after the broker's answer and before we came to read it
            raise ConnectError(f"broker {self.broker} broke the connection")
        self._online.set()
        self._observer.up()

    async def _keep_connected(self) -> None:
        try:
            while not self._failure.done():
                await self._lost.wait()
                attempt = 0
                while not self._online.is_set() and not self._failure.done():
                    await asyncio.sleep(self._options.pause(attempt))
                    attempt += 1
                    try:
                        await self._open(strict=False)
                    except ConnectError as error:
                        self._drop()
                        self._complain(attempt, f"{error}; trying again")
        except Exception as error:  # nobody else would hear that the connection will not come back
            _log.exception("the connection to %s can't be mended", self.broker)
            if not self._failure.done():
                self._failure.set_exception(TransportError(f"the connection to {self.broker} is lost: {error!r}"))

    def _complain(self, attempt: int, what: str) -> None:
        # A fleet without its broker tries every few seconds; the first failure and every tenth are enough to know.
        _log.log(logging.WARNING if attempt % 10 == 1 else logging.DEBUG, "%s", what)

    def _housekeeping(self) -> None:
        self._tick = self._loop.call_later(1.0, self._housekeeping)
        if self.online:
            self.link.check()

    def _drop(self) -> None:
        """The connection is gone."""
        self.link.hang_up()
        if self._state is not _State.CLOSED:
            self._state = _State.LOST
            self._online.clear()
            self._fail_subscribing("broke")
            self._observer.down()
            self._lost.set()

    def _fail_subscribing(self, what: str) -> None:
        for future in self._subscribing.values():
            if not future.done():
                future.set_exception(TransportError(f"the connection to {self.broker} {what}"))
                future.exception()  # whoever still awaits it sees it; nobody else is to hear of it
        self._subscribing.clear()

    # What the link tells

    def _on_accepted(self, reason: Reason, receive_maximum: int | None, maximum_packet: int | None) -> None:
        if not self._accepted.done():
            self._accepted.set_result((reason, receive_maximum, maximum_packet))

    def _on_lost(self, reason: Reason | None) -> None:
        if self._state is _State.CONNECTING:
            if not self._accepted.done():
                why = f": {reason.text}" if reason is not None else ""
                self._accepted.set_exception(ConnectError(f"broker {self.broker} broke the connection{why}"))
        elif self._state is _State.ONLINE:
            if reason is not None and reason.code == _SESSION_TAKEN_OVER and not self._failure.done():
                self._failure.set_exception(TransportError(f"another client took over the id {self._client_id!r}"))
            else:
                _log.warning("connection to %s lost%s", self.broker, f" ({reason.text})" if reason else "")
            self._drop()

    def _on_subscribed(self, mid: int, reasons: list[Reason]) -> None:
        waiting = self._subscribing.pop(mid, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(reasons)


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

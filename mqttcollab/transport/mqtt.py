"""The connection to a broker over MQTT; what waits on it outlives a break."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from mqttcollab.config import BrokerAddress
from mqttcollab.errors import PublishError, SubscribeError, TooLarge, TransportError
from mqttcollab.transport.acks import OrderedAcks
from mqttcollab.transport.base import ConnectedHook, Handler, TransportMessage, Work
from mqttcollab.transport.client import puback_text
from mqttcollab.transport.options import MqttOptions
from mqttcollab.transport.properties import pack_properties
from mqttcollab.transport.router import Router
from mqttcollab.transport.session import Observer, Session
from mqttcollab.transport.window import Window

__all__ = ["MqttOptions", "MqttTransport"]

_log = logging.getLogger(__name__)

_NO_SUBSCRIBERS = 0x10
# Bytes that may wait for the operating system before a publish without acknowledgement waits; bulk gives way earlier.
_HIGH_WATER = 1 << 20
_BULK_HIGH_WATER = 1 << 16


class MqttTransport:
    """A `Transport` over MQTT 5 or 3.1.1, TCP, TLS or WebSocket.

    Args:
        broker: where the broker is.
        client_id: the MQTT client id; a second client with the same id ends this one.
        will: what the broker publishes if this client vanishes.
        options: time-outs, limits, session.

    Raises:
        ConfigError: the certificate or key files can't be used.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        client_id: str,
        *,
        will: TransportMessage | None = None,
        options: MqttOptions | None = None,
    ) -> None:
        self.client_id = client_id
        self.broker = broker
        self.options = options or MqttOptions()
        self._router = Router()
        observer = Observer(
            up=self._on_up,
            down=self._on_down,
            replaced=self._fail_publishing,
            message=self._on_message,
            published=self._on_published,
            drained=lambda: self._drained.set(),
        )
        self._session = Session(broker, client_id, will, self.options, self._router.filters, observer)
        self._hooks: list[ConnectedHook] = []
        self._window = Window(self.options.window)
        self._drained = asyncio.Event()
        self._held_back = 0
        self._publishing: dict[int, asyncio.Future[int]] = {}
        self._acks = OrderedAcks(lambda mid: self._session.link.acknowledge(mid), self.options.ack_limit_s)
        self._tasks: set[asyncio.Future[Any]] = set()

    @property
    def mqtt5(self) -> bool:
        """Whether message properties travel on the present connection."""
        return self._session.link.version == 5

    @property
    def online(self) -> bool:
        """Whether the connection stands now."""
        return self._session.online

    @property
    def unsent(self) -> int:
        """See `Transport`."""
        return self._window.used + self._window.waiting + self._held_back

    def on_connected(self, hook: ConnectedHook) -> None:
        """See `Transport`."""
        self._hooks.append(hook)

    async def connect(self, *, patience_s: float | None = 0.0) -> None:
        """See `Transport`."""
        self._loop = asyncio.get_running_loop()
        await self._session.connect(patience_s)

    async def failed(self) -> None:
        """See `Transport`."""
        await self._session.failed()

    async def close(self) -> None:
        """See `Transport`."""
        closed = f"the connection to {self.broker} was closed"
        self._fail_publishing(closed)
        self._window.close(TransportError(closed))
        await self._session.close()
        self._drained.set()
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, self._acks.close(), return_exceptions=True)

    async def publish(self, message: TransportMessage, *, bulk: bool = False) -> bool:
        """See `Transport`."""
        session = self._session
        packed = pack_properties(message) if self.mqtt5 else b""
        size = len(packed) + len(message.payload) + len(message.topic.encode()) + 9
        if size > session.maximum_packet:
            limit = session.maximum_packet
            raise TooLarge(f"{message.topic}: {size} bytes are over the limit of {limit} (the broker's, or ours)")
        if message.qos == 0:
            return await self._publish_unacknowledged(message, packed, bulk)
        if not self._window.try_acquire(bulk):
            await self._window.acquire(bulk)
        try:
            while not session.online:
                await session.wait_online()
            done: asyncio.Future[int] = self._loop.create_future()
            self._publishing[self._send(message, packed)] = done
        except BaseException:
            self._window.release()
            raise
        code = await done
        if code >= 0x80:
            raise PublishError(f"broker {self.broker} refuses a publish to {message.topic}: {puback_text(code)}")
        return code != _NO_SUBSCRIBERS

    async def subscribe(self, filters: str | Iterable[str], handler: Handler, *, qos: int = 1) -> None:
        """See `Transport`."""
        names = [filters] if isinstance(filters, str) else list(filters)
        for name in names:
            self._router.add(name, handler, qos)
        if self.online and (refused := await self._session.subscribe(names)):
            for name in refused:
                self._router.remove(name)
            raise SubscribeError(self._session.refusal(refused))

    async def unsubscribe(self, filters: str | Iterable[str]) -> None:
        """See `Transport`."""
        names = [f for f in ([filters] if isinstance(filters, str) else filters) if self._router.remove(f)]
        if names and self.online:
            self._session.link.unsubscribe(names)

    def _send(self, message: TransportMessage, packed: bytes) -> int:
        try:
            return self._session.link.publish(message, packed)
        except ValueError as error:
            raise PublishError(f"can't publish to {message.topic!r}: {error}") from None

    async def _publish_unacknowledged(self, message: TransportMessage, packed: bytes, bulk: bool) -> bool:
        high_water = _BULK_HIGH_WATER if bulk else _HIGH_WATER
        self._held_back += 1
        try:
            while not self._session.online or self._session.link.unsent > high_water:
                await self._session.wait_online()
                if self._session.link.unsent > high_water:
                    self._drained.clear()
                    await self._drained.wait()
        finally:
            self._held_back -= 1
        self._send(message, packed)
        return True

    def _fail_publishing(self, why: str) -> None:
        waiting, self._publishing = self._publishing, {}
        for future in waiting.values():
            self._window.release()
            if not future.done():
                future.set_exception(TransportError(why))
                future.exception()  # whoever still awaits it sees it; nobody else is to hear of it

    def _spawn(self, work: Work) -> None:
        task = asyncio.ensure_future(work)
        if task is not work:
            self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a handler failed: %s", error, exc_info=error)

    # What the session tells

    def _on_up(self) -> None:
        self._window.limit = self._session.window
        self._window.wake()
        for hook in self._hooks:
            self._spawn(hook())

    def _on_down(self) -> None:
        self._acks.forget()
        self._drained.set()

    def _on_message(self, mid: int, message: TransportMessage) -> None:
        waits = self._router.route(message)
        if message.qos:
            self._acks.received(mid, waits)
        else:
            for wait in waits:
                self._spawn(wait)

    def _on_published(self, mid: int, code: int) -> None:
        done = self._publishing.pop(mid, None)
        if done is None:
            return
        self._window.release()
        if not done.done():
            # Right after a break the others may not be back yet: then it is not known that nobody listens.
            done.set_result(0 if code == _NO_SUBSCRIBERS and not self._session.settled else code)

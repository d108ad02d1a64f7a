"""A broker in memory, for fast tests: same semantics as the real ones, no sockets, no processes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

from mqttcollab.errors import ConnectError, PublishError, TooLarge, TransportError
from mqttcollab.topics import matches
from mqttcollab.transport.acks import OrderedAcks
from mqttcollab.transport.base import ConnectedHook, Handler, TransportMessage, Work
from mqttcollab.transport.options import MqttOptions
from mqttcollab.transport.router import Router

_log = logging.getLogger(__name__)


class MemoryBroker:
    """Retained messages, shared subscriptions, wills and session takeover, in one event loop."""

    def __init__(self, *, max_payload: int = 1 << 20, denied: Iterable[str] = ()) -> None:
        self.max_payload = max_payload
        self.denied = list(denied)
        self.up = True
        self.retained: dict[str, TransportMessage] = {}
        self.clients: dict[str, MemoryTransport] = {}
        self._turn: dict[str, int] = {}

    def deliver(self, message: TransportMessage) -> bool:
        """Retains and hands out a message; False if nobody is subscribed."""
        if message.retain:
            if message.payload:
                self.retained[message.topic] = message
            else:
                self.retained.pop(message.topic, None)
        live = dataclasses.replace(message, retain=False)
        shared: dict[str, list[MemoryTransport]] = {}
        reached = False
        for client in list(self.clients.values()):
            plain = False
            for filter_ in client.router.filters:
                if not matches(filter_, message.topic):
                    continue
                reached = True
                if filter_.startswith("$share/"):
                    shared.setdefault(filter_, []).append(client)
                else:
                    plain = True
            if plain:
                client.receive(live)
        for filter_, members in shared.items():
            turn = self._turn[filter_] = self._turn.get(filter_, -1) + 1
            members[turn % len(members)].receive(live)
        return reached

    async def stop(self) -> None:
        """Goes away, as a broker that is killed: connections break, wills are lost, retained messages stay."""
        self.up = False
        for client in list(self.clients.values()):
            client.lose()

    async def start(self) -> None:
        """Comes back."""
        self.up = True


class MemoryTransport:
    """A client of a `MemoryBroker`; see `Transport` for the methods.

    QoS 1 messages are handed out up to the receive maximum of the options; the others wait for acknowledgements.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        will: TransportMessage | None = None,
        options: MqttOptions | None = None,
    ) -> None:
        options = options or MqttOptions()
        self.client_id = client_id
        self.router = Router()
        self._broker = broker
        self._will = will
        self._hooks: list[ConnectedHook] = []
        self._online = asyncio.Event()
        self._failure: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._inbox: deque[TransportMessage] = deque()
        self._receive_maximum = options.receive_maximum
        self._acks = OrderedAcks(self._acknowledged, options.ack_limit_s)
        self._held: deque[TransportMessage] = deque()  # until there is room under the receive maximum
        self._held_back = 0
        self._closed = False

    @property
    def mqtt5(self) -> bool:
        """Properties travel."""
        return True

    @property
    def online(self) -> bool:
        """See `Transport`."""
        return self._online.is_set() and not self._closed

    @property
    def unsent(self) -> int:
        """See `Transport`."""
        return self._held_back

    def on_connected(self, hook: ConnectedHook) -> None:
        """See `Transport`."""
        self._hooks.append(hook)

    async def connect(self, *, patience_s: float | None = 0.0) -> None:
        """See `Transport`."""
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
            self._failure.add_done_callback(lambda f: f.cancelled() or f.exception())
        deadline = None if patience_s is None else asyncio.get_running_loop().time() + patience_s
        while not self._broker.up:
            if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                raise ConnectError("the broker in memory is down")
            await asyncio.sleep(0.01)
        old = self._broker.clients.pop(self.client_id, None)
        if old is not None:
            old.taken_over()
        self._broker.clients[self.client_id] = self
        for filter_ in list(self.router.filters):
            self._replay(filter_)
        self._online.set()
        for hook in self._hooks:
            self._spawn(hook())

    async def close(self) -> None:
        """See `Transport`."""
        self._closed = True
        self._online.set()  # who waits for it finds out that it is closed
        if self._broker.clients.get(self.client_id) is self:
            del self._broker.clients[self.client_id]
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, self._acks.close(), return_exceptions=True)

    def die(self) -> None:
        """Goes away without a goodbye, so that the broker publishes the will."""
        self._closed = True
        self._acks.forget()
        self._broker.clients.pop(self.client_id, None)
        if self._will is not None:
            self._broker.deliver(self._will)

    def taken_over(self) -> None:
        """Another client has come with this client's id."""
        self.die()
        self._online.clear()
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(TransportError(f"another client took over the id {self.client_id!r}"))

    def lose(self) -> None:
        """The connection breaks; it comes back with the broker."""
        self._online.clear()
        self._broker.clients.pop(self.client_id, None)
        if not self._closed:
            self._spawn(self.connect(patience_s=None))

    async def failed(self) -> None:
        """See `Transport`."""
        assert self._failure is not None
        await asyncio.shield(self._failure)

    async def publish(self, message: TransportMessage, *, bulk: bool = False) -> bool:
        """See `Transport`."""
        if len(message.payload) > self._broker.max_payload:
            raise TooLarge(f"{message.topic}: {len(message.payload)} bytes are over the limit of the broker in memory")
        if not message.topic or "+" in message.topic or "#" in message.topic:
            raise PublishError(f"can't publish to {message.topic!r}: it is no topic")
        self._held_back += 1
        try:
            await self._online.wait()
        finally:
            self._held_back -= 1
        if self._closed:
            raise TransportError("the connection to the broker in memory was closed")
        if any(matches(f, message.topic) for f in self._broker.denied):
            raise PublishError(f"the broker refused {message.topic}: not authorized")
        await asyncio.sleep(0)
        return self._broker.deliver(message)

    async def subscribe(self, filters: str | Iterable[str], handler: Handler, *, qos: int = 1) -> None:
        """See `Transport`."""
        for filter_ in [filters] if isinstance(filters, str) else list(filters):
            self.router.add(filter_, handler, qos)
            if self._online.is_set():
                self._replay(filter_)

    async def unsubscribe(self, filters: str | Iterable[str]) -> None:
        """See `Transport`."""
        for filter_ in [filters] if isinstance(filters, str) else list(filters):
            self.router.remove(filter_)

    def receive(self, message: TransportMessage) -> None:
        """Takes a message from the broker, in order, outside the publisher's call."""
        self._inbox.append(message)
        asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        if self._inbox and not self._closed:
            message = self._inbox.popleft()
            if message.qos and (self._held or self._full):
                self._held.append(message)
            else:
                self._hand_out(message)

    @property
    def _full(self) -> bool:
        return len(self._acks) >= self._receive_maximum

    def _hand_out(self, message: TransportMessage) -> None:
        waits = self.router.route(message)
        if message.qos:
            self._acks.received(0, waits)
        else:
            for wait in waits:
                self._spawn(wait)

    def _acknowledged(self, _: int) -> None:
        if self._held:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        while self._held and not self._full and not self._closed:
            self._hand_out(self._held.popleft())

    def _replay(self, filter_: str) -> None:
        if not filter_.startswith("$share/"):
            for message in list(self._broker.retained.values()):
                if matches(filter_, message.topic):
                    self.receive(message)

    def _spawn(self, work: Work) -> None:
        task = asyncio.ensure_future(work)
        if task is not work:
            self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a handler failed: %s", error, exc_info=error)

"""The connection to a broker: paho-mqtt, driven by the asyncio event loop. No paho type leaves this module."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Any, Literal, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mqttcollab.config import BrokerAddress
from mqttcollab.errors import ConnectError, PublishError, SubscribeError, TooLarge, TransportError
from mqttcollab.transport.acks import OrderedAcks
from mqttcollab.transport.base import ConnectedHook, Handler, Router, TransportMessage
from mqttcollab.transport.properties import pack_properties, unpack_publish
from mqttcollab.transport.socket import BufferedSocket, SocketLike
from mqttcollab.transport.window import Window

_log = logging.getLogger(__name__)

_NO_SUBSCRIBERS = 0x10
_SESSION_TAKEN_OVER = 0x8E
_UNSUPPORTED_VERSION = 0x84
_FILTERS_PER_PACKET = 64
_PACKETS_PER_TURN = 64
_HIGH_WATER = 1 << 20


class _State(Enum):
    NEW = auto()
    CONNECTING = auto()
    ONLINE = auto()
    LOST = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """What a connection can be told beside the broker's address.

    Attributes:
        keepalive_s: seconds of silence after which broker and client suspect each other.
        session_expiry_s: how long the broker keeps subscriptions and queued messages while the client is away;
            0 starts clean every time. MQTT 3.1.1 knows no expiry: there a session stays until it is cleaned.
        receive_maximum: QoS 1 messages that the broker may send before the first is acknowledged.
        window: QoS 1 publishes in flight, where the broker's own receive maximum is not smaller.
        maximum_packet: largest packet accepted from the broker, in bytes (MQTT 5).
        backoff_s, backoff_max_s: first and longest pause between attempts to reconnect, before full jitter.
        timeout_s: how long a connection attempt may take.
    """

    keepalive_s: int = 30
    session_expiry_s: int = 0
    receive_maximum: int = 1024
    window: int = 256
    maximum_packet: int = 1 << 20
    backoff_s: float = 0.2
    backoff_max_s: float = 3.0
    timeout_s: float = 5.0


class _Client(paho.Client):
    """paho with our buffered socket under it, and our decoder for the two packets that come by the thousand."""

    buffered: BufferedSocket
    deliver: Callable[[int, TransportMessage], None]

    def _create_socket(self) -> Any:
        inner = cast(SocketLike, super()._create_socket())
        inner.setblocking(False)
        self.buffered = BufferedSocket(inner, plain=not self._ssl and self._transport == "tcp")
        return self.buffered

    def _handle_publish(self) -> MQTTErrorCode:
        flags, body = self._in_packet["command"] & 0x0F, bytes(self._in_packet["packet"])
        try:
            mid, message = unpack_publish(flags, body, mqtt5=self._protocol == paho.MQTTv5)
        except ValueError as error:
            _log.warning("the broker sent %s: the connection is given up", error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self.deliver(mid, message)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        body = self._in_packet["packet"]
        if len(body) < 2:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        mid = body[0] << 8 | body[1]
        if mid not in self._out_messages:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return self._do_on_publish(mid, _puback_reason(body[2] if len(body) > 2 else 0), _NO_PROPERTIES)


class _Packed:
    """Stands in for paho's Properties where it only packs them."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pack(self) -> bytes:
        return self._data


class MqttTransport:
    """A `Transport` over MQTT 5 or 3.1.1, TCP, TLS or WebSocket.

    Args:
        broker: where the broker is.
        client_id: the MQTT client id; a second client with the same id ends this one.
        will: what the broker publishes if this client vanishes.
        options: time-outs, limits, session.
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
        self._will = will
        self._version = 4 if broker.version == "3.1.1" else 5
        self._client = self._make_client()
        self._state = _State.NEW
        self._router = Router()
        self._hooks: list[ConnectedHook] = []
        self._window = Window(self.options.window)
        self._online = asyncio.Event()
        self._lost = asyncio.Event()
        self._writable = asyncio.Event()
        self._publishing: dict[int, asyncio.Future[bool]] = {}
        self._subscribing: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._acks = OrderedAcks(self._send_ack)
        self._tasks: set[asyncio.Task[None]] = set()
        self._maximum_packet: int | None = None
        self._flushing = False
        self._fd = -1

    # What a caller uses

    @property
    def mqtt5(self) -> bool:
        """Whether message properties travel on the present connection."""
        return self._version == 5

    @property
    def online(self) -> bool:
        """Whether the connection stands now."""
        return self._state is _State.ONLINE

    def on_connected(self, hook: ConnectedHook) -> None:
        """See `Transport`."""
        self._hooks.append(hook)

    async def connect(self, *, patience_s: float | None = 0.0) -> None:
        """See `Transport`."""
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._failure.add_done_callback(lambda f: f.cancelled() or f.exception())
        deadline = None if patience_s is None else self._loop.time() + patience_s
        await self._open_patiently(deadline)
        self._spawn(self._keep_connected())
        self._tick = self._loop.call_later(1.0, self._housekeeping)

    async def failed(self) -> None:
        """See `Transport`."""
        await asyncio.shield(self._failure)

    async def close(self) -> None:
        """See `Transport`."""
        if self._state is _State.CLOSED:
            return
        was_online, self._state = self.online, _State.CLOSED
        self._online.clear()
        if was_online:
            self._client.disconnect()
            self._client.loop_write()
            with contextlib.suppress(OSError):
                self._client.buffered.flush()
        if hasattr(self, "_tick"):
            self._tick.cancel()
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(*(t for t in self._tasks if t is not asyncio.current_task()), return_exceptions=True)
        self._detach()
        self._fail_waiting(self._publishing, "was closed")
        self._fail_waiting(self._subscribing, "was closed")

    async def publish(self, message: TransportMessage, *, bulk: bool = False) -> bool:
        """See `Transport`."""
        packed = pack_properties(message) if self.mqtt5 else b""
        if self._maximum_packet is not None:
            size = len(packed) + len(message.payload) + len(message.topic.encode()) + 9
            if size > self._maximum_packet:
                raise TooLarge(f"{message.topic}: {size} bytes are over the broker's limit of {self._maximum_packet}")
        if message.qos == 0:
            return await self._publish_unacknowledged(message, packed)
        if not self._window.try_acquire(bulk):
            await self._window.acquire(bulk)
        try:
            while not self.online:
                await self._wait_online()
            done: asyncio.Future[bool] = self._loop.create_future()
            self._publishing[self._send(message, packed)] = done
        except BaseException:
            self._window.release()
            raise
        return await done

    async def subscribe(self, filters: str | Iterable[str], handler: Handler, *, qos: int = 1) -> None:
        """See `Transport`."""
        names = [filters] if isinstance(filters, str) else list(filters)
        for name in names:
            self._router.add(name, handler, qos)
        if self.online:
            await self._subscribe(names)

    async def unsubscribe(self, filters: str | Iterable[str]) -> None:
        """See `Transport`."""
        names = [f for f in ([filters] if isinstance(filters, str) else filters) if self._router.remove(f)]
        if names and self.online:
            self._client.unsubscribe(names)

    # Connecting

    def _make_client(self) -> _Client:
        options = self.options
        client = _Client(
            CallbackAPIVersion.VERSION2,
            self.client_id,
            clean_session=None if self._version == 5 else options.session_expiry_s == 0,
            protocol=paho.MQTTv5 if self._version == 5 else paho.MQTTv311,
            transport="websockets" if self.broker.websocket else "tcp",
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.max_inflight_messages_set(0)  # our own window counts
        client.suppress_exceptions = False
        client.connect_timeout = options.timeout_s
        if self.broker.username is not None:
            client.username_pw_set(self.broker.username, self.broker.password)
        if self.broker.websocket:
            client.ws_set_options(path=self.broker.path)
        if self.broker.tls:
            client.tls_set(self.broker.ca, self.broker.cert, self.broker.key)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, self._will.qos, self._will.retain)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.deliver = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_socket_close = lambda *_: self._detach()
        client.on_socket_register_write = lambda *_: self._schedule_flush()
        properties = None
        if self._version == 5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = options.session_expiry_s
            properties.ReceiveMaximum = options.receive_maximum
            properties.MaximumPacketSize = options.maximum_packet
        client.connect_async(
            self.broker.host,
            self.broker.port,
            options.keepalive_s,
            clean_start=options.session_expiry_s == 0,
            properties=properties,
        )
        return client

    async def _open_patiently(self, deadline: float | None) -> None:
        attempt = 0
        while True:
            try:
                return await self._open()
            except ConnectError as error:
                pause = self._pause(attempt)
                if error.refused or (deadline is not None and self._loop.time() + pause > deadline):
                    self._state = _State.NEW
                    raise
                _log.warning("%s; trying again in %.1f s", error, pause)
            attempt += 1
            await asyncio.sleep(pause)

    async def _open(self) -> None:
        """One attempt: TCP, TLS and WebSocket handshakes in a thread (paho blocks there), the rest on the loop."""
        self._state = _State.CONNECTING
        self._lost.clear()
        self._connack: asyncio.Future[tuple[ReasonCode, Properties]] = self._loop.create_future()
        dial = self._loop.run_in_executor(None, self._client.reconnect)
        try:
            await asyncio.shield(dial)
        except asyncio.CancelledError:
            await asyncio.wait([dial])  # the thread uses the client until then
            raise
        except (OSError, ValueError) as error:
            raise ConnectError(f"broker {self.broker} can't be reached: {_reason(error)}") from None
        self._attach()
        try:
            reason, properties = await asyncio.wait_for(self._connack, self.options.timeout_s)
        except TimeoutError:
            self._detach()
            raise ConnectError(f"broker {self.broker} accepts connections but does not answer") from None
        if reason.is_failure:
            self._detach()
            if reason.value == _UNSUPPORTED_VERSION and self._version == 5 and self.broker.version == "auto":
                self._version = 4
                self._client = self._make_client()
                return await self._open()
            raise ConnectError(f"broker {self.broker} refuses {self.client_id!r}: {reason}", refused=True)
        await self._welcome(properties)

    async def _welcome(self, properties: Properties) -> None:
        theirs = getattr(properties, "ReceiveMaximum", self.options.window)
        self._maximum_packet = getattr(properties, "MaximumPacketSize", None)
        self._state = _State.ONLINE
        try:
            await asyncio.wait_for(self._subscribe(list(self._router.filters)), self.options.timeout_s)
        except (TimeoutError, TransportError) as error:
            if isinstance(error, SubscribeError):
                raise
            self._drop()
            raise ConnectError(f"broker {self.broker} does not take the subscriptions: {error}") from None
        self._window.limit = min(self.options.window, theirs)
        self._online.set()
        self._window.wake()
        for hook in self._hooks:
            self._spawn(hook())

    async def _keep_connected(self) -> None:
        while True:
            await self._lost.wait()
            if self._failure.done():
                return
            self._online.clear()
            attempt = 0
            while not self._online.is_set():
                pause = self._pause(attempt)
                attempt += 1
                await asyncio.sleep(pause)
                try:
                    await self._open()
                except (ConnectError, SubscribeError) as error:
                    self._drop()
                    _log.warning("%s; trying again", error)

    def _pause(self, attempt: int) -> float:
        # Full jitter (Brooker, "Exponential Backoff And Jitter", 2015): a fleet does not come back in step.
        return random.uniform(0, min(self.options.backoff_max_s, self.options.backoff_s * 2.0 ** min(attempt, 16)))

    # Driving paho

    def _attach(self) -> None:
        self._fd = self._client.buffered.fileno()
        if self._fd < 0:
            raise ConnectError(f"broker {self.broker} closed the connection at once")
        self._loop.add_reader(self._fd, self._readable)
        self._flushing = False
        self._schedule_flush()

    def _detach(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1
            self._client.buffered.close()

    def _readable(self) -> None:
        sock = self._client.buffered
        sock.readable()
        self._read_buffered(sock)

    def _read_buffered(self, sock: BufferedSocket) -> None:
        for _ in range(_PACKETS_PER_TURN):
            if self._fd < 0 or sock is not self._client.buffered:
                return
            if self._client.loop_read() != paho.MQTT_ERR_SUCCESS:
                return self._drop()
            if not sock.unread:
                return
        self._loop.call_soon(self._read_buffered, sock)

    def _schedule_flush(self) -> None:
        # paho may call this in the dialling thread; `_attach` flushes what it wrote there.
        if self._fd >= 0 and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._fd < 0:
            return
        self._client.loop_write()
        try:
            done = self._client.buffered.flush()
        except OSError:
            return self._drop()
        if done:
            self._loop.remove_writer(self._fd)
            self._writable.set()
        else:
            self._loop.add_writer(self._fd, self._flush)

    def _housekeeping(self) -> None:
        self._tick = self._loop.call_later(1.0, self._housekeeping)
        if self.online:
            self._client.loop_misc()

    def _send(self, message: TransportMessage, packed: bytes) -> int:
        properties = cast(Properties, _Packed(packed)) if packed else None
        try:
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        except ValueError as error:
            raise PublishError(f"can't publish to {message.topic!r}: {error}") from None
        return info.mid

    async def _publish_unacknowledged(self, message: TransportMessage, packed: bytes) -> bool:
        while True:
            await self._wait_online()
            if self._client.buffered.unsent < _HIGH_WATER:
                break
            self._writable.clear()
            await self._writable.wait()
        self._send(message, packed)
        return True

    async def _wait_online(self) -> None:
        if self._state is _State.CLOSED:
            raise TransportError(f"the connection to {self.broker} was closed")
        await self._online.wait()

    async def _subscribe(self, filters: list[str]) -> None:
        for start in range(0, len(filters), _FILTERS_PER_PACKET):
            chunk = filters[start : start + _FILTERS_PER_PACKET]
            wanted = [(name, self._router.filters[name]) for name in chunk]
            _, mid = self._client.subscribe(cast(Any, wanted))
            if mid is None:
                raise TransportError(f"the connection to {self.broker} broke")
            granted = self._subscribing[mid] = self._loop.create_future()
            for name, code in zip(chunk, await granted, strict=False):
                if code.is_failure:
                    self._router.remove(name)
                    raise SubscribeError(f"broker {self.broker} refuses the subscription to {name}: {code}")

    def _drop(self) -> None:
        """The connection is gone."""
        self._detach()
        if self._state is _State.CLOSED:
            return
        self._state = _State.LOST
        self._online.clear()
        self._acks.forget()
        self._writable.set()
        self._fail_waiting(self._subscribing, "broke")
        self._lost.set()

    def _fail_waiting(self, waiting: dict[int, asyncio.Future[Any]], what: str) -> None:
        for future in waiting.values():
            if not future.done():
                future.set_exception(TransportError(f"the connection to {self.broker} {what}"))
                future.exception()  # whoever still awaits it sees it; nobody else is to hear of it
        waiting.clear()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("in %s: %s", task.get_coro(), error, exc_info=error)

    def _send_ack(self, mid: int) -> None:
        self._client.ack(mid, 1)

    # paho's callbacks, all on the event loop

    def _on_connect(self, _c: Any, _u: Any, _flags: Any, reason: ReasonCode, properties: Any) -> None:
        if not self._connack.done():
            self._connack.set_result((reason, properties))

    def _on_disconnect(self, _c: Any, _u: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if self._state in (_State.CLOSED, _State.LOST):
            return
        if self._state is _State.CONNECTING:
            if not self._connack.done():
                self._connack.set_exception(ConnectError(f"broker {self.broker} broke the connection: {reason}"))
            return
        if reason.value == _SESSION_TAKEN_OVER and not self._failure.done():
            self._failure.set_exception(TransportError(f"another client took over the id {self.client_id!r}"))
        elif not reason.is_failure:
            _log.info("broker %s closed the connection", self.broker)
        else:
            _log.warning("connection to %s lost (%s)", self.broker, reason)
        self._drop()

    def _on_message(self, mid: int, message: TransportMessage) -> None:
        waits = self._router.route(message)
        if message.qos:
            self._acks.received(mid, waits)
        else:
            for wait in waits:
                self._spawn(wait)

    def _on_publish(self, _c: Any, _u: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        done = self._publishing.pop(mid, None)
        if done is None:
            return
        self._window.release()
        if done.done():
            return
        if reason.is_failure:
            done.set_exception(PublishError(f"broker {self.broker} refused a publish: {reason}"))
        else:
            done.set_result(reason.value != _NO_SUBSCRIBERS)

    def _on_subscribe(self, _c: Any, _u: Any, mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        waiting = self._subscribing.pop(mid, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(reasons)


_NO_PROPERTIES = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]


@lru_cache
def _puback_reason(code: int) -> ReasonCode:
    try:
        return ReasonCode(PacketTypes.PUBACK, identifier=code)
    except KeyError:  # one that MQTT does not list; from 0x80 on they are failures
        return ReasonCode(PacketTypes.PUBACK, identifier=0x80 if code >= 0x80 else 0)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

"""One MQTT session: paho-mqtt driven by the asyncio event loop. No paho type leaves this module and `client`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mqttcollab.config import BrokerAddress
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.client import Packed, make_client
from mqttcollab.transport.options import MqttOptions
from mqttcollab.transport.socket import BufferedSocket

_log = logging.getLogger(__name__)

FILTERS_PER_PACKET = 64
_PACKETS_PER_TURN = 64
_PACKET_IDENTIFIERS = 65535


class Reason(NamedTuple):
    """A reason code of MQTT 5, or what a return code of 3.1.1 corresponds to."""

    code: int
    text: str

    @property
    def failure(self) -> bool:
        """Whether it says no."""
        return self.code >= 0x80


@dataclass(frozen=True, slots=True)
class Listener:
    """What a link tells, always on the event loop.

    Attributes:
        accepted: the broker's answer to the connection, its receive maximum and its maximum packet size.
        lost: the connection is gone; the reason where the broker gave one.
        message: a packet identifier and a message.
        published: the packet identifier and the reason code of an acknowledged publish.
        subscribed: the packet identifier of a subscription, and a reason for each of its filters.
        drained: all that was written is with the operating system.
    """

    accepted: Callable[[Reason, int | None, int | None], None]
    lost: Callable[[Reason | None], None]
    message: Callable[[int, TransportMessage], None]
    published: Callable[[int, int], None]
    subscribed: Callable[[int, list[Reason]], None]
    drained: Callable[[], None]


class Link:
    """A session with the broker over connections that come and go; unacknowledged publishes outlive them.

    Args:
        broker: where the broker is.
        client_id: the MQTT client id.
        version: 4 (MQTT 3.1.1) or 5.
        will: what the broker publishes if this client vanishes.
        options: time-outs, limits, session.
        listener: who hears of what happens.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        client_id: str,
        version: Literal[4, 5],
        will: TransportMessage | None,
        options: MqttOptions,
        listener: Listener,
    ) -> None:
        self.version = version
        self._listener = listener
        self._client = make_client(broker, client_id, version, will, options)
        self._client.deliver = listener.message
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda _c, _u, _flags, reason, _p: listener.lost(_translate(reason))
        self._client.on_publish = lambda _c, _u, mid, reason, _p: listener.published(mid, reason.value)
        self._client.on_subscribe = lambda _c, _u, mid, reasons, _p: listener.subscribed(
            mid, [_translate(reason) for reason in reasons]
        )
        self._client.on_socket_close = lambda *_: self.hang_up()
        self._client.on_socket_register_write = lambda *_: self._schedule_flush()
        self._flushing = False
        self._queued = 0
        self._fd = -1

    # Connecting

    async def dial(self) -> None:
        """TCP, TLS and WebSocket handshakes in a thread (paho blocks there), then the CONNECT packet on the loop.

        Raises:
            OSError, ValueError: that did not work.
        """
        self._loop = asyncio.get_running_loop()
        dialling = self._loop.run_in_executor(None, self._client.reconnect)
        try:
            await asyncio.shield(dialling)
        except asyncio.CancelledError:
            await asyncio.wait([dialling])  # the thread uses the client until then
            dialling.exception()
            if self._client.buffered is not None:
                self._client.buffered.close()
            raise
        assert self._client.buffered is not None
        self._sock = self._client.buffered
        self._queued = 0
        self._fd = self._sock.fileno()
        if self._fd < 0:
            raise ConnectionResetError("it closed the connection at once")
        self._loop.add_reader(self._fd, self._readable)
        self._flushing = False
        self._schedule_flush()

    def hang_up(self) -> None:
        """Closes the connection, without a goodbye but for what was said already."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                self._sock.flush()
            self._sock.close()

    def say_goodbye(self, end_session: Collection[str] = ()) -> None:
        """Disconnects cleanly: the broker does not send the will.

        Args:
            end_session: the session's filters, if it is to end. MQTT 3.1.1 can't end one, so they are unsubscribed,
                and nothing more is queued in it.
        """
        if self._fd >= 0:
            properties = None
            if end_session and self.version == 5:
                properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
                properties.SessionExpiryInterval = 0
            elif end_session:
                filters = list(end_session)
                for start in range(0, len(filters), FILTERS_PER_PACKET):
                    self._client.unsubscribe(filters[start : start + FILTERS_PER_PACKET])
            self._client.disconnect(properties=properties)
            self._client.loop_write()  # paho closes the socket behind it
        self.hang_up()

    def check(self) -> None:
        """Pings the broker if need be, and gives a connection up that has been silent for too long; once a second."""
        if self._fd >= 0:
            self._client.loop_misc()

    # Talking

    @property
    def unsent(self) -> int:
        """Bytes of payload that the operating system has not taken yet."""
        return self._queued + (self._sock.unsent if self._fd >= 0 else 0)

    def publish(self, message: TransportMessage, packed: bytes) -> int:
        """Sends a message, at QoS 1 until it is acknowledged; returns its packet identifier.

        Args:
            message: the message.
            packed: its properties (MQTT 5).

        Raises:
            ValueError: its topic is none, or it is larger than MQTT allows.
        """
        if not message.topic:
            raise ValueError("the topic is empty")
        properties = cast(Properties, Packed(packed))
        self._queued += len(message.payload)
        for _ in range(_PACKET_IDENTIFIERS):
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
            if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # else a message waits under this identifier already
                return info.mid
        raise ValueError("all packet identifiers are in use")

    def acknowledge(self, mid: int) -> None:
        """Acknowledges a message that came at QoS 1."""
        self._client.ack(mid, 1)

    def subscribe(self, wanted: list[tuple[str, int]]) -> int | None:
        """Asks for filters with their QoS; returns the packet identifier, None if the connection is gone.

        Raises:
            ValueError: one is no filter.
        """
        return self._client.subscribe(cast(Any, wanted))[1]

    def unsubscribe(self, filters: list[str]) -> None:
        """Ends subscriptions; nobody waits for the answer."""
        self._client.unsubscribe(filters)

    # Driving paho

    def _readable(self) -> None:
        self._sock.readable()
        self._read_buffered(self._sock)

    def _read_buffered(self, sock: BufferedSocket) -> None:
        sock.new_turn()
        for _ in range(_PACKETS_PER_TURN):
            if self._fd < 0 or sock is not self._sock:
                return
            try:
                if self._client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    return self._break_off()
            except Exception:  # paho raises for packets that it can't read, and would go on in the middle of one
                _log.exception("the broker sent a packet that can't be read: the connection is given up")
                return self._break_off()
            if not sock.unread:
                return
        self._loop.call_soon(self._read_buffered, sock)

    def _schedule_flush(self) -> None:
        # paho may call this in the dialling thread; `dial` flushes what it wrote there.
        if self._fd >= 0 and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._fd < 0:
            return
        self._queued = 0
        self._client.loop_write()
        try:
            done = self._sock.flush()
        except OSError:
            return self._break_off()
        if done:
            self._loop.remove_writer(self._fd)
            self._listener.drained()
        else:
            self._loop.add_writer(self._fd, self._flush)

    def _break_off(self) -> None:
        self.hang_up()
        self._listener.lost(None)

    def _on_connect(self, _c: Any, _u: Any, _flags: Any, reason: ReasonCode, properties: Any) -> None:
        receive_maximum = getattr(properties, "ReceiveMaximum", None)
        self._listener.accepted(_translate(reason), receive_maximum, getattr(properties, "MaximumPacketSize", None))


def _translate(reason: ReasonCode) -> Reason:
    return Reason(reason.value, str(reason))

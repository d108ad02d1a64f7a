"""paho-mqtt's client with our buffered socket, our decoder for frequent packets, and handshakes that clean up."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mqttcollab.config import BrokerAddress
from mqttcollab.errors import ConfigError
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.options import MqttOptions
from mqttcollab.transport.properties import unpack_publish
from mqttcollab.transport.socket import BufferedSocket, SocketLike

_log = logging.getLogger(__name__)


class Client(paho.Client):
    """paho with our buffered socket under it, and our decoder for the two packets that come by the thousand."""

    buffered: BufferedSocket | None = None
    dialled: socket.socket | None = None
    deliver: Callable[[int, TransportMessage], None]

    def _create_socket(self) -> Any:
        try:
            inner = cast(SocketLike, super()._create_socket())
        except BaseException:  # paho leaves the socket of a failed handshake open
            if self.dialled is not None:
                self.dialled.close()
            raise
        inner.setblocking(False)
        self.buffered = BufferedSocket(inner, plain=not self._ssl and self._transport == "tcp")
        return self.buffered

    def _create_socket_connection(self) -> socket.socket:
        self.dialled = super()._create_socket_connection()
        # Else Nagle's algorithm holds a small packet back until the broker has acknowledged the one before: 40 ms.
        self.dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.dialled

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> Any:
        context = self._ssl_context
        assert context is not None
        # paho's own does the handshake in a socket that nobody can close when it fails.
        tcp_sock.settimeout(self.connect_timeout)
        self.dialled = context.wrap_socket(tcp_sock, server_hostname=self._host, do_handshake_on_connect=False)
        self.dialled.do_handshake()
        return self.dialled

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


class Packed:
    """Stands in for paho's Properties where it only packs them."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pack(self) -> bytes:
        """What paho asks of properties."""
        return self._data


def puback_text(code: int) -> str:
    """The reason code of an acknowledged publish in words."""
    return str(_puback_reason(code))


def make_client(
    broker: BrokerAddress, client_id: str, version: int, will: TransportMessage | None, options: MqttOptions
) -> Client:
    """A client that has not dialled yet; raises ConfigError for certificates that can't be used."""
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id,
        clean_session=None if version == 5 else options.session_expiry_s == 0,
        protocol=paho.MQTTv5 if version == 5 else paho.MQTTv311,
        transport="websockets" if broker.websocket else "tcp",
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.max_inflight_messages_set(0)  # our own window counts
    client.suppress_exceptions = False
    client.connect_timeout = options.timeout_s
    if broker.username is not None:
        client.username_pw_set(broker.username, broker.password)
    if broker.websocket:
        client.ws_set_options(path=broker.path)
    if broker.tls:
        try:
            # With a password, if only an empty one: else a key that wants one is asked for in the terminal.
            client.tls_set(broker.ca, broker.cert, broker.key, keyfile_password="")
        except (OSError, ValueError) as error:
            raise ConfigError(f"broker {broker}: the certificate or key files can't be used: {error}") from None
    if will is not None:
        client.will_set(will.topic, will.payload, will.qos, will.retain)
    properties = None
    if version == 5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = options.session_expiry_s
        properties.ReceiveMaximum = options.receive_maximum
        properties.MaximumPacketSize = options.maximum_packet
    clean_start = options.session_expiry_s == 0 if version == 5 else paho.MQTT_CLEAN_START_FIRST_ONLY
    client.connect_async(broker.host, broker.port, options.keepalive_s, clean_start=clean_start, properties=properties)
    return client


_NO_PROPERTIES = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]


@lru_cache
def _puback_reason(code: int) -> ReasonCode:
    try:
        return ReasonCode(PacketTypes.PUBACK, identifier=code)
    except KeyError:  # one that MQTT does not list; from 0x80 on they are failures
        return ReasonCode(PacketTypes.PUBACK, identifier=0x80 if code >= 0x80 else 0)

"""Small packets leave at once: with Nagle's algorithm a burst of requests takes 44 ms instead of one."""

from __future__ import annotations

import socket

from mqttcollab.broker import Broker
from mqttcollab.config import BrokerAddress
from mqttcollab.transport.mqtt import MqttTransport


async def test_the_connection_has_nagles_algorithm_off() -> None:
    async with Broker() as broker:
        transport = MqttTransport(BrokerAddress.parse(broker.info.url), "nodelay")
        await transport.connect()
        with socket.fromfd(transport._session.link._sock.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
            assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        await transport.close()

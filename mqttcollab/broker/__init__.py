"""Start a broker process: Mosquitto where it is installed, else the nats-server from its wheel.

    async with Broker() as broker:
        print(broker.info.kind, broker.info.url)

The broker listens on loopback, on free ports unless told otherwise, and is gone with its files at the end.
"""

from mqttcollab.broker.listeners import BrokerInfo
from mqttcollab.broker.server import Broker, BrokerKind, find_broker

__all__ = ["Broker", "BrokerInfo", "BrokerKind", "find_broker"]

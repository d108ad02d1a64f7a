"""The command line's own connection to a broker."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator

from mqttcollab.agent import Agent, AgentOptions
from mqttcollab.config import BrokerAddress
from mqttcollab.topics import LABEL_RE
from mqttcollab.transport.base import Transport, TransportMessage
from mqttcollab.transport.mqtt import MqttTransport


@contextlib.asynccontextmanager
async def running_client(broker: str | None, name: str | None = None) -> AsyncIterator[Agent]:
    """An agent that only asks and watches: nobody sees it, and nothing of it stays on the broker.

    A broker with access control lets a user read the replies to its own name only, so that is the default. The
    client id is another one each time, or the command would end the connection of the device with that name.
    """
    if logging.getLogger().level > logging.INFO:
        # What others published that is not valid concerns `mqttcollab agents`, which asks the registry for it.
        logging.getLogger("mqttcollab.cms").setLevel(logging.ERROR)
    address = BrokerAddress.parse(broker)

    def connection(agent: str, _will: TransportMessage | None) -> Transport:
        return MqttTransport(address, f"{agent}-{secrets.token_hex(4)}")

    if name is None:
        named = LABEL_RE.fullmatch(address.username or "")
        name = named[0] if named else f"cli-{secrets.token_hex(4)}"
    me = Agent(name, options=AgentOptions(visible=False))
    async with me.running(connection):
        yield me

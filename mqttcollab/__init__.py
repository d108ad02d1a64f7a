"""MQTT middleware through which small language models on many devices work together."""

from mqttcollab.agent import Agent, AgentOptions
from mqttcollab.cms.registry import Registry
from mqttcollab.errors import (
    BrokerError,
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    DuplicateAgent,
    JournalError,
    MessageError,
    MqttCollabError,
    PublishError,
    RequestError,
    RuntimeFailure,
    SubscribeError,
    TooLarge,
    TopicError,
    TransportError,
    UnsupportedVersion,
)
from mqttcollab.messages import ContextItem, Observation, Parameters, Reply, Request, Source, Step, Usage
from mqttcollab.service import Answer, Service

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentOptions",
    "Answer",
    "BrokerError",
    "ConfigError",
    "ConnectError",
    "ContextItem",
    "DeadlineExceeded",
    "DuplicateAgent",
    "JournalError",
    "MessageError",
    "MqttCollabError",
    "Observation",
    "Parameters",
    "PublishError",
    "Registry",
    "Reply",
    "Request",
    "RequestError",
    "RuntimeFailure",
    "Service",
    "Source",
    "Step",
    "SubscribeError",
    "TooLarge",
    "TopicError",
    "TransportError",
    "UnsupportedVersion",
    "Usage",
]

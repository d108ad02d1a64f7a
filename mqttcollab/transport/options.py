"""What an MQTT connection can be told beside the broker's address."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """Time-outs, limits and the session of an MQTT connection.

    Attributes:
        keepalive_s: seconds of silence after which broker and client suspect each other.
        session_expiry_s: how long the broker keeps subscriptions and queued messages while the client is away;
            0 starts clean every time. MQTT 3.1.1 knows no expiry: there a session stays until it is cleaned.
        receive_maximum: QoS 1 messages that the broker may send before the first is acknowledged (MQTT 5; with
            3.1.1 the broker's own limit holds).
        ack_limit_s: the longest, in seconds, that a handler may hold back the acknowledgement of its message, and
            so of all that came after it.
        window: QoS 1 publishes in flight, where the broker's own receive maximum is not smaller.
        maximum_packet: largest packet that is sent and, with MQTT 5, accepted, in bytes. Larger ones are refused
            here, since a broker that gets one breaks the connection.
        backoff_s, backoff_max_s: first and longest pause between attempts to reconnect, before full jitter.
        timeout_s: how long a connection attempt may take.
    """

    keepalive_s: int = 30
    session_expiry_s: int = 0
    receive_maximum: int = 1024
    ack_limit_s: float = 30.0
    window: int = 256
    maximum_packet: int = 1 << 20
    backoff_s: float = 0.2
    backoff_max_s: float = 3.0
    timeout_s: float = 5.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait before the next attempt: exponential, with full jitter.

        So a fleet does not come back in step (Brooker, "Exponential Backoff And Jitter", 2015).
        """
        return random.uniform(0, min(self.backoff_max_s, self.backoff_s * 2.0 ** min(attempt, 16)))

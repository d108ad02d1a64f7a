"""Our PUBLISH decoder against paho's encoder, and against whatever bytes a broken broker may send."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.properties import pack_properties, unpack_publish

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)
MAYBE_TEXT = st.none() | TEXT
MESSAGES = st.builds(
    TransportMessage,
    topic=TEXT.filter(bool),
    payload=st.binary(max_size=300),
    qos=st.sampled_from([0, 1]),
    retain=st.booleans(),
    content_type=MAYBE_TEXT,
    response_topic=MAYBE_TEXT,
    correlation=st.none() | st.binary(max_size=300),
    expiry_s=st.none() | st.integers(0, 2**32 - 1),
    type=MAYBE_TEXT,
    traceparent=MAYBE_TEXT,
)


def publish(message: TransportMessage, mid: int, properties: bytes) -> tuple[int, bytes]:
    """The flags and the body of a PUBLISH packet."""
    topic = message.topic.encode()
    identifier = mid.to_bytes(2, "big") if message.qos else b""
    body = len(topic).to_bytes(2, "big") + topic + identifier + properties + message.payload
    return message.qos << 1 | message.retain, body


def paho_properties(**values: Any) -> bytes:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return bytes(properties.pack())  # type: ignore[no-untyped-call]


@given(MESSAGES, st.integers(1, 0xFFFF))
def test_what_we_pack_we_unpack(message: TransportMessage, mid: int) -> None:
    flags, body = publish(message, mid, pack_properties(message))
    assert unpack_publish(flags, body, mqtt5=True) == (mid if message.qos else 0, message)


@given(MESSAGES)
def test_it_reads_what_paho_packs(message: TransportMessage) -> None:
    values = {
        "ContentType": message.content_type,
        "ResponseTopic": message.response_topic,
        "CorrelationData": message.correlation,
        "MessageExpiryInterval": message.expiry_s,
        "UserProperty": [(k, v) for k in ("type", "traceparent") if (v := getattr(message, k)) is not None] or None,
    }
    packed = paho_properties(**{name: value for name, value in values.items() if value is not None})
    flags, body = publish(message, 7, packed)
    assert unpack_publish(flags, body, mqtt5=True)[1] == message


@given(MESSAGES, st.integers(1, 0xFFFF))
def test_mqtt_3_1_1_has_no_properties(message: TransportMessage, mid: int) -> None:
    flags, body = publish(message, mid, b"")
    plain = TransportMessage(message.topic, message.payload, message.qos, message.retain)
    assert unpack_publish(flags, body, mqtt5=False) == (mid if message.qos else 0, plain)


def test_properties_that_are_not_ours_are_passed_over() -> None:
    packed = paho_properties(
        PayloadFormatIndicator=1,
        SubscriptionIdentifier=200_000,
        TopicAlias=3,
        UserProperty=[("other", "x"), ("type", "first"), ("type", "second")],
        CorrelationData=b"id",
    )
    flags, body = publish(TransportMessage("t", b"payload"), 9, packed)
    expected = TransportMessage("t", b"payload", correlation=b"id", type="first")
    assert unpack_publish(flags, body, mqtt5=True) == (9, expected)


@given(st.integers(0, 15), st.binary(max_size=60), st.booleans())
def test_any_bytes_are_a_message_or_malformed(flags: int, body: bytes, mqtt5: bool) -> None:
    try:
        mid, message = unpack_publish(flags, body, mqtt5=mqtt5)
    except ValueError:
        return
    assert message.topic and len(message.payload) < len(body)
    assert (mid > 0) == (message.qos > 0)


@given(MESSAGES, st.data())
def test_a_packet_that_ends_before_its_payload_is_malformed(message: TransportMessage, data: st.DataObject) -> None:
    flags, body = publish(message, 7, pack_properties(message))
    head = len(body) - len(message.payload)
    with pytest.raises(ValueError):
        unpack_publish(flags, body[: data.draw(st.integers(0, head - 1))], mqtt5=True)


@pytest.mark.parametrize(
    ("flags", "body"),
    [
        (2, b"\x00\x01t\x00\x00\x00"),  # QoS 1 with the identifier 0
        (6, b"\x00\x01t\x00\x01\x00"),  # QoS 3
        (0, b"\x00\x00\x00"),  # no topic, and we announce no topic aliases
        (0, b"\x00\x02\xc3\x28\x00"),  # a topic that is no UTF-8
        (0, b"\x00\x01t\x02\x11\x00"),  # a property that belongs to CONNECT
        (0, b"\x00\x01t\x02\x02\x00"),  # an expiry that goes on past the properties
        (0, b"\x00\x01t\x80\x80\x80\x80\x01"),  # a length of five bytes
    ],
)
def test_malformed_packets_are_refused(flags: int, body: bytes) -> None:
    with pytest.raises(ValueError):
        unpack_publish(flags, body, mqtt5=True)

"""What is fuzzed: every function that takes bytes from others. Each takes one input, and returns unless all is lost.

Whatever arrives is a value or an error of ours. Anything else, and every property that does not hold, is a crash.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import cbor2
from fuzz import seeds
from fuzz.bytesource import ByteSource
from fuzz.live import live_area, live_registry, live_rpc

from mqttcollab import topics
from mqttcollab.codec import CBOR, decode, decode_any, encode
from mqttcollab.errors import MessageError, MqttCollabError
from mqttcollab.messages import Embedding, Message, ServiceRecord
from mqttcollab.plans.plan import parse as parse_plan
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.properties import pack_properties, unpack_publish
from mqttcollab.transport.router import Router

T = TypeVar("T")
_NO_LIMIT = 1 << 24
_LONGEST_ERROR = 2000


@dataclass(frozen=True, slots=True)
class Target:
    """A function that takes one input.

    Attributes:
        share: of all inputs, in parts of the sum of all shares.
        seeds: inputs to begin with.
    """

    run: Callable[[bytes], None]
    share: int
    max_len: int
    seeds: Callable[[], list[bytes]]


def attempt(function: Callable[[], T]) -> T | None:
    """What it returns; None for an error of ours, which has one line of bounded length."""
    try:
        return function()
    except MqttCollabError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < _LONGEST_ERROR, f"no good message: {text!r:.300}"
        return None


# --- messages


def one_message(data: bytes) -> None:
    """The first byte chooses the kind and the form, the rest is the payload."""
    source = ByteSource(data)
    head = source.byte()
    kind = seeds.KINDS[head % len(seeds.KINDS)]
    payload = (seeds.MAGIC if head & 0x80 else b"") + source.rest()
    sent_type = str(kind.model_fields["type"].default) if head & 0x40 else None
    message = attempt(lambda: decode(kind, payload, sent_type=sent_type))
    any_message = attempt(lambda: decode_any(payload))
    if sent_type is None and message is not None:
        assert any_message == message
    for found in (message, any_message):
        if found is not None:
            check_round_trips(found)


def check_round_trips(message: Message) -> None:
    assert decode(type(message), encode(message), limit=_NO_LIMIT) == message
    expected = message.model_copy()
    try:
        for field in ("vector", "centroid"):
            if isinstance(message, Embedding | ServiceRecord) and (vector := getattr(message, field, None)):
                packed = struct.pack(f"<{len(vector)}f", *vector)
                setattr(expected, field, list(struct.unpack(f"<{len(vector)}f", packed)))
        payload = encode(message, CBOR)
    except (OverflowError, MessageError) as error:
        assert isinstance(error, OverflowError) or "does not fit" in str(error), error
        return  # beyond float32
    assert decode(type(message), payload, limit=_NO_LIMIT) == expected


def two_forms(data: bytes) -> None:
    """A map as JSON and as CBOR: both are refused, or both are the same message."""
    source = ByteSource(data)
    kind = source.pick(seeds.KINDS)
    names = [*kind.model_fields, "text", "data", "x"]
    content = {name: value for name, value in example(kind).items() if source.byte() % 16}
    for _ in range(1 + source.byte() % 4):
        content[source.pick(names)] = source.tree(names)
    of_json = attempt(lambda: decode(kind, json.dumps(content).encode()))
    of_cbor = attempt(lambda: decode(kind, seeds.MAGIC + cbor2.dumps(content)))
    assert of_json == of_cbor, (content, of_json, of_cbor)
    if of_json is not None:
        check_round_trips(of_json)


def example(kind: type[Message]) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in seeds.MESSAGES if type(m) is kind).model_dump(exclude_unset=True)
    return {"type": kind.model_fields["type"].default} | found


# --- topics and packets


def one_topic(data: bytes) -> None:
    head, _, tail = data.decode("utf-8", "surrogateescape").partition("\n")
    for check in (topics.check_agent, topics.check_service, topics.check_id, topics.parse_reply_topic):
        attempt(lambda check=check: check(head))  # type: ignore[misc]
    attempt(lambda: topics.parse_status(data))
    if (parsed := attempt(lambda: topics.parse(head))) is not None:
        assert built(parsed) == head
    if tail and not set(tail) & {"+", "#"} and is_filter(head):
        expected = reference_matches(head, tail)
        assert topics.matches(head, tail) == expected
        called: list[str] = []
        router = Router()
        router.add(head, lambda message: called.append(message.topic), 1)
        router.route(TransportMessage(tail, b""))
        assert called == ([tail] if expected else [])
        assert router.remove(head) and not router.filters


def is_filter(text: str) -> bool:
    """Whether a broker takes it as a filter: wildcards are whole levels, `#` the last, a share has a group."""
    *levels, last = text.split("/")
    alone = all(level in ("+", "#") or not set(level) & {"+", "#"} for level in (*levels, last))
    return bool(text) and alone and "#" not in levels and (not text.startswith("$share/") or len(levels) > 1)


def built(topic: topics.Topic) -> str:
    """The topic again, by the functions that build topics."""
    match topic.kind:
        case "record":
            return topics.record_topic(topic.service, topic.agent)
        case "request" | "anycast":
            return topics.request_topic(topic.service, topic.agent or None)
        case "cancel":
            return topics.cancel_topic(topic.service, topic.agent)
        case "embedding" | "observation":
            return f"{topics.record_topic(topic.service, topic.agent)}/{topic.kind}"
        case "reply":
            return topics.reply_topic(topic.agent, topic.leaf)
        case "slm":
            return f"slm/{topic.leaf}"
        case _:
            return topics.agent_topic(topic.agent, topic.kind)


def reference_matches(filter_: str, topic: str) -> bool:
    """MQTT 5, section 4.7, word for word."""
    if filter_.startswith("$share/"):
        filter_ = filter_.split("/", 2)[2] if filter_.count("/") > 1 else "\0"
    return not (topic[:1] == "$" and filter_[:1] in ("+", "#")) and _match(filter_.split("/"), topic.split("/"))


def _match(wanted: list[str], levels: list[str]) -> bool:
    if not wanted or wanted[0] == "#":
        return bool(wanted) or not levels
    return bool(levels) and wanted[0] in ("+", levels[0]) and _match(wanted[1:], levels[1:])


def one_packet(data: bytes) -> None:
    flags, mqtt5, body = data[0] & 0x0F if data else 0, bool(data[1:2] and data[1] & 1), data[2:]
    try:
        mid, message = unpack_publish(flags, body, mqtt5=mqtt5)
    except ValueError:
        return
    assert 0 <= mid <= 0xFFFF and message.qos in (0, 1, 2)
    head = message.topic.encode()
    again = len(head).to_bytes(2, "big") + head + (mid.to_bytes(2, "big") if message.qos else b"")
    again += (pack_properties(message) if mqtt5 else b"") + message.payload
    assert unpack_publish(flags, again, mqtt5=mqtt5) == (mid, message)


def one_plan(data: bytes) -> None:
    """What a language model writes as a plan."""
    plan = attempt(lambda: parse_plan(data.decode("utf-8", "replace")))
    assert plan is None or plan.steps


def _message_seeds() -> list[bytes]:
    kinds = {kind: number for number, kind in enumerate(seeds.KINDS)}
    texts = [bytes([kinds[type(m)]]) + encode(m) for m in seeds.MESSAGES]
    binaries = [bytes([kinds[type(m)]]) + encode(m, CBOR) for m in seeds.MESSAGES]
    return texts + binaries + [b"\x00" + payload for payload in seeds.HOSTILE]


def _topic_seeds() -> list[bytes]:
    return [f"{topic}\n{other}".encode() for topic in seeds.TOPICS for other in seeds.TOPICS[:3]]


def _plan_seeds() -> list[bytes]:
    return [b'["one", "#1 two"]', b'{"steps": [{"text": "a", "after": [1]}, {"text": "#1", "service": "data.gpt/a"}]}']


TARGETS: dict[str, Target] = {
    "messages": Target(one_message, 45, 2048, _message_seeds),
    "two-forms": Target(two_forms, 20, 512, lambda: [bytes([n]) * 64 for n in range(0, 250, 10)]),
    "topics": Target(one_topic, 10, 256, _topic_seeds),
    "packets": Target(one_packet, 10, 512, seeds.packets),
    "plans": Target(one_plan, 5, 512, _plan_seeds),
    "rpc": Target(live_rpc, 4, 2048, lambda: [b"\x01\x07" + _sized(p) for p in seeds.PAYLOADS]),
    "registry": Target(live_registry, 4, 2048, lambda: [bytes([n]) + _sized(p) for n, p in enumerate(seeds.PAYLOADS)]),
    "area": Target(live_area, 2, 2048, lambda: [bytes([n % 2]) + _sized(p) for n, p in enumerate(seeds.PAYLOADS)]),
}


def _sized(payload: bytes) -> bytes:
    return len(payload).to_bytes(2, "big") + payload

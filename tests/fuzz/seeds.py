"""Where the fuzzer begins: every kind of message as JSON and as CBOR, real packets, and bytes that hurt decoders."""

from __future__ import annotations

import cbor2

from mqttcollab.codec import CBOR, encode
from mqttcollab.messages import (
    MESSAGE_TYPES,
    ContextItem,
    Embedding,
    ErrorInfo,
    Load,
    Message,
    Observation,
    Parameters,
    PlanStep,
    Profile,
    Reply,
    Request,
    ServiceRecord,
    Source,
    Step,
    Timing,
    Usage,
)
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.properties import pack_properties

MAGIC = b"\xd9\xd9\xf7"
KINDS: tuple[type[Message], ...] = tuple(MESSAGE_TYPES.values())

MESSAGES: tuple[Message, ...] = (
    Request(
        id="q1",
        reply_to="reply.gpt/@tiny/q1",
        input={"text": "Hello?", "n": [1, 2.5, None, {"a": True}]},
        context=[ContextItem(text="42", agent="abacus-1", data={"a": 1})],
        parameters=Parameters(max_tokens=9, temperature=0.5, stop=["."], seed=7),
        plan=[PlanStep(text="one"), PlanStep(text="#1 two", service="knowledge.gpt/echo", after=[1])],
        stream=True,
        tenant="clinic",
        budget_usd=0.5,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    Reply(
        id="q1",
        output="Hello!",
        data={"a": [1, "b"]},
        confidence=0.5,
        usage=Usage(prompt_tokens=3, completion_tokens=4, cost_usd=0.1),
        sources=[Source(agent="a", document="d", time_ms=1)],
        timing=Timing(queued_ms=1.5, elapsed_ms=2.5),
        steps=[Step(service="knowledge.gpt/echo", after=[1])],
        missing=["a part"],
    ),
    Reply(id="q1", status="error", error=ErrorInfo(code="busy", message="later", retry_after_ms=7)),
    Reply(id="q1", seq=1, last=False, status="partial", output="He"),
    ServiceRecord(
        agent="a",
        service="knowledge.gpt/echo",
        description="Says it again",
        examples=["Say hello"],
        embedding_model="m",
        dimension=3,
        centroid=[0.5, -1.0, 2.0],
        heartbeat_s=10,
        ttl_s=60,
        durable=True,
    ),
    Profile(agent="a", hardware={"machine": "x86_64"}, services=["knowledge.gpt/echo"]),
    Load(agent="a", running=1, queued=2, slots=4, tokens_per_s=20.5, battery=0.5, heartbeat_s=10),
    Observation(id="o1", agent="a", service="data.gpt/air", text="fresh", values={"co2": 420.0}, units={"co2": "ppm"}),
    Embedding(agent="a", service="data.gpt/air", model="m", vector=[0.5, -0.25, 1.0], text="fresh", observation="o1"),
)

# Bytes that have hurt one decoder or another: depth, sizes that lie, tags, numbers without end, text that is none.
_BASE = b'{"type":"mqttcollab.request.v1","id":"a","reply_to":"reply.gpt/@a/b","input":'
HOSTILE: tuple[bytes, ...] = (
    b"",
    b"null",
    b"[" * 500,
    b"{" * 100,
    _BASE + b'{"a":' * 150 + b"1" + b"}" * 151,
    _BASE + b'{"a":1e999999}}',
    _BASE + b'{"a":1' + b"0" * 500 + b"}}",
    _BASE + b'"x","ttl_ms":1' + b"0" * 500 + b"}",
    _BASE + b'{"a":NaN}}',
    _BASE + b'"\\ud800"}',
    _BASE + b'"\\u0000"}',
    _BASE + b'"x","input":"y"}',
    b"\xef\xbb\xbf" + _BASE + b'"x"}',
    (_BASE + b'"x"}').decode().encode("utf-16"),
    b'{"type":"mqttcollab.load.v1","agent":"a","running":1' + b"0" * 400 + b"}",
    MAGIC + b"\x81" * 200,
    MAGIC + b"\xc1" * 200,
    MAGIC * 20,
    MAGIC + b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that holds itself
    MAGIC + b"\xa1\x61a\xd8\x1c\x81\xd8\x1d\x00",
    MAGIC + b"\x9b\x00\x00\x00\x7f\xff\xff\xff\xff",  # two gigabytes, it says
    MAGIC + b"\xbb\x7f\xff\xff\xff\xff\xff\xff\xff",
    MAGIC + b"\x5b\x00\x00\x00\x00\x7f\xff\xff\xff",
    MAGIC + b"\xbf\x7f\x61a\x61b\xff\x01\xff",
    MAGIC + b"\xff",
    MAGIC + b"\xa1\x81\x01\x02",
    MAGIC + b"\xa1\xd9\x01\x02\x81\x01\x02",
    MAGIC + b"\xa1\x63\xed\xa0\x80\x01",
    MAGIC + b"\xa1\x61a\xf8\xff",
    MAGIC + b"\xa1\x61a\xf9\x7e\x00",
    MAGIC + cbor2.dumps({"a": 2**70, "b": -(2**70)}),
    MAGIC + b"\xa1\x61a\xc4\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01",  # ten to the power of nine quintillions
    MAGIC + b"\xa1\x61a\xc1\x1b\x7f\xff\xff\xff\xff\xff\xff\xff",
    MAGIC + b"\xa1\x66vector\xd8\x55\x43abc",
    MAGIC
    + cbor2.dumps(
        {"type": "mqttcollab.embedding.v1", "agent": "a", "service": "data.gpt/x", "model": "m"}
        | {"vector": [10**30, 1.5], "scale": 10**30}
    ),
)

TOPICS = (
    "knowledge.gpt/medicine/cardiology/@a/request",
    "knowledge.gpt/echo/request",
    "data.gpt/air/@a/observation",
    "reply.gpt/@a/q1",
    "slm/agents/@a/status",
    "slm/models/m/context_length",
    "$share/group/a/+/#",
    "+/+/@a",
)
PAYLOADS = tuple(encode(message) for message in MESSAGES) + tuple(encode(message, CBOR) for message in MESSAGES)


def packets() -> list[bytes]:
    """PUBLISH packets as the target `packets` takes them: the flags, 1 for MQTT 5, the body."""
    full = TransportMessage(
        "a/b", b"x", content_type="application/json", response_topic="reply.gpt/@a/b", correlation=b"b",
        expiry_s=30, type="mqttcollab.request.v1", traceparent="00-0-0-0",
    )  # fmt: skip
    body = b"\x00\x03a/b\x00\x07" + pack_properties(full) + b"x"
    return [b"\x02\x01" + body, b"\x00\x00\x00\x03a/bx", b"\x03\x01\x00\x03a/b\x00\x01\x00x", b"\x02\x01\x00\x03a/b"]


def words() -> list[bytes]:
    """What the fuzzer can't guess: names of types and fields, and markers of the formats."""
    names = {name for kind in KINDS for name in kind.model_fields} | {"scale", "text", "code", "message", "document"}
    names |= {"retry_after_ms", "after", "max_tokens", "temperature", "seed", "steps", "elapsed_ms"}
    found = [f'"{text}"'.encode() for text in (*sorted(names), *MESSAGE_TYPES, "ok", "error", "partial")]
    found += [bytes([0x60 + len(name)]) + name.encode() for name in sorted(names) if len(name) < 24]
    found += [bytes([0x78, len(kind)]) + kind.encode() for kind in MESSAGE_TYPES]
    found += [bytes([0xD8, tag]) for tag in (28, 29, 64, 72, 80, 82, 84, 85, 86)]
    return [*found, MAGIC, b"online 1", b"offline 1", b"sleeping 1", b"null", b"1e999", b"reply.gpt/@a/b", b"/@a"]

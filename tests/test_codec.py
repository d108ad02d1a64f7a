"""Bytes to messages and back: JSON, CBOR, typed arrays, and whatever else arrives."""

from __future__ import annotations

import json
import math
import struct
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import cbor2
import pytest
from cbor2 import CBORTag
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mqttcollab.codec import CBOR, JSON, ContentType, VectorType, decode, decode_any, decode_map, encode
from mqttcollab.errors import MessageError, RequestError, TooLarge, TopicError, UnsupportedVersion
from mqttcollab.messages import (
    MAX_INTEGER,
    MAX_TTL_MS,
    MESSAGE_TYPES,
    ContextItem,
    Embedding,
    ErrorInfo,
    Load,
    Message,
    Observation,
    Parameters,
    Profile,
    Reply,
    Request,
    ServiceRecord,
    Source,
    Step,
    Timing,
    Usage,
)

MAGIC = bytes.fromhex("d9d9f7")
REQUEST = {"type": "mqttcollab.request.v1", "id": "1", "reply_to": "reply.gpt/@phone/1", "input": "Hello?"}
EMBEDDING = {
    "type": "mqttcollab.embedding.v1",
    "agent": "watch-7",
    "service": "data.gpt/health/heart-rate",
    "model": "m",
    "vector": [1.0, -0.5],
}

both_formats = pytest.mark.parametrize("content_type", [JSON, CBOR])


def to_cbor(content: object) -> bytes:
    return MAGIC + cbor2.dumps(content)


def to_bytes(content: object, content_type: ContentType) -> bytes:
    return to_cbor(content) if content_type == CBOR else json.dumps(content).encode()


# --- round trips

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
ID = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True)
SERVICE = st.builds("{}/{}".format, st.sampled_from(["data.gpt", "knowledge.gpt/a", "computation.gpt"]), LABEL)
TEXT = st.text(max_size=20)
MAYBE_TEXT = st.none() | TEXT
COUNT = st.integers(0, MAX_INTEGER)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SHARE = st.floats(0, 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DATA = st.dictionaries(TEXT, PLAIN, max_size=3)
VECTOR = st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=8)

REPLY_TOPIC = st.builds("reply.gpt/@{}/{}".format, LABEL, ID)
ERROR = st.builds(ErrorInfo, code=TEXT, message=TEXT, retry_after_ms=st.none() | COUNT)
SOURCES = st.lists(st.builds(Source, agent=MAYBE_TEXT, document=MAYBE_TEXT, text=MAYBE_TEXT), max_size=2)
MESSAGES: dict[type[Message], st.SearchStrategy[Any]] = {
    Request: st.builds(
        Request,
        id=ID,
        reply_to=REPLY_TOPIC,
        ttl_ms=st.integers(1, MAX_TTL_MS),
        service=st.none() | SERVICE,
        input=TEXT | DATA,
        context=st.lists(st.builds(ContextItem, text=TEXT, data=st.none() | DATA), max_size=2),
        parameters=st.builds(Parameters, temperature=st.none() | st.floats(0, 2), stop=st.lists(TEXT, max_size=2)),
        stream=st.booleans(),
        hops=st.integers(0, 20),
        budget_usd=st.none() | st.floats(0, 10),
        traceparent=MAYBE_TEXT,
    ),
    Reply: st.builds(
        Reply,
        id=ID,
        seq=COUNT,
        last=st.booleans(),
        status=st.sampled_from(["ok", "partial", "error"]),
        output=MAYBE_TEXT,
        data=st.none() | DATA,
        confidence=st.none() | SHARE,
        usage=st.none() | st.builds(Usage, prompt_tokens=COUNT),
        sources=SOURCES,
        timing=st.none() | st.builds(Timing, elapsed_ms=st.floats(0, 1e6)),
        steps=st.lists(st.builds(Step, service=TEXT, after=st.lists(st.integers(1, 9), max_size=2)), max_size=2),
        missing=st.lists(TEXT, max_size=2),
        error=st.none() | ERROR,
    ),
    ServiceRecord: st.builds(
        ServiceRecord,
        agent=LABEL,
        service=SERVICE,
        description=TEXT,
        examples=st.lists(TEXT, max_size=3),
        centroid=st.none() | VECTOR,
        concurrency=st.integers(1, 100),
        accuracy=st.none() | SHARE,
    ),
    Profile: st.builds(Profile, agent=LABEL, hardware=DATA, services=st.lists(TEXT, max_size=2)),
    Load: st.builds(Load, agent=LABEL, running=COUNT, battery=st.none() | SHARE, last_rejection=MAYBE_TEXT),
    Observation: st.builds(
        Observation, id=ID, agent=LABEL, service=SERVICE, values=st.dictionaries(TEXT, FINITE, max_size=3)
    ),
    Embedding: st.builds(Embedding, agent=LABEL, service=SERVICE, model=TEXT, vector=VECTOR, text=MAYBE_TEXT),
}
ANY_MESSAGE = st.one_of(list(MESSAGES.values()))


def test_every_message_type_is_tried_here() -> None:
    assert set(MESSAGES) == set(MESSAGE_TYPES.values())


@given(ANY_MESSAGE, st.sampled_from([JSON, CBOR]), st.sampled_from(["float32", "float16"]))
def test_what_is_encoded_decodes_to_itself(message: Message, content_type: ContentType, vectors: VectorType) -> None:
    payload = encode(message, content_type, vectors=vectors)
    assert decode(type(message), payload) == message
    assert decode_any(payload) == message
    assert decode_map(payload)["type"] == message.type


@given(ANY_MESSAGE)
def test_json_is_what_any_parser_reads(message: Message) -> None:
    content = json.loads(encode(message))
    assert content["type"] == message.type
    assert type(message).model_validate(content) == message


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=300))
def test_int8_keeps_each_value_to_half_a_step(vector: list[float]) -> None:
    message = Embedding(agent="a", service="data.gpt/a", model="m", vector=vector)
    decoded = decode(Embedding, encode(message, CBOR, vectors="int8"))
    step = max(max(map(abs, vector)) / 127, 1e-300)
    assert all(abs(a - b) <= 0.501 * step for a, b in zip(vector, decoded.vector, strict=True))


def test_fields_at_their_default_take_no_space() -> None:
    request = Request(id="1", reply_to="reply.gpt/@phone/1", input="Hello?")
    assert set(json.loads(encode(request))) == {"type", "id", "reply_to", "input", "ttl_ms"}
    assert set(decode_map(encode(request, CBOR))) == {"type", "id", "reply_to", "input", "ttl_ms"}
    assert json.loads(encode(Reply(id="1", output="42"))) == {
        "type": "mqttcollab.reply.v1", "id": "1", "seq": 0, "last": True, "status": "ok", "output": "42",
    }  # fmt: skip


# --- vectors


@pytest.mark.parametrize(
    ("tag", "code"),
    [(64, "<B"), (72, "<b"), (80, ">e"), (84, "<e"), (81, ">f"), (85, "<f"), (82, ">d"), (86, "<d")],
)
def test_typed_arrays_of_both_byte_orders(tag: int, code: str) -> None:
    values = [0.0, 1.0, 2.0, 100.0]
    packed = struct.pack(f"{code[0]}4{code[1]}", *(int(v) if code[1] in "bB" else v for v in values))
    message = decode(Embedding, to_cbor(EMBEDDING | {"vector": CBORTag(tag, packed)}))
    assert message.vector == values


@pytest.mark.parametrize("scale", [0.5, 2])
def test_the_scale_of_another_writer_may_be_any_number(scale: float) -> None:
    content = EMBEDDING | {"vector": CBORTag(72, struct.pack("<2b", 127, -127)), "scale": scale}
    assert decode(Embedding, to_cbor(content)).vector == [127 * scale, -127 * scale]


def test_a_plain_list_is_a_vector_too() -> None:
    assert decode(Embedding, to_cbor(EMBEDDING | {"vector": [1, 0.5]})).vector == [1.0, 0.5]
    assert decode(Embedding, json.dumps(EMBEDDING).encode()).vector == [1.0, -0.5]


@pytest.mark.parametrize(("vectors", "bytes_each"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_an_element_takes_the_bytes_of_its_type(vectors: VectorType, bytes_each: int) -> None:
    sizes = []
    for count in (256, 512):
        message = Embedding(agent="a", service="data.gpt/a", model="m", vector=[math.sin(i) for i in range(count)])
        sizes.append(len(encode(message, CBOR, vectors=vectors)))
    assert sizes[1] - sizes[0] == 256 * bytes_each


@pytest.mark.parametrize(("vectors", "largest_error"), [("float32", 6e-8), ("float16", 5e-4), ("int8", 4e-3)])
def test_what_a_unit_vector_loses(vectors: VectorType, largest_error: float) -> None:
    vector = [math.sin(i) for i in range(256)]
    message = Embedding(agent="a", service="data.gpt/a", model="m", vector=vector)
    decoded = decode(Embedding, encode(message, CBOR, vectors=vectors)).vector
    assert max(abs(a - b) for a, b in zip(vector, decoded, strict=True)) <= largest_error


def test_an_int8_embedding_of_256_dimensions_with_its_metadata_is_under_450_bytes() -> None:
    norm = math.sqrt(sum(math.sin(i) ** 2 for i in range(256)))
    message = Embedding(
        agent="watch-7",
        service="data.gpt/health/heart-rate",
        model="wordllama-l2-supercat-256",
        vector=[math.sin(i) / norm for i in range(256)],
        kind="text",
        observation="0123456789abcdef",
        time_ms=1_732_178_400_123,
    )
    payload = encode(message, CBOR, vectors="int8")
    assert len(payload) < 450
    assert decode(Embedding, payload).model_copy(update={"vector": message.vector}) == message


@pytest.mark.parametrize(("vectors", "value"), [("float16", 1e5), ("float32", 1e39)])
def test_a_vector_that_does_not_fit_its_type_is_refused(vectors: VectorType, value: float) -> None:
    message = Embedding(agent="a", service="data.gpt/a", model="m", vector=[value])
    with pytest.raises(MessageError, match=f"does not fit {vectors}: its largest value is"):
        encode(message, CBOR, vectors=vectors)


@pytest.mark.parametrize("vector", [[0.0], [0.0, -0.0], [5e-324, 0.0], [1e-322, -5e-324], [2.5e-306]])
def test_vectors_of_next_to_nothing_survive_int8(vector: list[float]) -> None:
    message = Embedding(agent="a", service="data.gpt/a", model="m", vector=vector)
    decoded = decode(Embedding, encode(message, CBOR, vectors="int8")).vector
    assert decoded == pytest.approx(vector, abs=1e-305)


@pytest.mark.parametrize("vector", [b"123", b"", "text", 1, [[1]], CBORTag(999, b"1234")])
def test_bad_vectors_are_refused(vector: object) -> None:
    wrapped = CBORTag(85, vector) if isinstance(vector, bytes) and vector else vector
    with pytest.raises(MessageError, match=r"vector|typed array"):
        decode(Embedding, to_cbor(EMBEDDING | {"vector": wrapped}))


@pytest.mark.parametrize("length", [0, 4097])
def test_vectors_have_1_to_4096_dimensions(length: int) -> None:
    with pytest.raises(MessageError, match="vector"):
        decode(Embedding, to_cbor(EMBEDDING | {"vector": CBORTag(85, bytes(4 * length))}))


# --- NaN and infinity


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("kind", "content", "field"),
    [
        (Embedding, EMBEDDING, "vector"),
        (
            Observation,
            {"type": "mqttcollab.observation.v1", "id": "1", "agent": "a", "service": "data.gpt/a"},
            "values",
        ),
        (Request, REQUEST, "input"),
        (Request, REQUEST, "budget_usd"),
    ],
)
@both_formats
def test_numbers_that_are_none_are_refused(
    kind: type[Message], content: dict[str, Any], field: str, value: float, content_type: ContentType
) -> None:
    bad = {"vector": [1.0, value], "values": {"x": value}, "input": {"x": [value]}, "budget_usd": value}[field]
    with pytest.raises(MessageError, match=field):
        decode(kind, to_bytes(content | {field: bad}, content_type))


@pytest.mark.parametrize("tag", [80, 81, 82, 84, 85, 86])
def test_nan_in_a_typed_array_is_refused(tag: int) -> None:
    code = {80: ">e", 81: ">f", 82: ">d", 84: "<e", 85: "<f", 86: "<d"}[tag]
    with pytest.raises(MessageError, match="finite number"):
        decode(Embedding, to_cbor(EMBEDDING | {"vector": CBORTag(tag, struct.pack(code, math.nan))}))


# --- versions, unknown fields, what the message says it is


@both_formats
def test_unknown_fields_are_ignored(content_type: ContentType) -> None:
    newer = REQUEST | {"colour": "blue", "nested": {"a": [1, None]}, "parameters": {"top_k": 3, "mood": "good"}}
    message = decode(Request, to_bytes(newer, content_type))
    assert message == Request(id="1", reply_to="reply.gpt/@phone/1", input="Hello?", parameters=Parameters(top_k=3))


@pytest.mark.parametrize(
    "value", [datetime(2025, 11, 21, tzinfo=UTC), 2**70, Fraction(1, 3), CBORTag(999, [1]), b"bytes", cbor2.undefined]
)
def test_unknown_fields_may_hold_what_we_do_not_understand(value: object) -> None:
    assert decode(Request, to_cbor(REQUEST | {"newer": value})).input == "Hello?"


@both_formats
@pytest.mark.parametrize("version", ["v2", "v10", "beta"])
def test_another_major_version_is_refused_by_name(content_type: ContentType, version: str) -> None:
    content = {"type": f"mqttcollab.request.{version}", "question": "Hello?"}
    for attempt in (
        lambda payload: decode(Request, payload),
        decode_any,
        lambda payload: decode(Request, payload, limit=10**6),
    ):
        with pytest.raises(UnsupportedVersion) as error:
            attempt(to_bytes(content, content_type))
        assert str(error.value) == f"mqttcollab.request.{version} is not supported: this side speaks {REQUEST['type']}"
        assert error.value.code == "unsupported"


def test_the_version_is_named_even_where_the_limit_is_above_the_default() -> None:
    payload = json.dumps({"type": "mqttcollab.request.v2", "input": "x" * 300_000}).encode()
    with pytest.raises(UnsupportedVersion, match=r"request\.v2 is not supported"):
        decode(Request, payload, limit=10**6)


def test_the_property_names_the_type_of_a_payload_that_does_not() -> None:
    untyped = {name: value for name, value in REQUEST.items() if name != "type"}
    assert decode(Request, json.dumps(untyped).encode(), sent_type=REQUEST["type"]).input == "Hello?"
    with pytest.raises(UnsupportedVersion, match=r"mqttcollab\.request\.v2 is not supported"):
        decode(Request, json.dumps(REQUEST).encode(), sent_type="mqttcollab.request.v2")
    with pytest.raises(MessageError, match=r'add "type": "mqttcollab\.request\.v1"'):
        decode(Request, json.dumps(untyped).encode())


@both_formats
def test_a_message_of_another_kind_is_refused(content_type: ContentType) -> None:
    payload = to_bytes(EMBEDDING, content_type)
    with pytest.raises(MessageError, match=r"'mqttcollab\.embedding\.v1' is not known here; expected"):
        decode(Request, payload)
    with pytest.raises(MessageError, match=r"'sparkplug' is not known here; expected mqttcollab\.request\.v1 or"):
        decode_any(to_bytes({"type": "sparkplug"}, content_type))
    with pytest.raises(MessageError, match='the map has no "type"'):
        decode_any(to_bytes({"type": 1}, content_type))


def test_cbor_is_recognised_without_properties() -> None:
    payload = encode(Request.model_validate(REQUEST), CBOR)
    assert payload.startswith(MAGIC)
    assert decode(Request, payload) == decode(Request, json.dumps(REQUEST).encode())
    with pytest.raises(MessageError, match="not valid JSON"):
        decode(Request, payload[len(MAGIC) :])


def test_strings_of_mixed_tongues() -> None:
    text = 'Größe 体温 🌡 "quoted" \\ \u2028 \x00'
    for content_type in (JSON, CBOR):
        assert decode(Request, encode(Request.model_validate(REQUEST | {"input": text}), content_type)).text == text


# --- what is wrong is said, in one line


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "the payload: Input should be an object"),
        (b"null", "the payload: Input should be an object"),
        (b'"text"', "the payload: Input should be an object"),
        (b"[" * 100_000, "not valid JSON"),
        (MAGIC, "no valid CBOR"),
        (MAGIC + b"\xa1", "no valid CBOR"),
        (MAGIC + b"\x9b\x7f" + b"\xff" * 7, "no valid CBOR"),
        (MAGIC + b"\x81" * 100_000, "no valid CBOR"),
        (to_cbor([1]), "not a map with text keys"),
        (to_cbor({1: 2}), "not a map with text keys"),
        (to_cbor(REQUEST | {"x": CBORTag(28, [CBORTag(29, 0)])}), "shared values"),
    ],
)
def test_payloads_that_do_not_decode(payload: bytes, reason: str) -> None:
    with pytest.raises(MessageError, match=reason) as error:
        decode(Request, payload)
    assert error.value.code == "bad_request"
    assert "\n" not in str(error.value)
    for function in (decode_any, decode_map):
        with pytest.raises(MessageError):
            function(payload)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": "a/b"}, "id: request id 'a/b' can't be a topic level"),
        ({"id": None}, "id: Input should be a valid string"),
        ({"reply_to": "slm/agents/@phone/status"}, "reply_to: reply_to 'slm/agents/@phone/status' is no reply topic"),
        ({"reply_to": "reply.gpt/@phone/+"}, r"reply_to: request id '\+' can't be a topic level"),
        ({"ttl_ms": 0}, "ttl_ms: Input should be greater than or equal to 1"),
        ({"ttl_ms": MAX_TTL_MS + 1}, "ttl_ms: Input should be less than or equal to"),
        ({"service": "knowledge.gpt/+"}, "service: service name 'knowledge.gpt/[+]' has a wildcard"),
        ({"input": 7}, r"input.*: Input should be a valid string \(and 1 more\)"),
        ({"parameters": {"temperature": -1}}, r"parameters\.temperature: Input should be greater than"),
        ({"context": [{"agent": "a"}]}, r"context\.0\.text: Field required"),
    ],
)
@both_formats
def test_fields_that_are_refused(change: dict[str, Any], reason: str, content_type: ContentType) -> None:
    with pytest.raises(MessageError, match=rf"mqttcollab\.request\.v1: {reason}") as error:
        decode(Request, to_bytes(REQUEST | change, content_type))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [b"bytes", CBORTag(999, 1), {1: 2}, [b""], datetime(2025, 11, 21, tzinfo=UTC), 2**70])
def test_what_json_can_not_hold_reaches_no_handler(value: object) -> None:
    with pytest.raises(MessageError, match="input"):
        decode(Request, to_cbor(REQUEST | {"input": {"x": value}}))


@both_formats
def test_a_payload_over_the_limit_is_too_large(content_type: ContentType) -> None:
    payload = to_bytes(REQUEST | {"input": "x" * 1000}, content_type)
    assert decode(Request, payload, limit=len(payload)).input == "x" * 1000
    for attempt in (
        lambda limit: decode(Request, payload, limit=limit),
        lambda limit: decode_any(payload, limit=limit),
        lambda limit: decode_map(payload, limit=limit),
    ):
        with pytest.raises(TooLarge, match=f"{len(payload)} bytes are over the limit of {len(payload) - 1}") as error:
            attempt(len(payload) - 1)
        assert error.value.code == "too_large"


def test_wildcards_in_names_are_refused_when_a_message_is_made() -> None:
    with pytest.raises(ValidationError, match="has a wildcard"):
        ServiceRecord(agent="a", service="knowledge.gpt/#")
    with pytest.raises(ValidationError, match="is not a DNS label"):
        Load(agent="+")
    assert issubclass(TopicError, ValueError)  # which is why pydantic takes it for a verdict


# --- whatever arrives

STRANGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from([*REQUEST, "vector", "scale"]), inner, max_size=4)
        | st.builds(CBORTag, st.integers(0, 300) | st.sampled_from([1004, 43000, 55799]), inner)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted({field for kind in MESSAGES for field in kind.model_fields} | {"scale"}))


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Noise, strange content, and messages of which a field is strange or a few bytes are changed."""
    message = draw(ANY_MESSAGE)
    match draw(st.integers(0, 3)):
        case 0:
            return draw(st.sampled_from([b"", MAGIC, b"{", b'{"type":"mqttcollab.'])) + draw(st.binary(max_size=60))
        case 1:
            return to_cbor(draw(STRANGE))
        case 2:
            content = decode_map(encode(message, draw(st.sampled_from([JSON, CBOR]))))
            content[draw(FIELDS)] = draw(STRANGE)
            return to_cbor(content)
        case _:
            payload = encode(message, draw(st.sampled_from([JSON, CBOR])))
            start = draw(st.integers(0, len(payload)))
            return payload[:start] + draw(st.binary(max_size=3)) + payload[start + draw(st.integers(0, 3)) :]


@given(payloads(), st.sampled_from(list(MESSAGES)), st.none() | st.text(max_size=9))
def test_arbitrary_bytes_raise_nothing_but_message_errors(
    payload: bytes, kind: type[Message], sent_type: str | None
) -> None:
    for attempt in (
        lambda: decode(kind, payload),
        lambda: decode(kind, payload, sent_type=sent_type),
        lambda: decode_any(payload),
    ):
        try:
            message = attempt()
        except MessageError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
        else:
            assert decode(type(message), encode(message)) == message


@given(payloads())
def test_the_words_of_a_request_are_text_whatever_it_holds(payload: bytes) -> None:
    try:
        request = decode(Request, payload)
    except MessageError:
        return
    assert isinstance(request.text, str)


# --- error replies


def test_an_error_code_of_a_newer_peer_is_internal_here() -> None:
    tired = {"code": "too_tired", "message": "later", "retry_after_ms": 7}
    reply = decode(Reply, to_cbor({"type": "mqttcollab.reply.v1", "id": "1", "status": "error", "error": tired}))
    with pytest.raises(RequestError, match="internal: later") as error:
        reply.raise_for_error()
    assert (error.value.code, error.value.retry_after_ms) == ("internal", 7)
    with pytest.raises(RequestError, match="an error reply without an error"):
        Reply(id="1", status="error").raise_for_error()
    assert Reply(id="1").raise_for_error().id == "1"

"""Properties of the codec beside those in test_codec.py: one message, two forms; limits; integers and depth."""

from __future__ import annotations

import json
import struct
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.cms.views import AgentView, Offer
from mqttcollab.codec import CBOR, JSON, decode, decode_any, decode_map, encode
from mqttcollab.errors import MessageError, TooLarge
from mqttcollab.messages import (
    MAX_INTEGER,
    MAX_NESTING,
    MESSAGE_TYPES,
    Embedding,
    Load,
    Message,
    Reply,
    Request,
    ServiceRecord,
)

MAGIC = b"\xd9\xd9\xf7"
KINDS = list(MESSAGE_TYPES.values())
# What both forms hold alike; integers beyond 64 bits and text that is none are tried below and in test_codec.py.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
REQUIRED: dict[type[Message], dict[str, Any]] = {
    kind: {
        "id": "q1", "reply_to": "reply.gpt/@a/q1", "input": "Hello?", "agent": "a", "service": "data.gpt/air",
        "model": "m", "vector": [0.5], "type": kind.model_fields["type"].default,
    }
    for kind in KINDS
}  # fmt: skip


@st.composite
def maps(draw: st.DrawFn) -> tuple[type[Message], dict[str, Any]]:
    """A kind of message, and a map that may be one: right but for some fields."""
    kind = draw(st.sampled_from(KINDS))
    content = {name: value for name, value in REQUIRED[kind].items() if name in kind.model_fields}
    names = st.sampled_from(sorted(kind.model_fields)) | TEXT.filter(lambda name: name != "scale")
    return kind, content | draw(st.dictionaries(names, VALUE, max_size=3))


def read(kind: type[Message], payload: bytes) -> Message | None:
    try:
        return decode(kind, payload)
    except MessageError as error:
        assert "\n" not in str(error)
        return None


@given(maps())
def test_json_and_cbor_say_the_same(found: tuple[type[Message], dict[str, Any]]) -> None:
    kind, content = found
    of_json = read(kind, json.dumps(content).encode())
    of_cbor = read(kind, MAGIC + cbor2.dumps(content))
    assert of_json == of_cbor
    if of_json is not None and kind not in (Embedding, ServiceRecord):  # vectors travel as float32
        assert decode(kind, encode(of_json, CBOR)) == decode(kind, encode(of_json, JSON)) == of_json


@given(st.binary(max_size=3000), st.integers(0, 3000), st.sampled_from(KINDS))
def test_a_limit_comes_before_everything_else(payload: bytes, limit: int, kind: type[Message]) -> None:
    for attempt in (
        lambda: decode(kind, payload, limit=limit),
        lambda: decode_any(payload, limit=limit),
        lambda: decode_map(payload, limit=limit),
    ):
        try:
            attempt()
        except TooLarge:
            assert len(payload) > limit
        except MessageError:
            assert len(payload) <= limit
        else:
            assert len(payload) <= limit


@given(st.integers(0, 40), st.sampled_from(["map", "list"]))
def test_a_free_map_is_as_deep_in_one_form_as_in_the_other(depth: int, shape: str) -> None:
    inner: Any = 1
    for _ in range(depth):
        inner = {"a": inner} if shape == "map" else [inner]
    content = REQUIRED[Request] | {"input": {"a": inner}, "context": [{"text": "", "data": {"a": inner}}]}
    of_json, of_cbor = read(Request, json.dumps(content).encode()), read(Request, MAGIC + cbor2.dumps(content))
    assert (of_json is not None) == (of_cbor is not None) == (depth < MAX_NESTING)
    if of_json is not None:
        assert decode(Request, encode(of_json, CBOR)) == of_json


@pytest.mark.parametrize("form", [json.dumps, lambda content: MAGIC + cbor2.dumps(content)])
@given(st.integers(0, 400), st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 1]))
def test_integers_are_those_that_every_parser_keeps(form: Any, power: int, off: int, sign: int) -> None:
    number = sign * (2**power + off)
    right = 0 <= number <= MAX_INTEGER
    load = read(Load, _bytes(form(REQUIRED[Load] | {"running": number, "queued": number, "slots": number})))
    assert (load is not None) == right
    if isinstance(load, Load):
        assert Offer(ServiceRecord(agent="a", service="data.gpt/air"), AgentView("a", load=load)).pressure >= 0
    free = read(Reply, _bytes(form(REQUIRED[Reply] | {"data": {"n": number}})))
    assert (free is not None) == (-(2**64) <= number < 2**64)


def _bytes(payload: str | bytes) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload


def test_a_load_of_a_number_that_no_float_holds_is_refused() -> None:
    payload = json.dumps({"type": "mqttcollab.load.v1", "agent": "a", "running": 10**400}).encode()
    with pytest.raises(MessageError, match=r"running: Input should be less than or equal to 9007199254740991"):
        decode(Load, payload)


# RFC 8746, section 2.1: tag -> element in the notation of struct.
_ARRAYS = {64: "<B", 72: "<b", 80: ">e", 81: ">f", 82: ">d", 84: "<e", 85: "<f", 86: "<d"}


@given(st.sampled_from(sorted(_ARRAYS)), st.binary(min_size=1, max_size=64), st.none() | st.floats(0.001, 1000))
def test_typed_arrays_are_the_numbers_that_they_hold(tag: int, raw: bytes, scale: float | None) -> None:
    element = _ARRAYS[tag]
    size = struct.calcsize(element)
    content = REQUIRED[Embedding] | {"vector": cbor2.CBORTag(tag, raw)} | ({} if scale is None else {"scale": scale})
    found = read(Embedding, MAGIC + cbor2.dumps(content))
    if len(raw) % size:
        assert found is None
        return
    numbers = [float(n) for n in struct.unpack(f"{element[0]}{len(raw) // size}{element[1]}", raw)]
    expected = numbers if scale is None else [n * scale for n in numbers]
    finite = all(abs(n) < float("inf") for n in expected)  # false for NaN too
    assert (found is not None) == finite
    if isinstance(found, Embedding):
        assert found.vector == expected

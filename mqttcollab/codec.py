"""Bytes to messages and back: JSON, and CBOR with the self-described tag and RFC 8746 typed arrays. No I/O."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal, TypeVar, cast

import cbor2
from pydantic import ValidationError

from mqttcollab.errors import MessageError, TooLarge, UnsupportedVersion
from mqttcollab.messages import MESSAGE_TYPES, Message

JSON: Final = "application/json"
CBOR: Final = "application/cbor"
MAX_PAYLOAD = 256 * 1024

ContentType = Literal["application/json", "application/cbor"]
VectorType = Literal["float32", "float16", "int8"]
M = TypeVar("M", bound=Message)

_SELF_DESCRIBED = 55799
_CBOR_MAGIC = b"\xd9\xd9\xf7"
_MAX_DEPTH = 32
# Everything else that cbor2 would turn into objects of Python (dates, patterns, decimals of any size) stays a tag,
# which validation refuses where it matters and ignores where the field is unknown.
_OPAQUE_TAGS = (0, 1, 2, 3, 4, 5, 25, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000)
# RFC 8746, section 2: tag -> struct format of one element. We write little-endian, we read both.
_TYPED_ARRAYS = {64: "<B", 72: "<b", 80: ">e", 81: ">f", 82: ">d", 84: "<e", 85: "<f", 86: "<d"}
_TAG_OF: dict[VectorType, int] = {"float32": 85, "float16": 84, "int8": 72}


def encode(message: Message, content_type: ContentType = JSON, *, vectors: VectorType = "float32") -> bytes:
    """Encodes a message; fields at their default are left out, but for those that its class spells out.

    Args:
        message: any of `mqttcollab.messages`.
        content_type: JSON (vectors become lists of numbers) or CBOR (vectors become typed arrays).
        vectors: the element type of CBOR vectors; int8 adds a `scale` (value = element * scale).

    Raises:
        MessageError: it holds what can't be encoded, or a vector does not fit.
    """
    try:
        return _encode(message, content_type, vectors)
    except (ValueError, TypeError, RecursionError, cbor2.CBOREncodeError) as error:
        if isinstance(error, MessageError):
            raise
        raise MessageError(f"{message.type}: it can't be encoded: {error}") from None


def _encode(message: Message, content_type: ContentType, vectors: VectorType) -> bytes:
    if content_type == JSON:
        body = message.__pydantic_serializer__.to_json(message, exclude_defaults=True)
        head = b"".join(text for name, value, text in _defaults(type(message)) if getattr(message, name) == value)
        return b"{%s%s" % (head, body[1:]) if len(body) > 2 else b"{%s}" % head[:-1]
    content = {name: value for name, value, _ in _defaults(type(message))}
    content |= message.model_dump(exclude_defaults=True)
    for field in ("vector", "centroid"):
        if field in content:
            content[field], scale = _pack_vector(content[field], vectors)
            if scale is not None:
                content["scale"] = scale
    return cbor2.dumps(cbor2.CBORTag(_SELF_DESCRIBED, content))


def decode(kind: type[M], payload: bytes, *, sent_type: str | None = None, limit: int = MAX_PAYLOAD) -> M:
    """Decodes and validates a message of a known kind, JSON or CBOR.

    Args:
        kind: the message class that the topic calls for.
        payload: the bytes as they arrived.
        sent_type: the MQTT 5 user property `type`, which wins over the payload's.
        limit: largest payload accepted, in bytes.

    Raises:
        TooLarge: the payload is over `limit`.
        UnsupportedVersion: another major version of this message.
        MessageError: anything else that is wrong with it, in one line.
    """
    wanted: str = kind.model_fields["type"].default
    if sent_type is not None and sent_type != wanted:
        raise _wrong_type(sent_type, wanted)
    if len(payload) > limit:
        raise TooLarge(f"{wanted}: {len(payload)} bytes are over the limit of {limit}")
    try:
        if payload[:3] == _CBOR_MAGIC:
            message = kind.model_validate(_load_cbor(payload))
        else:
            message = cast(M, kind.__pydantic_validator__.validate_json(payload))
    except ValidationError as error:
        raise _explain(error, payload, wanted) from None
    if sent_type is None and "type" not in message.model_fields_set:
        raise MessageError(f'a message without a type: add "type": "{wanted}"')
    return message


def content_type_of(payload: bytes) -> ContentType:
    """What a payload is by its first bytes."""
    return CBOR if payload[:3] == _CBOR_MAGIC else JSON


def decode_map(payload: bytes, *, limit: int = MAX_PAYLOAD) -> dict[str, Any]:
    """Decodes any JSON or CBOR map without validating it as a message; raises MessageError or TooLarge."""
    if len(payload) > limit:
        raise TooLarge(f"{len(payload)} bytes are over the limit of {limit}")
    if payload[:3] == _CBOR_MAGIC:
        return _load_cbor(payload)
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the payload is neither JSON nor self-described CBOR: {error}") from None
    if not isinstance(content, dict):
        raise MessageError(f"the payload is a JSON {type(content).__name__}, not a map")
    return content


def decode_any(payload: bytes, *, limit: int = MAX_PAYLOAD) -> Message:
    """Decodes a message of whatever type it says it is; raises MessageError, UnsupportedVersion or TooLarge."""
    content = decode_map(payload, limit=limit)
    name = content.get("type")
    if not isinstance(name, str):
        raise MessageError('the map has no "type"')
    if name not in MESSAGE_TYPES:
        raise _wrong_type(name, None)
    return decode(MESSAGE_TYPES[name], payload, limit=limit)


@cache
def _defaults(kind: type[Message]) -> list[tuple[str, Any, bytes]]:
    """The type and the fields to spell out: name, default, and both as a piece of JSON."""
    named = [(name, kind.model_fields[name].default) for name in ("type", *kind.spelled_out)]
    return [(name, value, f"{json.dumps(name)}:{json.dumps(value)},".encode()) for name, value in named]


def _pack_vector(values: list[float], kind: VectorType) -> tuple[cbor2.CBORTag, float | None]:
    scale = None
    numbers: list[Any] = values
    if kind == "int8":
        scale = max(map(abs, values)) / 127
        if scale < sys.float_info.min:  # too small to divide by
            scale = 1.0
        numbers = [round(v / scale) for v in values]
    tag = _TAG_OF[kind]
    try:
        return cbor2.CBORTag(tag, struct.pack(f"<{len(numbers)}{_TYPED_ARRAYS[tag][1]}", *numbers)), scale
    except (OverflowError, struct.error):
        raise MessageError(f"the vector does not fit {kind}: its largest value is {max(map(abs, values))}") from None


def _load_cbor(payload: bytes) -> dict[str, Any]:
    try:
        content = cbor2.loads(
            payload[len(_CBOR_MAGIC) :], tag_hook=_unpack_tag, semantic_decoders=_DECODERS, max_depth=_MAX_DEPTH
        )
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, MessageError) else error
        raise MessageError(f"the payload is no valid CBOR: {cause}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise MessageError("the CBOR payload is not a map with text keys")
    scale = content.get("scale")
    for field in ("vector", "centroid"):
        if isinstance(scale, int | float) and isinstance(content.get(field), list):
            content[field] = [v * scale if isinstance(v, int | float) else v for v in content[field]]
    return content


def _unpack_tag(tag: cbor2.CBORTag, _immutable: bool) -> Any:
    element = _TYPED_ARRAYS.get(tag.tag)
    if element is None:
        return tag
    size = struct.calcsize(element)
    if not isinstance(tag.value, bytes) or len(tag.value) % size:
        raise MessageError(f"typed array (tag {tag.tag}) is not a byte string of {size}-byte elements")
    return list(struct.unpack(f"{element[0]}{len(tag.value) // size}{element[1]}", tag.value))


def _refuse_sharing(_value: Any, _immutable: bool) -> Any:
    # A few bytes of shared values unfold to gigabytes, or to a list that holds itself.
    raise MessageError("shared values (tags 28 and 29) are not understood")


def _keep_tag(number: int) -> Callable[[Any, bool], cbor2.CBORTag]:
    return lambda value, _immutable: cbor2.CBORTag(number, value)


_DECODERS = {number: _keep_tag(number) for number in _OPAQUE_TAGS} | dict.fromkeys((28, 29), _refuse_sharing)


def _wrong_type(got: str, wanted: str | None) -> MessageError:
    name, _, _ = got.rpartition(".")
    known = [wanted] if wanted else MESSAGE_TYPES
    for ours in known:
        if ours.rpartition(".")[0] == name:
            return UnsupportedVersion(f"{got[:80]} is not supported: this side speaks {ours}")
    return MessageError(f"message type {got[:80]!r} is not known here; expected {' or '.join(known)}")


def _explain(error: ValidationError, payload: bytes, wanted: str) -> MessageError:
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return MessageError(f"{wanted}: not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if first["loc"] == ("type",):
        got = decode_map(payload, limit=len(payload)).get("type")
        if isinstance(got, str):
            return _wrong_type(got, wanted)
    return MessageError(f"{wanted}: {first_error(error)}")


def first_error(error: ValidationError) -> str:
    """The first complaint of pydantic's in one line: where, and what is wrong; and how many there are beside it."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(level) for level in first["loc"]) or "the payload"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg'].removeprefix('Value error, ')}{more}"

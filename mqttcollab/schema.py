"""JSON Schema (draft 2020-12) of every message type, for those who write devices without this library.

A schema describes the JSON form. CBOR carries the same map, with typed arrays for vectors: see topics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from mqttcollab.messages import MESSAGE_TYPES, Message, check_reply_topic
from mqttcollab.topics import KEY_RE, LABEL_RE, SERVICE_RE, check_agent, check_id, check_service

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# pydantic can't see into the functions that check names; these say the same.
_PATTERNS: dict[Callable[..., Any], str] = {
    check_agent: LABEL_RE.pattern,
    check_service: SERVICE_RE.pattern,
    check_id: KEY_RE.pattern,
    check_reply_topic: rf"reply\.gpt/@{LABEL_RE.pattern}/{KEY_RE.pattern}",
}


def schemas() -> dict[str, dict[str, Any]]:
    """The schema of every message type, by its name (`mqttcollab.request.v1`)."""
    return {name: schema_of(kind) for name, kind in MESSAGE_TYPES.items()}


def schema_of(kind: type[Message]) -> dict[str, Any]:
    """The schema of one message type. `type` is required, although an MQTT 5 property may stand in for it."""
    name: str = kind.model_fields["type"].default
    body = kind.model_json_schema(schema_generator=_Generator)
    head = {"$schema": _DIALECT, "$id": f"urn:{name.replace('.', ':')}"}
    return head | body | {"title": name, "required": ["type", *body.get("required", ())]}


class _Generator(GenerateJsonSchema):
    """pydantic's generator, with patterns of names and all defaults, without titles that only repeat a field's name."""

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        """Adds the pattern that the function checks."""
        pattern = _PATTERNS.get(schema["function"]["function"])
        return super().function_after_schema(schema) | ({"pattern": f"^(?:{pattern})$"} if pattern else {})

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Adds the defaults that a factory makes."""
        if "default_factory" in schema:
            schema = {**schema, "default": cast(Callable[[], Any], schema["default_factory"])()}
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False

    def encode_default(self, dft: Any) -> Any:
        """A map inside a message is by default empty, not full of nulls."""
        return dft.model_dump(exclude_defaults=True) if isinstance(dft, BaseModel) else super().encode_default(dft)

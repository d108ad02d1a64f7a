"""The exported JSON Schemas: what we write validates against them, and what they let through we read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mqttcollab.codec import CBOR, JSON, VectorType, decode, decode_map, encode
from mqttcollab.errors import MessageError
from mqttcollab.messages import (
    MESSAGE_TYPES,
    Candidate,
    ContextItem,
    Embedding,
    ErrorInfo,
    Load,
    Message,
    Observation,
    Parameters,
    Part,
    Plan,
    PlanStep,
    Profile,
    Relevance,
    Reply,
    Request,
    ServiceRecord,
    Source,
    Step,
    Timing,
    Uncertainty,
    Usage,
    Verdict,
)
from mqttcollab.schema import schemas

SCHEMAS = schemas()
SERVICE = "data.gpt/health/heart-rate"
ERROR = ErrorInfo(code="busy", message="the queue is full", retry_after_ms=500)
VERDICT = Verdict(score=-1.5, probability=0.18, reason="close to nothing")
RELEVANCE = Relevance(score=2.0, probability=0.88, reason="close to an example", service=SERVICE)
CANDIDATE = Candidate(score=0.8, probability=0.85, reason="often right", agent="watch-7", service=SERVICE)
PLAN_STEP = PlanStep(
    text="Is #1 high?",
    service=SERVICE,
    after=[1],
    reason="close",
    gap=VERDICT,
    domains=[RELEVANCE],
    candidates=[CANDIDATE],
)

# Each type at its barest, and with every field set.
BARE: list[Message] = [
    Request(id="q1", reply_to="reply.gpt/@me/q1", input="?"),
    Reply(id="q1"),
    ServiceRecord(agent="watch-7", service=SERVICE),
    Profile(agent="watch-7"),
    Load(agent="watch-7"),
    Observation(id="o1", agent="watch-7", service=SERVICE),
    Embedding(agent="watch-7", service=SERVICE, model="m", vector=[1.0]),
]
FULL: list[Message] = [
    Request(
        id="q1",
        reply_to="reply.gpt/@me/q1",
        ttl_ms=5000,
        max_wait_ms=0,
        service=SERVICE,
        input={"text": "What is my heart rate?", "window_s": 30},
        context=[ContextItem(text="59/min", agent="watch-7", service=SERVICE, data={"heart_rate": 59})],
        parameters=Parameters(max_tokens=64, temperature=0.7, top_p=0.9, top_k=40, stop=["\n"], seed=1),
        stream=True,
        session="s",
        tenant="t",
        budget_usd=0.01,
        may_leave_edge=False,
        priority=7,
        plan=[PlanStep(text="What is my heart rate?"), PLAN_STEP],
        hops=2,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    Reply(
        id="q1",
        seq=3,
        last=True,
        status="error",
        output="59/min",
        data={"heart_rate": 59},
        confidence=0.9,
        uncertainty=Uncertainty(
            tokens=7,
            mean_logprob=-0.3,
            min_logprob=-1.2,
            first_logprob=-0.1,
            key_logprob=-0.8,
            truncated=True,
            agreement=0.75,
            samples=4,
        ),
        agent="watch-7",
        service=SERVICE,
        usage=Usage(prompt_tokens=12, completion_tokens=7, cost_usd=0.001),
        sources=[Source(agent="watch-7", service=SERVICE, document="d", observation="o1", text="t", time_ms=1)],
        timing=Timing(queued_ms=0.1, elapsed_ms=2.5),
        plan=Plan(
            origin="clauses",
            reason="it asks two things",
            complexity=VERDICT,
            gap=VERDICT,
            domains=[RELEVANCE],
            steps=[PlanStep(text="What is my heart rate?"), PLAN_STEP],
        ),
        steps=[
            Step(
                number=2,
                text="Is 59/min high?",
                service=SERVICE,
                agent="watch-7",
                status="error",
                reason="close",
                after=[1],
                confidence=0.5,
                verdict=VERDICT,
                start_ms=0.0,
                elapsed_ms=12.5,
                error=ERROR,
            )
        ],
        missing=["the weather"],
        error=ERROR,
    ),
    ServiceRecord(
        agent="watch-7",
        service=SERVICE,
        description="Heart rate",
        examples=["What is my heart rate?"],
        inputs=["text", "map"],
        outputs=["text", "map"],
        model="m",
        embedding_model="e",
        dimension=2,
        centroid=[0.6, 0.8],
        concurrency=2,
        price_usd=0.001,
        prompt_usd_per_mtok=30.0,
        completion_usd_per_mtok=60.0,
        leaves_edge=True,
        durable=True,
        accuracy=0.95,
        place="wrist",
        ttl_s=60,
        heartbeat_s=10,
    ),
    Profile(
        agent="watch-7",
        description="A watch",
        hardware={"kind": "wearable", "ram_mb": 64},
        firmware="1.0",
        place="wrist",
        services=[SERVICE],
    ),
    Load(
        agent="watch-7",
        running=1,
        queued=2,
        waiting=1,
        unsent=3,
        slots=3,
        completed=4,
        failed=5,
        rejected=6,
        last_rejection="nonsense",
        tokens_per_s=110.5,
        battery=0.5,
        drain_per_h=0.1,
        thermal=0.25,
        link=0.75,
        heartbeat_s=10,
        time_ms=1_732_178_400_123,
    ),
    Observation(
        id="o1",
        agent="watch-7",
        service=SERVICE,
        text="59/min",
        values={"heart_rate": 59.0},
        units={"heart_rate": "1/min"},
        place="wrist",
        time_ms=1_732_178_400_123,
    ),
    Embedding(
        agent="watch-7",
        service=SERVICE,
        model="m",
        vector=[0.6, -0.8],
        kind="image",
        observation="o1",
        text="59/min",
        place="wrist",
        time_ms=1_732_178_400_123,
    ),
]


def name_of(message: Message) -> str:
    return message.type


def validate(name: str, content: Any) -> None:
    jsonschema.validate(content, SCHEMAS[name], cls=Draft202012Validator)


def test_every_type_has_a_schema() -> None:
    assert list(SCHEMAS) == list(MESSAGE_TYPES)
    for name, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
        assert schema["title"] == name and schema["properties"]["type"]["const"] == name
        assert schema["required"][0] == "type"
    assert len({schema["$id"] for schema in SCHEMAS.values()}) == len(SCHEMAS)
    assert json.loads(json.dumps(SCHEMAS)) == SCHEMAS


def parts_of(value: Any) -> Iterator[Part]:
    """The maps inside a message, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from parts_of(item)
    elif isinstance(value, Part):
        yield value
        for name in type(value).model_fields:
            yield from parts_of(getattr(value, name))


def test_every_field_is_set_in_full() -> None:
    for message in FULL:
        assert message.model_fields_set | {"type"} == type(message).model_fields.keys()
    parts = [part for message in FULL for part in parts_of(message)]
    for kind in {type(part) for part in parts}:
        fields = set[str]().union(*(part.model_fields_set for part in parts if type(part) is kind))
        assert fields | {"type"} == kind.model_fields.keys() | {"type"}, kind


@pytest.mark.parametrize("message", [*BARE, *FULL], ids=name_of)
def test_what_we_write_validates(message: Message) -> None:
    validate(message.type, json.loads(encode(message)))
    vectors: tuple[VectorType, ...] = ("float32", "float16", "int8")
    for kind in vectors:
        validate(message.type, decode_map(encode(message, CBOR, vectors=kind)))


@pytest.mark.parametrize("message", FULL, ids=name_of)
def test_defaults_are_the_ones_of_the_schema(message: Message) -> None:
    bare = next(other for other in BARE if type(other) is type(message)).model_dump()
    fields = SCHEMAS[message.type]["properties"]
    optional = fields.keys() - set(SCHEMAS[message.type]["required"])
    plain = {name: {} if name == "parameters" else bare[name] for name in optional}
    assert {name: fields[name]["default"] for name in optional} == plain


def spoilt() -> Iterator[Any]:
    """Messages in which one thing is wrong: type, the fields to change, why."""
    good = {message.type: json.loads(encode(message)) for message in FULL}
    request, reply, record, load = (f"mqttcollab.{kind}.v1" for kind in ("request", "reply", "service", "load"))
    observation, embedding, profile = (f"mqttcollab.{kind}.v1" for kind in ("observation", "embedding", "profile"))
    changes: list[tuple[str, dict[str, Any]]] = [
        *((name, {"type": name.replace(".v1", ".v2")}) for name in SCHEMAS),
        *((name, {field: ...}) for name, schema in SCHEMAS.items() for field in schema["required"]),
        (request, {"id": "a/b"}),
        (request, {"id": ""}),
        (request, {"reply_to": "slm/agents/@me/status"}),
        (request, {"reply_to": "reply.gpt/me/q1"}),
        (request, {"service": "weather"}),
        (request, {"service": "data.gpt/a/b/c/d/e"}),
        (request, {"service": "data.gpt/+"}),
        (request, {"ttl_ms": 0}),
        (request, {"ttl_ms": 86_400_001}),
        (request, {"ttl_ms": 1.5}),
        (request, {"max_wait_ms": -1}),
        (request, {"input": 42}),
        (request, {"hops": -1}),
        (request, {"context": [{"agent": "watch-7"}]}),
        (request, {"parameters": {"top_p": 0}}),
        (request, {"parameters": None}),
        (reply, {"status": "done"}),
        (reply, {"confidence": 1.01}),
        (reply, {"seq": -1}),
        (reply, {"error": {"code": "busy"}}),
        (reply, {"steps": [{"service": SERVICE, "status": "running"}]}),
        (reply, {"steps": [{"service": SERVICE, "number": 0}]}),
        (reply, {"uncertainty": {"tokens": 7, "mean_logprob": 0.1, "min_logprob": -1, "first_logprob": -1}}),
        (reply, {"uncertainty": {"tokens": 7}}),
        (reply, {"plan": {"origin": "whole"}}),
        (request, {"plan": [{"text": "x"}] * 17}),
        (request, {"plan": [{"text": "x" * 4001}]}),
        (request, {"plan": [{"text": "x", "after": [0]}]}),
        (record, {"agent": "@watch-7"}),
        (record, {"agent": "Watch"}),
        (record, {"agent": "a" * 64}),
        (record, {"description": "x" * 4097}),
        (record, {"examples": ["x"] * 257}),
        (record, {"concurrency": 0}),
        (record, {"heartbeat_s": 0}),
        (record, {"centroid": []}),
        (profile, {"hardware": ["ESP32"]}),
        (load, {"battery": 80}),
        (load, {"running": "many"}),
        (observation, {"values": {"heart_rate": "fast"}}),
        (embedding, {"vector": []}),
        (embedding, {"vector": [0.0] * 4097}),
        (embedding, {"vector": ["x"]}),
    ]
    for name, change in changes:
        content = {field: value for field, value in (good[name] | change).items() if value is not ...}
        yield pytest.param(name, content, id=f"{name}: {json.dumps(change, default=lambda _: 'missing')[:60]}")


@pytest.mark.parametrize(("name", "content"), list(spoilt()))
def test_what_is_wrong_neither_validates_nor_decodes(name: str, content: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(name, content)
    with pytest.raises(MessageError):
        decode(MESSAGE_TYPES[name], json.dumps(content).encode())


# The validator's regular expressions are Python's, whose $ also matches before a last newline; JSON Schema's is not so.
plain_text = st.text(max_size=12).filter(lambda text: "\n" not in text)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
telling = st.sampled_from(["q1", "watch-7", SERVICE, "reply.gpt/@me/q1", "ok", 0, 1, 0.5, -1, True, None])
anything = st.recursive(
    telling | st.none() | st.booleans() | numbers | plain_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=3),
    max_leaves=6,
)


@given(message=st.sampled_from([*BARE, *FULL]), data=st.data())
def test_what_validates_decodes(message: Message, data: st.DataObject) -> None:
    content = json.loads(encode(message))
    field = data.draw(st.sampled_from(sorted(SCHEMAS[message.type]["properties"])))
    content[field] = data.draw(anything)
    try:
        validate(message.type, content)
    except jsonschema.ValidationError:
        return
    decoded = decode(type(message), json.dumps(content).encode())
    validate(message.type, json.loads(encode(decoded, JSON)))

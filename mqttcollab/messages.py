"""Every structured message, as a pydantic model; `topics.md` describes them, `mqttcollab schema` exports them.

Unknown fields are ignored, so that a newer peer may add some. Times are milliseconds; times of day are the
sender's own clock (Unix epoch) and are never compared between devices.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mqttcollab.errors import ErrorCode, RequestError
from mqttcollab.topics import check_agent, check_id, check_service, parse_reply_topic

MAX_TTL_MS = 24 * 3600 * 1000
MAX_HOPS = 8
MAX_EXAMPLES = 256
MAX_DIMENSION = 4096
MAX_STEPS = 16
MAX_STEP_TEXT = 4000
MAX_INTEGER = 2**53 - 1  # what every JSON parser keeps exactly, and every sum of ours can bear
MAX_NESTING = 24  # of a free map; with the maps around it less than the decoder of CBOR takes


def check_reply_topic(topic: str) -> str:
    """Returns a reply topic, else raises TopicError."""
    parse_reply_topic(topic)
    return topic


def check_plain(content: dict[str, Any]) -> dict[str, Any]:
    """Returns a map that JSON and CBOR can hold, else raises ValueError.

    That is: no NaN, no bytes, no CBOR tags, no keys but text, no integer over 64 bits, at most 24 levels.
    """
    _check_map(content, 1)
    return content


def _check_map(content: dict[Any, Any], depth: int) -> None:
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"the key {str(key)[:80]!r} is no text")
        _check_value(key, value, depth)


def _check_value(key: str, value: Any, depth: int) -> None:
    if value is None or isinstance(value, str):
        return
    if isinstance(value, int):
        if not -(2**64) <= value < 2**64:
            raise ValueError(f"{key[:80]!r} is an integer of more than 64 bits")
        return
    if isinstance(value, float) and math.isfinite(value):
        return
    if isinstance(value, dict | list | tuple) and depth == MAX_NESTING:
        raise ValueError(f"{key[:80]!r} is nested more than {MAX_NESTING} levels deep")
    if isinstance(value, dict):
        _check_map(value, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_value(key, item, depth + 1)
    else:
        what = value if isinstance(value, float) else type(value).__name__
        raise ValueError(f"{key[:80]!r} is {what}, which JSON can't hold")


AgentName = Annotated[str, AfterValidator(check_agent)]
ServiceName = Annotated[str, AfterValidator(check_service)]
RequestId = Annotated[str, AfterValidator(check_id)]
ReplyTopic = Annotated[str, AfterValidator(check_reply_topic)]
Vector = Annotated[list[float], Field(min_length=1, max_length=MAX_DIMENSION)]
Integer = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
Plain = Annotated[dict[str, Any], AfterValidator(check_plain)]


class Part(BaseModel):
    """A map inside a message."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Message(Part):
    """A message of its own: one map with a versioned `type`."""

    # Fields that are written even at their default, for readers with `mosquitto_sub` or a small parser.
    spelled_out: ClassVar[tuple[str, ...]] = ()

    type: str


class Parameters(Part):
    """How a language model is to generate; what is absent is the service's own choice."""

    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=100_000)] | None = None
    stop: list[str] = Field(default_factory=list)  # pydantic would copy a default of [], and slowly
    seed: Integer | None = None


class Source(Part):
    """Where a statement comes from: which agent, which observation, which document."""

    agent: str | None = None
    service: str | None = None
    document: str | None = None
    observation: str | None = None
    text: str | None = None
    time_ms: Integer | None = None


class ContextItem(Part):
    """An earlier result that a request builds on; data for the handler, never instructions."""

    text: str
    agent: str | None = None
    service: str | None = None
    data: Plain | None = None


class Usage(Part):
    """What an answer took: tokens, and US dollars where somebody charges for it."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cost_usd: Annotated[float, Field(ge=0)] = 0.0


class ErrorInfo(Part):
    """Why a request was not answered. `code` may be one that a newer peer knows and we don't."""

    code: str
    message: str
    retry_after_ms: Count | None = None


class Uncertainty(Part):
    """How a language model wrote an answer: log probabilities (natural) of its tokens, and what its samples agree on.

    `key_logprob` is the least one in the first word that the question doesn't have; `agreement` is how much `samples`
    further answers say the same, 0 to 1; `truncated` that it was cut off.
    """

    tokens: Count
    mean_logprob: Annotated[float, Field(le=0)]
    min_logprob: Annotated[float, Field(le=0)]
    first_logprob: Annotated[float, Field(le=0)]
    key_logprob: Annotated[float, Field(le=0)] | None = None
    truncated: bool = False
    agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    samples: Count = 0


class Timing(Part):
    """Where the answering agent's time went, in milliseconds of its own clock."""

    queued_ms: float | None = None
    elapsed_ms: float | None = None


class Verdict(Part):
    """What a classifier says: its raw score (higher is more), the calibrated probability, and why, for a person."""

    score: float
    probability: Annotated[float, Field(ge=0, le=1)]
    reason: str


class Relevance(Verdict):
    """How likely a question touches a service's domain."""

    service: str


class Candidate(Verdict):
    """An agent that could do a step; `probability` is that its answer will be right, `score` what it is ranked by."""

    agent: str
    service: str


class PlanStep(Part):
    """One subtask. Its text names the results that it needs as `#1`, `#2`, …; `##` is a literal number sign.

    A requester gives `text`, and `service` and `after` where it wants to; the rest is the orchestrator's.
    """

    text: Annotated[str, Field(max_length=MAX_STEP_TEXT)]
    service: ServiceName | None = None
    after: list[Positive] = []
    reason: str | None = None
    gap: Verdict | None = None
    domains: list[Relevance] = []
    candidates: list[Candidate] = []


class Plan(Part):
    """What an orchestrator decided about a question, and why. Steps count from 1.

    `origin` says who split the question: `whole` (nobody), `clauses`, `structure`, `model` or `request`.
    """

    origin: str
    reason: str
    complexity: Verdict | None = None
    gap: Verdict | None = None
    domains: list[Relevance] = []
    steps: list[PlanStep] = []


class Step(Part):
    """One subtask of an orchestrated answer, when it has ended; `number` and `after` as in the plan."""

    number: Positive = 1
    text: str | None = None
    service: str
    agent: str | None = None
    status: Literal["ok", "error", "skipped"] = "ok"
    reason: str | None = None
    after: list[Integer] = []
    confidence: float | None = None
    verdict: Verdict | None = None
    start_ms: float | None = None
    elapsed_ms: float | None = None
    error: ErrorInfo | None = None


class Request(Message):
    """A question to a service.

    `ttl_ms` counts from its receipt; past it nobody works on it. `max_wait_ms` is the longest that it may wait in the
    agent's queue; 0: `busy` at once unless a slot is free.
    """

    spelled_out = ("ttl_ms",)

    type: Literal["mqttcollab.request.v1"] = "mqttcollab.request.v1"
    id: RequestId
    reply_to: ReplyTopic
    ttl_ms: Annotated[int, Field(ge=1, le=MAX_TTL_MS)] = 30_000
    max_wait_ms: Count | None = None
    service: ServiceName | None = None
    input: str | Plain
    context: list[ContextItem] = Field(default_factory=list)
    parameters: Parameters = Field(default_factory=Parameters)
    stream: bool = False
    session: str | None = None
    tenant: str | None = None
    budget_usd: Annotated[float, Field(ge=0)] | None = None
    may_leave_edge: bool = True
    priority: Annotated[int, Field(ge=0, le=9)] = 4
    plan: Annotated[list[PlanStep], Field(max_length=MAX_STEPS)] | None = None
    hops: Count = 0
    traceparent: str | None = None

    @property
    def text(self) -> str:
        """The question in words: a text input itself, a map's `text`, else the map as JSON."""
        if isinstance(self.input, str):
            return self.input
        text = self.input.get("text")
        return text if isinstance(text, str) else json.dumps(self.input, ensure_ascii=False)


class Reply(Message):
    """An answer, or a part of one: parts (`partial`) count `seq` up; exactly one reply is `last`."""

    spelled_out = ("seq", "last", "status")

    type: Literal["mqttcollab.reply.v1"] = "mqttcollab.reply.v1"
    id: RequestId
    seq: Count = 0
    last: bool = True
    status: Literal["ok", "partial", "error"] = "ok"
    output: str | None = None
    data: Plain | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    uncertainty: Uncertainty | None = None
    agent: str | None = None
    service: str | None = None
    usage: Usage | None = None
    sources: list[Source] = Field(default_factory=list)
    timing: Timing | None = None
    plan: Plan | None = None
    steps: list[Step] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)
    error: ErrorInfo | None = None

    def raise_for_error(self) -> Reply:
        """Returns itself, or raises RequestError if it is an error reply."""
        if self.status != "error":
            return self
        error = self.error or ErrorInfo(code="internal", message="an error reply without an error")
        code = cast(ErrorCode, error.code) if error.code in get_args(ErrorCode) else "internal"
        raise RequestError(code, error.message, retry_after_ms=error.retry_after_ms)


class ServiceRecord(Message):
    """What an agent offers under a name; retained at `<service>/@<agent>`."""

    type: Literal["mqttcollab.service.v1"] = "mqttcollab.service.v1"
    agent: AgentName
    service: ServiceName
    description: Annotated[str, Field(max_length=4096)] = ""
    examples: Annotated[list[str], Field(max_length=MAX_EXAMPLES)] = []
    inputs: list[str] = ["text"]
    outputs: list[str] = ["text"]
    model: str | None = None
    embedding_model: str | None = None
    dimension: Annotated[int, Field(ge=1, le=MAX_DIMENSION)] | None = None
    centroid: Vector | None = None
    concurrency: Positive = 1
    price_usd: Annotated[float, Field(ge=0)] = 0.0
    prompt_usd_per_mtok: Annotated[float, Field(ge=0)] = 0.0
    completion_usd_per_mtok: Annotated[float, Field(ge=0)] = 0.0
    leaves_edge: bool = False
    durable: bool = False
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    place: str | None = None
    ttl_s: Annotated[float, Field(gt=0)] | None = None
    heartbeat_s: Annotated[float, Field(gt=0)] | None = None

    def centroid_for(self, model: str, dimension: int) -> list[float] | None:
        """The centroid at unit length, where it compares with vectors of that model; else None.

        None too where its length is not its own `dimension`, or it is zero.
        """
        if self.centroid is None or self.embedding_model != model or len(self.centroid) != dimension:
            return None
        length = math.hypot(*self.centroid)
        if self.dimension not in (None, dimension) or not 0 < length < math.inf:
            return None
        return [value / length for value in self.centroid]


class Profile(Message):
    """What an agent is: hardware, firmware, place; retained at `slm/agents/@<agent>/profile`."""

    type: Literal["mqttcollab.profile.v1"] = "mqttcollab.profile.v1"
    agent: AgentName
    description: str = ""
    hardware: Plain = {}
    firmware: str | None = None
    place: str | None = None
    services: list[str] = []


class Load(Message):
    """How busy an agent is; also its heartbeat. Retained at `slm/agents/@<agent>/load`."""

    type: Literal["mqttcollab.load.v1"] = "mqttcollab.load.v1"
    agent: AgentName
    running: Count = 0
    queued: Count = 0
    waiting: Count = 0
    unsent: Count = 0
    slots: Count = 1
    completed: Count = 0
    failed: Count = 0
    rejected: Count = 0
    last_rejection: str | None = None
    tokens_per_s: Annotated[float, Field(ge=0)] | None = None
    battery: Annotated[float, Field(ge=0, le=1)] | None = None
    drain_per_h: float | None = None
    thermal: Annotated[float, Field(ge=0)] | None = None
    link: Annotated[float, Field(ge=0, le=1)] | None = None
    heartbeat_s: Annotated[float, Field(gt=0)] | None = None
    time_ms: Integer | None = None


class Observation(Message):
    """Something sensed and processed; the latest is retained at `data.gpt/<domain>/@<agent>/observation`."""

    type: Literal["mqttcollab.observation.v1"] = "mqttcollab.observation.v1"
    id: RequestId
    agent: AgentName
    service: ServiceName
    text: str = ""
    values: dict[str, float] = {}
    units: dict[str, str] = {}
    place: str | None = None
    time_ms: Integer | None = None


class Embedding(Message):
    """A vector and what it stands for; `model` and the vector's length say with which others it compares."""

    type: Literal["mqttcollab.embedding.v1"] = "mqttcollab.embedding.v1"
    agent: AgentName
    service: ServiceName
    model: str
    vector: Vector
    kind: str = "text"
    observation: str | None = None
    text: str | None = None
    place: str | None = None
    time_ms: Integer | None = None


MESSAGE_TYPES: dict[str, type[Message]] = {
    cls.model_fields["type"].default: cls
    for cls in (Request, Reply, ServiceRecord, Profile, Load, Observation, Embedding)
}
